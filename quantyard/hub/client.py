"""Queries the Hub about a model before a byte of it is downloaded.

huggingface_hub takes half a second to import, so it is imported where it is used: a build from a folder does not
import it.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

from pydantic import ValidationError

from quantyard.errors import HubError, HubUnreachable, QuantyardError, RepoEmpty, RepoRenamed
from quantyard.formats.names import shown_name
from quantyard.formats.strict_json import load_json
from quantyard.hub.access import CONFIG_LIMIT_BYTES, HubAccess
from quantyard.hub.files import Selection, parse_hub_repo_id, select_hub_files
from quantyard.hub.model_card import hub_base_model, hub_card_of_repo
from quantyard.protocol.base import FileEntry
from quantyard.quants.file_size import TensorShape
from quantyard.store.manifest import SourceCard

if TYPE_CHECKING:
    from concurrent.futures import ThreadPoolExecutor

    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import ModelInfo, RepoSibling

__all__ = [
    "HubAccess",
    "HubRepo",
    "Selection",
    "hub_tensor_shapes",
    "parse_hub_repo_id",
    "read_hub_config",
    "read_hub_file",
    "read_hub_files",
    "resolve_hub_repo",
    "select_hub_files",
]  # fmt: skip

REQUEST_TIMEOUT_S = 20.0
TRIES = 4
LONGEST_WAIT_S = 60  # the user is waiting
TRANSIENT_STATUS = frozenset({408, 429, 500, 502, 503, 504})
HEADER_WORKERS = 8
HEADERS_S = 120.0  # to ask for the headers of a model's files
_LONGEST_LICENCE, _LICENCES_READ = 100, 10  # characters of a name; names
_MAX_LENGTH = 2**40  # of a tensor, along one dimension
HEADER_LIMIT_BYTES = 32 * 1024 * 1024
# Files of an empty repo.
EMPTY_REPO_FILES = frozenset({".gitattributes", ".gitignore", "README.md", "LICENSE"})
_COMMIT = re.compile(r"[0-9a-f]{40}")
T = TypeVar("T")


@dataclass(frozen=True)
class HubRepo:
    """A model repo at one commit (40 hex digits). `dtypes`: dtype → number of weights, empty when unknown."""

    repo_id: str
    revision: str
    commit: str
    files: tuple[FileEntry, ...]
    gated: bool
    private: bool
    license: str | None
    dtypes: dict[str, int]
    card: SourceCard
    base_model: str = ""


def resolve_hub_repo(access: HubAccess, repo_id: str, revision: str | None = None) -> HubRepo:
    """Query one repo: its commit, its files with sizes and hashes, and whether they may be read.

    Raises:
        RepoNotFound, RepoGated, RepoRenamed, RepoEmpty, RevisionNotFound, HubUnreachable, HubError: see errors.py.
    """
    from quantyard.hub import errors as hub_errors

    api = hub_api(access)
    try:
        info = with_hub_retries(lambda: _hub_model_info(api, repo_id, revision))
        _refuse_renamed_hub_repo(info, repo_id, revision)
        if info.disabled:
            raise hub_errors.hub_disabled_error(api, repo_id)
        repo = _hub_repo(info, repo_id, revision, api.endpoint)
        if repo.gated:
            with_hub_retries(lambda: _try_reading_hub_repo(api, repo))
    except QuantyardError:
        raise
    except Exception as error:  # huggingface_hub raises many kinds; all of them concern the Hub
        raise hub_errors.explain_hub_error(error, api, repo_id, revision) from error
    return repo


def describe_hub_repo(api: HfApi, repo_id: str, revision: str | None) -> HubRepo:
    """The repo as the Hub describes it, also if it was renamed; without checking that its files may be read."""
    return _hub_repo(with_hub_retries(lambda: _hub_model_info(api, repo_id, revision)), repo_id, revision, api.endpoint)


def hub_api(access: HubAccess) -> HfApi:
    """huggingface_hub's client; anonymous without a token, even if this machine is logged in."""
    from huggingface_hub import HfApi

    from quantyard.network.hub_client import use_bounded_hub_client

    use_bounded_hub_client()
    endpoint = access.endpoint.rstrip("/") if access.endpoint else None
    return HfApi(endpoint=endpoint, token=access.token or False, library_name="quantyard")


