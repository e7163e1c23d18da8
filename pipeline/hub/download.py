"""Downloads a published release: its manifest first, then the files that the manifest names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from pipeline.errors import BadRequest, QuantyardError
from pipeline.hub import read as hub
from pipeline.hub.read import HubAccess, parse_repo_id
from pipeline.manifest import Manifest, parse_manifest

_MANIFEST, _CARD = "manifest.json", "README.md"


def download_release(access: HubAccess, name: str, root: Path) -> Path:
    """The folder that holds the release of `org/name[@revision]` now; what is there already is not fetched again.

    Raises:
        BadRequest: the name is none, or the repo has no manifest of ours.
        HubError: the Hub said no.
    """
    from pipeline.hub import errors as hub_errors

    repo_id, revision = parse_repo_id(name)
    api = hub.hub_api(access)
    try:
        info = hub.patiently(lambda: api.model_info(repo_id, revision=revision, timeout=hub.REQUEST_TIMEOUT_S))
        names = {sibling.rfilename for sibling in info.siblings or []}
        commit = hub.commit_of(info, api.endpoint)
        folder = root / repo_id / commit[:12]
        manifest = _manifest(access, repo_id, commit, folder, names)
        wanted = [entry.path for record in manifest.quants.values() for entry in record.files]
        wanted += manifest.imatrices
        _fetch(access, repo_id, commit, folder, (path for path in (_CARD, *wanted) if path in names))
    except QuantyardError:
        raise
    except Exception as error:  # huggingface_hub raises a dozen kinds; every one of them is about the Hub
        raise hub_errors.explain(error, api, repo_id, revision) from error
    return folder


def _manifest(access: HubAccess, repo_id: str, commit: str, folder: Path, names: set[str]) -> Manifest:
    if _MANIFEST not in names:
        message = f"{repo_id} has no {_MANIFEST}: it was not published by Quantyard."
        raise BadRequest(message, "Its files can only be checked by who knows what they should be.")
    _fetch(access, repo_id, commit, folder, (_MANIFEST,))
    try:
        return parse_manifest((folder / _MANIFEST).read_bytes(), f"{repo_id}/{_MANIFEST}")
    except ValueError as error:
        message = f"{repo_id}/{_MANIFEST} is no manifest of Quantyard: {str(error).splitlines()[0]}."
        raise BadRequest(message, "Ask who published it.") from error


def _fetch(access: HubAccess, repo_id: str, commit: str, folder: Path, paths: Iterable[str]) -> None:
    api = hub.hub_api(access)
    for path in paths:
        api.hf_hub_download(repo_id, path, revision=commit, local_dir=folder)
