"""Configures the libraries around lm-eval: where they write, which Hub they use, and data sets from disk.

Two rules make a measurement possible without a network:

- `set_up_dataset_libraries` must be called before `datasets`, `huggingface_hub`, `nltk` or `lm_eval` is imported, since
  these read the environment once, at import. Apart from the edge, this is the only module that touches `os.environ`,
  and it only writes.
- `datasets.load_dataset` is replaced. The stage `datasets` replaces it with a recorder (`eval/datasets.py`), and
  `take_datasets_offline` with a reader of the recorded data. So a task gets exactly what its own call got online,
  without Hugging Face's cache, whose locks and paths do not work on a read-only mount or on another machine.

The stage `datasets` writes, and `evaluate` finds at /in/datasets:

    datasets.json          every call of `load_dataset`, and where its result is (`FetchedSets`)
    sets/<key>/            the result, as `save_to_disk` writes it (Arrow files, mapped into memory)
    nltk_data/             NLTK's data for tasks such as ifeval
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any, Final, Literal

from pydantic import JsonValue

from quantyard.protocol.base import ExitCode, Frozen, RelativePath, json_digest
from quantyard.protocol.runner import StageFailure

INDEX: Final = "datasets.json"
NLTK_DATA: Final = "nltk_data"
# The file readers of `datasets`; any other path is a Hub repo or a folder.
FILE_READERS: Final = frozenset({"json", "csv", "parquet", "text", "arrow", "xml"})
_NOT_IN_KEY: Final = frozenset({"trust_remote_code", "cache_dir", "download_mode", "download_config", "token"})
Load = Callable[..., Any]


class FetchedSet(Frozen):
    """One call of `load_dataset` and its result."""

    path: str  # a Hub repo, or one of FILE_READERS with URLs in `options`
    name: str | None
    options: dict[str, JsonValue]
    commit: str | None  # of the repo; None for URLs
    rows: dict[str, int]  # split → rows
    folder: RelativePath

    @property
    def key(self) -> str:
        """The `dataset_call_key` of the call."""
        return dataset_call_key(self.path, self.name, self.options)


class FetchedSets(Frozen):
    """All calls, in the order of their keys."""

    version: Literal[1] = 1
    sets: tuple[FetchedSet, ...] = ()


def set_up_dataset_libraries(
    scratch: Path, nltk_data: Path, endpoint: str | None = None, *, online: bool = False
) -> None:
    """Set where the libraries write (`scratch`), and whether they use the Hub and which one.

    Raises:
        RuntimeError: huggingface_hub is imported already, and has read its environment.
    """
    if online and "huggingface_hub" in sys.modules:
        raise RuntimeError("call set_up_dataset_libraries before the first import of huggingface_hub")
    told = {
        "HF_HOME": str(scratch / "hf"), "NLTK_DATA": str(nltk_data), "TOKENIZERS_PARALLELISM": "false",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",  # its own TLS stack ignores EXTRA_CA and some proxies
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",  # the only token is the one passed explicitly
    }
    told |= {"HF_HUB_OFFLINE": "0"} if online else {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    if endpoint:
        told["HF_ENDPOINT"] = endpoint.rstrip("/")
    os.environ.update(told)
    tempfile.tempdir = str(scratch / "tmp")  # the output of `map` may not fit in /tmp, which is a tmpfs
    (scratch / "tmp").mkdir(parents=True, exist_ok=True)


def take_datasets_offline(folder: Path | None, scratch: Path) -> None:
    """Make every later `load_dataset` read `folder`, the output of the stage `datasets`; None: local files only.

    Call it before lm_eval is imported. `scratch` must be writable; local files are unpacked there.

    Raises:
        StageFailure: `folder` has no data sets.
    """
    set_up_dataset_libraries(scratch, (folder or scratch) / NLTK_DATA)
    import datasets

    fetched = {one.key: one for one in _read_fetched_sets(folder).sets} if folder else {}
    cache, local = str(scratch / "local"), unpatched_load_dataset()

    def load(path: str, name: str | None = None, **options: Any) -> Any:
        if is_local_dataset(path, options):
            return local(path, name, **{**sent_dataset_options(options), "cache_dir": cache})
        found = fetched.get(dataset_call_key(path, name, options))
        if found is None or folder is None:
            raise _dataset_not_fetched(path, name)
        return datasets.load_from_disk(str(folder / found.folder))

    datasets.disable_caching()  # with caching, `map` would write next to the read-only files
    replace_dataset_loader(load)


@cache
def unpatched_load_dataset() -> Load:
    """The library's own `load_dataset`, as it was before the first replacement."""
    import datasets.load

    own: Load = datasets.load.load_dataset
    return own


def replace_dataset_loader(load: Load) -> None:
    """Replace `datasets.load_dataset` with `load`, and refuse metrics whose code is on the Hub."""
    import datasets
    import datasets.load

    unpatched_load_dataset()  # caches the original before it is replaced
    datasets.load_dataset = datasets.load.load_dataset = load
    # Tasks use only `evaluate.load`, and importing the real library would import transformers and torch if installed.
    replacement = ModuleType("evaluate")
    replacement.load = _refuse_metric_offline  # type: ignore[attr-defined]
    sys.modules["evaluate"] = replacement


def dataset_call_key(path: str, name: str | None, options: Mapping[str, Any]) -> str:
    """The key of a call of `load_dataset`, the same online and offline."""
    return json_digest([path, name, plain_dataset_options(options)])[:16]


def plain_dataset_options(options: Mapping[str, Any]) -> dict[str, JsonValue]:
    """The options that decide the result, as JSON."""
    kept = {key: value for key, value in options.items() if key not in _NOT_IN_KEY and value is not None}
    value: dict[str, JsonValue] = json.loads(json.dumps(kept, default=str, sort_keys=True))
    return value


def sent_dataset_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options to pass on, without `trust_remote_code`: code from a repo is never run."""
    return {key: value for key, value in options.items() if key != "trust_remote_code"}


def is_local_dataset(path: str, options: Mapping[str, Any]) -> bool:
    """Whether a call reads only local files."""
    files = plain_dataset_options({key: options.get(key) for key in ("data_files", "data_dir")})
    if path in FILE_READERS:
        return bool(files) and "://" not in json.dumps(files)
    return Path(path).is_absolute() and Path(path).is_dir()


def _read_fetched_sets(folder: Path) -> FetchedSets:
    try:
        return FetchedSets.model_validate_json((folder / INDEX).read_bytes())
    except (OSError, ValueError) as error:
        raise StageFailure(ExitCode.BUG, "bug", f"{folder} has no usable {INDEX}: {error}") from error


def _dataset_not_fetched(path: str, name: str | None) -> StageFailure:
    what = f"{path} ({name})" if name else path
    message = f"The data set {what} was not fetched, and measuring has no network."
    hint = "If a task's own Python code loads it, set in the suite: needs_network: true"
    return StageFailure(ExitCode.BAD_REQUEST, "data-set-not-fetched", message, hint)


def _refuse_metric_offline(name: str, *_args: Any, **_kwargs: Any) -> Any:
    message = f"The metric {name!r} is code from the Hub, and Quantyard never runs that."
    raise StageFailure(ExitCode.BAD_REQUEST, "remote-code", message, "Leave the task out, or use a metric of lm-eval.")