def _hub_model_info(api: HfApi, repo_id: str, revision: str | None) -> ModelInfo:
    return api.model_info(repo_id, revision=revision, files_metadata=True, timeout=REQUEST_TIMEOUT_S)


def with_hub_retries(call: Callable[[], T]) -> T:
    """Repeat a call after a transient failure: after 1, 2 and 4 s, or the time that the Hub names."""
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    # A bad answer is not retried: it would be the same.
    for failed in range(1, TRIES + 1):
        try:
            return call()
        except (HfHubHTTPError, httpx2.TimeoutException, httpx2.RemoteProtocolError, httpx2.ReadError) as error:
            pause_s = hub_retry_wait_s(error, failed)
            if pause_s is None:
                raise
            time.sleep(pause_s)
    raise AssertionError("the last try returns or raises")


def hub_retry_wait_s(error: Exception, failed: int) -> float | None:
    """Seconds until the next try; None if it would not help."""
    from quantyard.network.bounded_http import BadAnswer, retry_after_s

    response = getattr(error, "response", None)
    if isinstance(error, BadAnswer):
        return None
    if failed >= TRIES or (response is not None and response.status_code not in TRANSIENT_STATUS):
        return None
    asked_s = None if response is None else retry_after_s(response.headers)
    pause_s = 2.0 ** (failed - 1) if asked_s is None else asked_s
    return pause_s if pause_s <= LONGEST_WAIT_S else None


def _refuse_renamed_hub_repo(info: ModelInfo, repo_id: str, revision: str | None) -> None:
    """Refuse a renamed repo: huggingface_hub follows the redirect silently, and only the answer's id shows it."""
    if info.id == repo_id:
        return
    new = f"{info.id}@{revision}" if revision else info.id
    raise RepoRenamed(f"{repo_id} was renamed to {info.id}.", f"Type: make build MODEL={new}")


def _hub_repo(info: ModelInfo, repo_id: str, revision: str | None, endpoint: str) -> HubRepo:
    siblings = info.siblings or []
    if not {s.rfilename for s in siblings} - EMPTY_REPO_FILES or not info.sha:
        message = f"{repo_id} is empty: {', '.join(s.rfilename for s in siblings) or 'no files'}."
        raise RepoEmpty(message, f"See {endpoint}/{repo_id}/tree/{revision or 'main'}; name a repo that holds a model.")
    return HubRepo(
        repo_id=repo_id, revision=revision or "main", commit=hub_commit(info, endpoint),
        files=_hub_file_entries(siblings, endpoint), license=_hub_licence(info),
        gated=bool(info.gated), private=bool(info.private),
        dtypes=dict(info.safetensors.parameters) if info.safetensors else {}, card=hub_card_of_repo(info),
        base_model=hub_base_model(getattr(info.card_data, "base_model", None)),
    )


def hub_commit(info: ModelInfo, endpoint: str) -> str:
    """The commit in an answer, checked because it becomes part of URLs and of a folder's name.

    Raises:
        HubError: it is not a commit.
    """
    sha = str(info.sha)
    if not _COMMIT.fullmatch(sha):
        message = (
            f"{endpoint} answers that {shown_name(str(info.id))} is at commit {shown_name(sha)}, which is not a commit."
        )
        raise HubError(message, "Set another HF_ENDPOINT, or tell its operator: a commit has 40 hex digits.")
    return sha


