"""The stage `fetch`: downloads the listed files of a Hub repo at one commit, and checks each.

The only stage of a build with a network. Unfinished files are kept in `/out/files/.partial`, so that the next run
resumes them; a file gets its final name once its size and SHA-256 are right.
"""

from __future__ import annotations

import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

import httpx2
from huggingface_hub import __version__, constants
from huggingface_hub.errors import OfflineModeIsEnabled
from huggingface_hub.utils import build_hf_headers  # type: ignore[attr-defined]  # public by its documentation

from quantyard.network.hub_client import use_bounded_hub_client
from quantyard.network.hub_errors import AGAIN, AskedHub, hub_problem_of_error
from quantyard.network.transfer import (
    DownloadLine,
    DownloadMeter,
    DownloadStopped,
    EndedEarly,
    WrongContent,
    download_file,
)
from quantyard.protocol.base import ExitCode, FileEntry
from quantyard.protocol.builder import FetchRequest
from quantyard.protocol.runner import Stage, StageFailure, StageOutcome, file_sha256, run_stage

PARTIAL = ".partial"


@dataclass(frozen=True)
class _Job:
    stage: Stage
    request: FetchRequest
    line: DownloadLine

    def hub_file_url(self, entry: FileEntry) -> str:
        return (
            f"{_fetch_endpoint(self.request)}/{self.request.repo_id}/resolve/{self.request.commit}/{quote(entry.path)}"
        )


def fetch(stage: Stage, request: FetchRequest) -> StageOutcome:
    """Download the missing files, `request.workers` at a time; the first failure stops the others."""
    _check_fetched_paths(stage.files_dir, request.files)
    use_bounded_hub_client()
    total = sum(entry.size_bytes for entry in request.files)
    meter = DownloadMeter(lambda done: stage.progress(done, total, "bytes"))
    token = stage.secret("HF_TOKEN")
    line = DownloadLine(_fetch_headers(token), meter, threading.Event(), stage.log)
    try:
        _fetch_all(_Job(stage, request, line))
    except (httpx2.HTTPError, EndedEarly, OfflineModeIsEnabled) as error:
        raise _explain_fetch_error(error, request, has_token=token is not None) from error
    shutil.rmtree(stage.files_dir / PARTIAL, ignore_errors=True)
    stage.progress(total, total, "bytes")
    facts = {"resumed_bytes": meter.resumed_bytes, "downloaded_bytes": meter.downloaded_bytes}
    tools = {"huggingface_hub": __version__}
    return StageOutcome(facts={"repo_id": request.repo_id, "commit": request.commit, **facts}, tools=tools)


def _fetch_endpoint(request: FetchRequest) -> str:
    return (request.endpoint or constants.ENDPOINT).rstrip("/")


def _check_fetched_paths(files_dir: Path, files: tuple[FileEntry, ...]) -> None:
    root = files_dir.resolve()
    paths = [entry.path for entry in files]
    for path in paths:
        inside = (files_dir / path).resolve().is_relative_to(root)
        if not inside or path.split("/")[0] == PARTIAL or paths.count(path) > 1:
            message = f"The request lists {path!r}, which is outside the folder, reserved, or listed twice."
            raise StageFailure(ExitCode.BAD_REQUEST, "bad-request", message)


def _fetch_headers(token: str | None) -> Mapping[str, str]:
    # False, not None: None would look for a token in the environment and the home folder.
    headers: Mapping[str, str] = build_hf_headers(token=token or False, library_name="quantyard")
    return headers


def _fetch_all(job: _Job) -> None:
    largest_first = sorted(job.request.files, key=lambda entry: -entry.size_bytes)
    with ThreadPoolExecutor(job.request.workers) as pool:
        tasks = [pool.submit(_fetch_one, job, entry) for entry in largest_first]
        try:
            wait(tasks, return_when=FIRST_EXCEPTION)
        finally:  # after a failure, and after Ctrl-C
            failed = [task for task in tasks if task.done() and not task.cancelled() and task.exception()]
            if failed or not all(task.done() for task in tasks):
                job.line.stop.set()
                pool.shutdown(wait=False, cancel_futures=True)
    for task in failed:
        if not isinstance(error := task.exception(), DownloadStopped) and error is not None:
            raise error


def _fetch_one(job: _Job, entry: FileEntry) -> None:
    final = job.stage.files_dir / entry.path
    sha256 = _already_fetched(final, entry)
    if sha256 is not None:
        job.line.meter.resumed(entry.size_bytes)
    else:
        part = job.stage.files_dir / PARTIAL / entry.path
        sha256 = _download_twice_at_most(job, entry, part)
        final.parent.mkdir(parents=True, exist_ok=True)
        part.replace(final)
    job.stage.known_sha256[entry.path] = sha256


def _already_fetched(final: Path, entry: FileEntry) -> str | None:
    """SHA-256 of a file that an earlier run finished; None if it is missing or wrong, so that it is downloaded."""
    if not final.is_file() or final.stat().st_size != entry.size_bytes:
        return None
    sha256 = file_sha256(final)
    return sha256 if entry.sha256 in (None, sha256) else None


def _download_twice_at_most(job: _Job, entry: FileEntry, part: Path) -> str:
    """Download a file and return its SHA-256. A file with wrong bytes is downloaded once more from byte 0."""
    try:
        return download_file(job.hub_file_url(entry), entry, part, job.line)
    except WrongContent as wrong:
        job.stage.log(f"{entry.path}: {wrong}; fetching it once more")
    try:
        return download_file(job.hub_file_url(entry), entry, part, job.line)
    except WrongContent as wrong:
        message = f"{entry.path} arrived damaged twice: expected {wrong.expected}, got {wrong.got}."
        hint = "A proxy or a mirror between here and the Hub changes files: check HTTPS_PROXY and HF_ENDPOINT."
        raise StageFailure(ExitCode.NETWORK, "damaged-file", message, hint) from wrong


def _explain_fetch_error(error: Exception, request: FetchRequest, *, has_token: bool) -> StageFailure:
    endpoint = _fetch_endpoint(request)
    asked = AskedHub(request.repo_id, request.repo_id, endpoint, has_token, request.commit, AGAIN)
    found = hub_problem_of_error(error, asked)
    return StageFailure(ExitCode.NETWORK, found.kind, found.message, found.hint, found.detail)


def main() -> None:
    """The stage as a process."""
    run_stage(FetchRequest, fetch)


if __name__ == "__main__":
    main()
