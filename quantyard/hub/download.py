"""Downloads a published release: its manifest first, then the files that the manifest names."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from quantyard.errors import BadRequest, QuantyardError
from quantyard.hub import client as hub
from quantyard.hub.client import HubAccess, HubRepo, parse_hub_repo_id
from quantyard.hub.foreign_manifest import parse_hub_manifest
from quantyard.protocol.base import FileEntry
from quantyard.protocol.runner import file_sha256
from quantyard.store.manifest import MAX_BYTES, Manifest

if TYPE_CHECKING:
    from huggingface_hub import HfApi

_MANIFEST, _CARD = "manifest.json", "README.md"
_PART: Final = ".part"  # suffix of an incomplete file


def download_hub_release(access: HubAccess, name: str, root: Path) -> Path:
    """Download the release `org/name[@revision]`, except files that are complete already; returns its folder.

    Raises:
        BadRequest: the name is not valid, or the repo has no manifest of Quantyard.
        HubError: the download failed.
    """
    from quantyard.hub import errors as hub_errors

    repo_id, revision = parse_hub_repo_id(name)
    api = hub.hub_api(access)
    try:
        repo = hub.describe_hub_repo(api, repo_id, revision)
        folder, files = root / repo_id / repo.commit[:12], {entry.path: entry for entry in repo.files}
        manifest = _download_hub_manifest(api, repo, folder, files)
        wanted = [entry.path for record in manifest.quants.values() for entry in record.files]
        projectors = manifest.projector.files if manifest.projector else []
        wanted += [entry.path for entry in (*projectors, *manifest.app_files)]
        for path in dict.fromkeys((_CARD, *wanted, *manifest.imatrices)):
            if path in files:
                _download_hub_file(api, repo, folder, files[path])
    except QuantyardError:
        raise
    except Exception as error:  # the client raises many kinds; all of them concern the Hub
        raise hub_errors.explain_hub_error(error, api, repo_id, revision) from error
    return folder


def _download_hub_manifest(api: HfApi, repo: HubRepo, folder: Path, files: Mapping[str, FileEntry]) -> Manifest:
    title = f"{repo.repo_id}/{_MANIFEST}"
    if _MANIFEST not in files:
        message = f"{repo.repo_id} has no {_MANIFEST}: it was not published by Quantyard."
        raise BadRequest(message, "Compare its files with hashes from its publisher instead.")
    if files[_MANIFEST].size_bytes > MAX_BYTES:
        message = f"{title} is too large for a manifest: {files[_MANIFEST].size_bytes:,} bytes."
        raise BadRequest(message, "Ask its publisher.")
    _download_hub_file(api, repo, folder, files[_MANIFEST])
    try:
        return parse_hub_manifest((folder / _MANIFEST).read_bytes(), title)
    except ValueError as error:
        message = f"{title} is not a manifest of Quantyard: {str(error).splitlines()[0]}."
        raise BadRequest(message, "Ask its publisher.") from error


def _download_hub_file(api: HfApi, repo: HubRepo, folder: Path, entry: FileEntry) -> None:
    """Fetch one file, checked against the Hub's size and SHA-256, unless it is complete already."""
    from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]

    from quantyard.network.transfer import DownloadLine, DownloadMeter, download_file

    path = folder / entry.path
    if entry.sha256 and path.is_file() and file_sha256(path) == entry.sha256:
        return
    headers = build_hf_headers(token=api.token, library_name="quantyard")
    line = DownloadLine(headers, DownloadMeter(lambda _: None), threading.Event(), lambda _: None)
    part = path.with_name(f"{path.name}{_PART}")
    download_file(hub.hub_file_url(api, repo.repo_id, repo.commit, entry.path), entry, part, line)
    part.replace(path)