def _hub_file_entries(siblings: list[RepoSibling], endpoint: str) -> tuple[FileEntry, ...]:
    entries = []
    for file in siblings:
        size = file.lfs.size if file.lfs else file.size
        if size is None:
            message = f"{endpoint} does not report the size of {shown_name(file.rfilename)}."
            raise HubUnreachable(message, "Set another HF_ENDPOINT: a mirror without file sizes cannot be used.")
        try:
            sha256 = file.lfs.sha256 if file.lfs else None
            entries.append(FileEntry(path=file.rfilename, size_bytes=size, sha256=sha256))
        except ValidationError:
            continue  # a name that could lead out of its folder is never downloaded
    return tuple(entries)


def _hub_licence(info: ModelInfo) -> str | None:
    """The licence from the model card, else from the Hub's tags; for "other", the name of the licence."""
    card = info.card_data
    found = getattr(card, "license", None) if card else None
    if found == "other" and card is not None:
        found = getattr(card, "license_name", None) or found
    listed = found if isinstance(found, list) else [found]
    names = [name for name in listed if isinstance(name, str) and 0 < len(name) <= _LONGEST_LICENCE]
    tagged = (t.removeprefix("license:") for t in info.tags or [] if t.startswith("license:"))
    return ", ".join(names[:_LICENCES_READ]) if names else next(tagged, None)


def _try_reading_hub_repo(api: HfApi, repo: HubRepo) -> None:
    """Check access to a gated repo by its largest file: the Hub describes the repo itself to everyone."""
    largest = max(repo.files, key=lambda f: f.size_bytes)
    url = hub_file_url(api, repo.repo_id, repo.commit, largest.path)
    api.get_hf_file_metadata(url=url, token=api.token, timeout=REQUEST_TIMEOUT_S)


def hub_file_url(api: HfApi, repo_id: str, commit: str, path: str) -> str:
    """The URL of a file."""
    from huggingface_hub import hf_hub_url

    return hf_hub_url(repo_id, path, revision=commit, endpoint=api.endpoint)


def _hub_readers() -> ThreadPoolExecutor:
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(HEADER_WORKERS)


def hub_tensor_shapes(
    access: HubAccess, repo: HubRepo, files: tuple[FileEntry, ...]
) -> tuple[TensorShape, ...] | None:
    """Name, shape and dtype of every tensor, from the safetensors headers alone (range requests, a few MB at most).

    Args:
        files: those a build uses.

    Returns:
        The tensors, or None after any failure: the plan then estimates from the parameter count.
    """
    try:
        api = hub_api(access)
        paths = [f.path for f in files if f.path.endswith(".safetensors")]
        until = time.monotonic() + HEADERS_S
        with _hub_readers() as pool:
            found = pool.map(lambda path: _hub_safetensors_header(api, repo, path, until), paths)
            return tuple(tensor for header in found for tensor in header) or None
    except Exception:
        return None


def _hub_safetensors_header(api: HfApi, repo: HubRepo, path: str, until: float) -> list[TensorShape]:
    """The tensors of one safetensors file: 8 bytes of length (little endian), then JSON."""
    if time.monotonic() > until:
        raise TimeoutError(f"{path}: reading headers took more than {HEADERS_S:.0f} s")
    url = hub_file_url(api, repo.repo_id, repo.commit, path)
    first = with_hub_retries(lambda: read_hub_range(api, url, 0, 128 * 1024))  # most headers fit, in one request
    length = int.from_bytes(first[:8], "little")
    if not 2 <= length <= HEADER_LIMIT_BYTES:
        raise ValueError(f"{path}: a header of {length} bytes")
    rest = (
        b"" if len(first) >= 8 + length else with_hub_retries(lambda: read_hub_range(api, url, len(first), 8 + length))
    )
    header = load_json((first + rest)[8 : 8 + length], HEADER_LIMIT_BYTES)
    return [_hub_tensor_shape(name, said) for name, said in header.items() if name != "__metadata__"]


