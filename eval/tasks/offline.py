"""What the libraries around lm-eval are told: where to write, which Hub, and that data sets are on disk already.

Two rules make a measurement possible without a network:

- `set_up_dataset_libraries` is called before `datasets`, `huggingface_hub`, `nltk` or `lm_eval` is imported, for they
  read the environment once, while they are imported. This is the one module beside the edge that touches `os.environ`,
  and it only writes.
- `datasets.load_dataset` is replaced. The stage `datasets` puts a recorder in its place (`eval/datasets.py`);
  `take_datasets_offline` puts in a reader of what was recorded. So a task gets exactly what its own call got online,
with no cache of Hugging Face's, whose locks and paths do not survive a read-only mount on another machine.

What the stage `datasets` leaves, and what is mounted at /in/datasets:

    datasets.json          every call of `load_dataset`, and where its answer is (`FetchedSets`)
    sets/<key>/            the answer, as `save_to_disk` writes it (Arrow files, mapped into memory)
    nltk_data/             what tasks such as ifeval ask of NLTK
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
# Readers of files that come with `datasets`; any other path is a repo of the Hub or a folder.
FILE_READERS: Final = frozenset({"json", "csv", "parquet", "text", "arrow", "xml"})
_NOT_IN_KEY: Final = frozenset({"trust_remote_code", "cache_dir", "download_mode", "download_config", "token"})
Load = Callable[..., Any]


class FetchedSet(Frozen):
    """One call of `load_dataset`: what was asked, and what came."""

    path: str  # a Hub repo, or one of FILE_READERS with addresses in `options`
    name: str | None
    options: dict[str, JsonValue]
    commit: str | None  # of the repo; None for plain addresses
    rows: dict[str, int]  # split → rows
    folder: RelativePath

    @property
    def key(self) -> str:
        """What `dataset_call_key` says of the call."""
        return dataset_call_key(self.path, self.name, self.options)


class FetchedSets(Frozen):
    """All calls, in the order of their keys."""

    version: Literal[1] = 1
    sets: tuple[FetchedSet, ...] = ()


def set_up_dataset_libraries(
    scratch: Path, nltk_data: Path, endpoint: str | None = None, *, online: bool = False
) -> None:
    """Tell the libraries where to write (`scratch`), and whether and which Hub to ask.

    Raises:
        RuntimeError: too late, a library has read its environment.
    """
    if online and "huggingface_hub" in sys.modules:
        raise RuntimeError(
            "eval.tasks.offline.set_up_dataset_libraries comes before the first import of huggingface_hub"
        )
    told = {
        "HF_HOME": str(scratch / "hf"), "NLTK_DATA": str(nltk_data), "TOKENIZERS_PARALLELISM": "false",
        "HF_DATASETS_DISABLE_PROGRESS_BARS": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "HF_HUB_DISABLE_XET": "1",  # its own TLS knows neither EXTRA_CA nor every proxy
        "HF_HUB_DISABLE_IMPLICIT_TOKEN": "1",  # the only token is the one handed over
    }
    told |= {"HF_HUB_OFFLINE": "0"} if online else {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    if endpoint:
        told["HF_ENDPOINT"] = endpoint.rstrip("/")
    os.environ.update(told)
    tempfile.tempdir = str(scratch / "tmp")  # what `map` leaves may be larger than the memory behind /tmp
    (scratch / "tmp").mkdir(parents=True, exist_ok=True)


def take_datasets_offline(folder: Path | None, scratch: Path) -> None:
    """Let every later `load_dataset` read `folder`, which the stage `datasets` left; None: local files only.

    Call it before lm_eval is imported. `scratch` has to be writable; local files are unpacked there.

    Raises:
        StageFailure: `folder` holds no data sets.
    """
    set_up_dataset_libraries(scratch, (folder or scratch) / NLTK_DATA)
    import datasets

    fetched = {one.key: one for one in _read_index(folder).sets} if folder else {}
    cache, local = str(scratch / "local"), unpatched_load_dataset()

    def load(path: str, name: str | None = None, **options: Any) -> Any:
        if is_local_dataset(path, options):
            return local(path, name, **{**sent_dataset_options(options), "cache_dir": cache})
        found = fetched.get(dataset_call_key(path, name, options))
        if found is None or folder is None:
            raise _not_fetched(path, name)
        return datasets.load_from_disk(str(folder / found.folder))

    datasets.disable_caching()  # else `map` writes beside the read-only files
    replace_dataset_loader(load)


@cache
def unpatched_load_dataset() -> Load:
    """The library's own `load_dataset`: what was there before the first replacement."""
    import datasets.load

    own: Load = datasets.load.load_dataset
    return own


def replace_dataset_loader(load: Load) -> None:
    """Put `load` in the place of `datasets.load_dataset`, and forbid metrics whose code lies on the Hub."""
    import datasets
    import datasets.load

    unpatched_load_dataset()  # to remember it
    datasets.load_dataset = datasets.load.load_dataset = load
    # `evaluate.load` is all that tasks want of that library, whose import takes transformers and torch where there are.
    replacement = ModuleType("evaluate")
    replacement.load = _refuse_metric  # type: ignore[attr-defined]
    sys.modules["evaluate"] = replacement


def dataset_call_key(path: str, name: str | None, options: Mapping[str, Any]) -> str:
    """Names a call of `load_dataset`, the same online and offline."""
    return json_digest([path, name, plain_dataset_options(options)])[:16]


def plain_dataset_options(options: Mapping[str, Any]) -> dict[str, JsonValue]:
    """The options that decide what comes, as JSON."""
    kept = {key: value for key, value in options.items() if key not in _NOT_IN_KEY and value is not None}
    value: dict[str, JsonValue] = json.loads(json.dumps(kept, default=str, sort_keys=True))
    return value


def sent_dataset_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """The options to hand on: code from a repo is never run, whatever a task wants."""
    return {key: value for key, value in options.items() if key != "trust_remote_code"}


def is_local_dataset(path: str, options: Mapping[str, Any]) -> bool:
    """Whether a call reads files of this machine only."""
    files = plain_dataset_options({key: options.get(key) for key in ("data_files", "data_dir")})
    if path in FILE_READERS:
        return bool(files) and "://" not in json.dumps(files)
    return Path(path).is_absolute() and Path(path).is_dir()


def _read_index(folder: Path) -> FetchedSets:
    try:
        return FetchedSets.model_validate_json((folder / INDEX).read_bytes())
    except (OSError, ValueError) as error:
        raise StageFailure(ExitCode.BUG, "bug", f"{folder} holds no data sets: {error}") from error


def _not_fetched(path: str, name: str | None) -> StageFailure:
    what = f"{path} ({name})" if name else path
    message = f"The data set {what} was not fetched, and measuring has no network."
    hint = "If a task's own Python code loads it, say so in the suite: needs_network: true"
    return StageFailure(ExitCode.BAD_REQUEST, "data-set-not-fetched", message, hint)


def _refuse_metric(name: str, *_args: Any, **_kwargs: Any) -> Any:
    message = f"The metric {name!r} is code from the Hub, which is never run."
    raise StageFailure(ExitCode.BAD_REQUEST, "remote-code", message, "Leave the task out, or use a metric of lm-eval.")
