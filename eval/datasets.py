"""The stage `datasets`: fetches every data set that the tasks and their examples use, so that measuring runs offline.

The only stage of a measurement with a network. It builds the tasks exactly as `evaluate` will, with a recorder in
place of `datasets.load_dataset`: each data set is fetched at its current commit, stored as Arrow files, and given to
the task from there. So a task that can be built here can be built offline. eval/tasks/offline.py describes the files
in /out/files. Unfinished downloads are kept in /out/files/.partial, so that the next run resumes them.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from eval.tasks import offline
from eval.tasks.offline import FetchedSet, FetchedSets
from quantyard.protocol.base import ExitCode
from quantyard.protocol.evaluation import DatasetsRequest, TaskEntry
from quantyard.protocol.runner import Stage, StageFailure, StageOutcome, is_stage_out_of_space, run_stage

PARTIAL = ".partial"
WAITS_S: tuple[float | None, ...] = (1.0, 5.0, None)  # before each retry; None: give up


def fetch_datasets(stage: Stage, request: DatasetsRequest) -> StageOutcome:
    """Build every task of the request, and store its data sets."""
    partial, nltk_data = stage.files_dir / PARTIAL, stage.files_dir / offline.NLTK_DATA
    offline.set_up_dataset_libraries(partial, nltk_data, request.endpoint, online=True)
    from quantyard.network.hub_client import use_bounded_hub_client

    use_bounded_hub_client()
    from eval.tasks.load import code_of_tasks, count_tasks, load_tasks, task_include_dir

    recorder = Recorder(stage, stage.secret("HF_TOKEN"))
    offline.replace_dataset_loader(recorder.load)
    entries = [TaskEntry(task=name) for name in request.tasks]
    folder = task_include_dir(stage, request.include_path)
    if any(b"nltk.download" in path.read_bytes() for path in code_of_tasks(entries, folder)):
        _watch_nltk_downloads(nltk_data)
    meter = _Meter(stage, count_tasks(entries, folder))
    load_tasks(entries, folder, allow_unsafe_code=request.allow_unsafe_code, on_task=meter.begin)
    meter.end()
    sets = recorder.finish()
    shutil.rmtree(partial, ignore_errors=True)
    return StageOutcome(facts=_datasets_facts(sets), tools=_dataset_tools())


@dataclass
class _Meter:
    """Progress, counted in tasks."""

    stage: Stage
    total: int
    begun: int = 0

    def begin(self, name: str) -> None:
        self.stage.progress(min(self.begun, self.total), self.total, "checks", name, begins=True)
        self.stage.log(f"{name}: its data sets")
        self.begun += 1

    def end(self) -> None:
        self.stage.progress(self.total, self.total, "checks")


@dataclass
class Recorder:
    """Replaces `datasets.load_dataset`: fetches each data set once, stores it, and returns the stored one."""

    stage: Stage
    token: str | None
    sets: dict[str, FetchedSet] = field(default_factory=dict)
    _commits: dict[tuple[str, str | None], str] = field(default_factory=dict)

    @property
    def _partial(self) -> Path:
        return self.stage.files_dir / PARTIAL

    def load(self, path: str, name: str | None = None, **options: Any) -> Any:
        """The data set for a task's call of `load_dataset`.

        Raises:
            StageFailure: the Hub or the network failed, or the data set cannot be stored.
        """
        import datasets

        if offline.is_local_dataset(path, options):
            cache = str(self._partial / "local")
            return offline.unpatched_load_dataset()(
                path, name, **{**offline.sent_dataset_options(options), "cache_dir": cache}
            )
        key = offline.dataset_call_key(path, name, options)
        if key not in self.sets:
            self.sets[key] = self._recalled(key) or self._fetched(key, path, name, options)
        return datasets.load_from_disk(str(self.stage.files_dir / self.sets[key].folder))

    def finish(self) -> tuple[FetchedSet, ...]:
        """Write the index, and remove folders that it does not list; returns the data sets."""
        found = tuple(self.sets[key] for key in sorted(self.sets))
        (self.stage.files_dir / offline.INDEX).write_text(FetchedSets(sets=found).model_dump_json(indent=1) + "\n")
        for folder in (self.stage.files_dir / "sets").glob("*"):
            if folder.name not in self.sets:  # left by an earlier run that did not finish
                shutil.rmtree(folder)
        return found

    def _recalled(self, key: str) -> FetchedSet | None:
        """A data set that an earlier run finished, or None."""
        note = self._partial / "done" / f"{key}.json"
        return FetchedSet.model_validate_json(note.read_bytes()) if note.is_file() else None

    def _fetched(self, key: str, path: str, name: str | None, options: dict[str, Any]) -> FetchedSet:
        commit = None if path in offline.FILE_READERS else self._commit(path, options.get("revision"))
        loaded = self._tried(path, lambda: self._load(path, name, options, commit))
        final, arriving = self.stage.files_dir / "sets" / key, self._partial / "sets" / key
        for folder in (final, arriving):
            shutil.rmtree(folder, ignore_errors=True)
        loaded.save_to_disk(str(arriving))
        final.parent.mkdir(exist_ok=True)
        arriving.rename(final)
        fetched = FetchedSet(
            path=path,
            name=name,
            options=offline.plain_dataset_options(options),
            commit=commit,
            rows=_dataset_rows(loaded),
            folder=f"sets/{key}",
        )
        (self._partial / "done").mkdir(exist_ok=True)
        (self._partial / "done" / f"{key}.json").write_text(fetched.model_dump_json())
        return fetched

    def _load(self, path: str, name: str | None, options: dict[str, Any], commit: str | None) -> Any:
        pinned = {} if commit is None else {"revision": commit}
        asked = offline.sent_dataset_options(options) | pinned | {"token": self.token or False}
        loaded = offline.unpatched_load_dataset()(path, name, **asked)
        if not hasattr(loaded, "save_to_disk"):  # streaming
            message = f"The task streams {path}, so it cannot be stored for measuring offline."
            raise StageFailure(ExitCode.BAD_REQUEST, "streaming", message, "Leave the task out of the suite.")
        return loaded

    def _commit(self, path: str, revision: str | None) -> str:
        """The repo's current commit. Access to a gated repo is checked here, where the Hub's error names the reason."""
        if (path, revision) not in self._commits:
            self._commits[path, revision] = self._tried(
                path, lambda: _resolve_dataset_commit(path, revision, self.token)
            )
        return self._commits[path, revision]

    def _tried(self, path: str, act: Callable[[], Any]) -> Any:
        """Call `act`, retry transient errors, and turn the last error into a `StageFailure`."""
        from eval.tasks.dataset_errors import explain_dataset_error, is_transient_dataset_error

        for wait_s in WAITS_S:
            try:
                return act()
            except (StageFailure, MemoryError):
                raise
            except Exception as error:
                if is_stage_out_of_space(error):
                    raise
                if wait_s is None or not is_transient_dataset_error(error):
                    raise explain_dataset_error(error, path, has_token=self.token is not None) from error
                self.stage.log(f"{path}: {type(error).__name__}; trying again in {wait_s:g} s")
                time.sleep(wait_s)
        raise AssertionError("the last wait is None")


def _resolve_dataset_commit(path: str, revision: str | None, token: str | None) -> str:
    from huggingface_hub import HfApi

    api = HfApi(token=token or False, library_name="quantyard")
    info = api.dataset_info(path, revision=revision, timeout=30.0)
    if info.gated:
        api.auth_check(path, repo_type="dataset")
    return str(info.sha)


def _dataset_rows(loaded: Any) -> dict[str, int]:
    """Split → rows. A data set without splits counts as one split, `all`."""
    splits = loaded.items() if isinstance(loaded, dict) else (("all", loaded),)
    return {str(split): len(rows) for split, rows in splits}


def _watch_nltk_downloads(folder: Path) -> None:
    """Make `nltk.download` raise when it fails: it only returns False, which tasks ignore.

    Called only for tasks that use it, since importing NLTK takes 3 s.
    """
    import nltk

    own = nltk.download

    def download(resource: str, *_args: Any, **_kwargs: Any) -> bool:
        folder.mkdir(parents=True, exist_ok=True)
        if own(resource, download_dir=str(folder), quiet=True):
            return True
        message = f"NLTK's data {resource!r} could not be downloaded from raw.githubusercontent.com."
        hint = "Check the network and HTTPS_PROXY, or leave the task that needs it out of the suite."
        raise StageFailure(ExitCode.NETWORK, "nltk-data", message, hint)

    nltk.download = download


def _datasets_facts(sets: tuple[FetchedSet, ...]) -> dict[str, JsonValue]:
    listed = [one.model_dump(mode="json", include={"path", "name", "commit", "rows"}) for one in sets]
    listed.sort(key=lambda one: (str(one["path"]), str(one["name"])))
    rows: JsonValue = sum(sum(one.rows.values()) for one in sets)
    return {"datasets": listed, "rows": rows}  # type: ignore[dict-item]


def _dataset_tools() -> dict[str, str]:
    from importlib.metadata import version

    return {name: version(name) for name in ("lm_eval", "datasets", "huggingface_hub")}


def main() -> None:
    """The stage as a process."""
    run_stage(DatasetsRequest, fetch_datasets)


if __name__ == "__main__":
    main()