def _hub_tensor_shape(name: str, said: Mapping[str, Any]) -> TensorShape:
    shape, dtype = said["shape"], said["dtype"]
    if not isinstance(dtype, str) or not all(type(n) is int and 0 <= n <= _MAX_LENGTH for n in shape):
        raise ValueError(f"{name}: an invalid shape or dtype")
    return TensorShape(name, tuple(shape), dtype)


def read_hub_range(api: HfApi, url: str, start: int, end: int) -> bytes:
    """The bytes from `start` up to (not including) `end`, or fewer; never more than that."""
    from huggingface_hub import get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status  # type: ignore[attr-defined]

    from quantyard.network.bounded_http import READING, Reading

    headers = build_hf_headers(token=api.token, library_name="quantyard", headers={"Accept-Encoding": "identity"})
    headers["Range"] = f"bytes={start}-{end - 1}"
    asked: dict[str, object] = {READING: Reading(end, is_cut=True)}
    response = get_session().get(url, headers=headers, timeout=REQUEST_TIMEOUT_S, extensions=asked)
    hf_raise_for_status(response)
    skip = start if response.status_code == 200 else 0  # the server ignores ranges
    return response.content[skip : skip + end - start]


def read_hub_config(access: HubAccess, repo: HubRepo) -> Mapping[str, object]:
    """The model's config.json at this commit; empty if it cannot be read (the plan then has fewer facts)."""
    try:
        return parse_hub_config(read_hub_file(access, repo, "config.json", CONFIG_LIMIT_BYTES))
    except Exception:
        return {}


def parse_hub_config(text: bytes) -> Mapping[str, object]:
    """The object of a config.json; empty if it is not one."""
    try:
        config = load_json(text, CONFIG_LIMIT_BYTES)
    except Exception:
        return {}
    return config if isinstance(config, dict) else {}


def read_hub_file(access: HubAccess, repo: HubRepo, path: str, limit_bytes: int) -> bytes:
    """A file of the repo; of a larger one the first bytes. Raises as `read_hub_config_file`."""
    return read_hub_config_file(access, repo.repo_id, repo.commit, path, limit_bytes)


def read_hub_files(access: HubAccess, repo: HubRepo, paths: Sequence[str]) -> dict[str, bytes]:
    """Small files of the repo, several at once; those that cannot be had are left out."""

    def read(path: str) -> bytes | None:
        try:
            return read_hub_file(access, repo, path, CONFIG_LIMIT_BYTES)
        except QuantyardError:
            return None

    with _hub_readers() as pool:
        return {path: text for path, text in zip(paths, pool.map(read, paths), strict=True) if text is not None}


def read_hub_config_file(
    access: HubAccess, repo_id: str, commit: str, path: str, limit_bytes: int = CONFIG_LIMIT_BYTES
) -> bytes:
    """A small file at this commit; of a larger one the first `limit_bytes`.

    Raises:
        HubUnreachable, HubError: the request failed.
    """
    from quantyard.hub import errors as hub_errors

    api = hub_api(access)
    url = hub_file_url(api, repo_id, commit, path)
    try:
        return with_hub_retries(lambda: read_hub_range(api, url, 0, limit_bytes))
    except Exception as error:
        raise hub_errors.explain_hub_error(error, api, repo_id, commit) from error


def hub_whoami(access: HubAccess) -> str | None:
    """The user of the token; None without a token. Also checks that the Hub answers.

    Raises:
        HubUnreachable, HubError: the Hub does not answer, or the token is not valid.
    """
    from huggingface_hub import get_session

    from quantyard.hub import errors as hub_errors

    api = hub_api(access)
    try:
        if access.token:
            return str(api.whoami()["name"])
        get_session().head(api.endpoint, timeout=REQUEST_TIMEOUT_S)  # any answer suffices; no retries
    except Exception as error:
        raise hub_errors.explain_hub_error(error, api, "the Hub", None) from error
    return None
