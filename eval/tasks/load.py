"""Loads the tasks of a suite: resolves names, loads data sets, sets few-shot examples and seeds.

    offline.take_datasets_offline(datasets_dir, scratch)                     # first: see eval/tasks/offline.py
    folder = task_include_dir(stage, request.include_path)
    leaves = load_tasks(request.tasks, folder, seed=request.seed)
    evaluate(lm, {"tasks": {leaf.name: leaf.task for leaf in leaves}, "groups": {}}, ...)

`load_tasks` does what lm-eval's TaskManager and `simple_evaluate` do to get from a name to a task, with lm-eval's
classes and in its order. It adds a fast index (`eval/tasks/index.py`), data files relative to the YAML that names them,
errors where lm-eval would prompt or warn, and error messages that name the task and the key.
"""

from __future__ import annotations

import dataclasses
import difflib
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval.tasks import checks as task_checks
from eval.tasks import errors as task_errors
from eval.tasks import offline
from quantyard.protocol.base import ExitCode
from quantyard.protocol.evaluation import DEFAULT_SEED, TaskEntry
from quantyard.protocol.runner import Stage, StageFailure, is_stage_out_of_space

if TYPE_CHECKING:
    from eval.tasks.index import Index

_MOST_TEMPLATES = 1000  # kept, of all tasks of a suite; each takes some kB
_NO_VERSION = "Yaml"  # lm-eval's version of a task that sets none
OnTask = Callable[[str], None]


@dataclass(frozen=True)
class LeafTask:
    """One task (never a group), built and seeded.

    Attributes:
        name: lm-eval's name, unique in the suite.
        entry: the entry of the suite it came from; its `limit` applies.
        task: lm_eval.api.task.ConfigurableTask, or an instance of the task's own class; `task.config` configures it.
        output_type: one of those of `TaskOutcome`.
        version: as the task states it, "" if it does not.
        num_fewshot: examples before each question; already set in `task.config`.
    """

    name: str
    entry: TaskEntry
    task: Any
    output_type: str
    version: str
    num_fewshot: int


def task_include_dir(stage: Stage, include_path: str | None) -> Path | None:
    """The folder of a suite's own tasks: in the input `suite`, or in `eval/suites` for a suite of Quantyard's.

    Raises:
        StageFailure: the folder does not exist.
    """
    if include_path is None:
        return None
    suite = stage.in_dir / "suite"
    folder = (suite if suite.is_dir() else Path(__file__).parents[1] / "suites") / include_path
    if not folder.is_dir():
        message = f"The suite's include_path {include_path!r} is not a folder."
        raise StageFailure(ExitCode.BAD_REQUEST, "bad-request", message)
    return folder


def load_tasks(
    entries: Sequence[TaskEntry], include_dir: Path | None = None, *, seed: int = DEFAULT_SEED,
    allow_unsafe_code: bool = False, on_task: OnTask = lambda _name: None,
) -> tuple[LeafTask, ...]:
    """Build every task of these entries of a suite, in order; `on_task` is called with each name.

    Data sets come from `datasets.load_dataset`: call `offline.take_datasets_offline` before.

    Raises:
        StageFailure: a name is not a task, a task is named twice, cannot be used, or would run code that the model
            writes.
    """
    from eval.tasks.index import task_index_for

    index = task_index_for((entry.task for entry in entries), include_dir)
    for entry in entries:
        if entry.task not in index:
            raise _unknown_task(entry.task, include_dir)
    _refuse_unusable_tasks(index, allow_unsafe_code=allow_unsafe_code)
    _compile_templates_once()
    builder = _Builder(index, include_dir, on_task)
    leaves = [_leaf_task(entry, task, seed) for entry in entries for task in builder.build(entry.task)]
    _refuse_repeated_leaf_tasks(leaves)
    _fix_seed_of_language_detector()
    return tuple(leaves)


def count_tasks(entries: Sequence[TaskEntry], include_dir: Path | None = None) -> int:
    """How many tasks `load_tasks` will build, groups counted by their members."""
    from eval.tasks.index import task_index_for, task_members

    index = task_index_for((entry.task for entry in entries), include_dir)
    return sum(not any(task_members(entry)) for entry in index.values())


def code_of_tasks(entries: Sequence[TaskEntry], include_dir: Path | None = None) -> frozenset[Path]:
    """The Python files in the folders of these tasks, which building them may run."""
    from eval.tasks.index import task_index_for

    index = task_index_for((entry.task for entry in entries), include_dir)
    folders = {entry.yaml_path.parent for entry in index.values() if entry.yaml_path}
    return frozenset(path for folder in folders for path in folder.glob("*.py"))


# ---- From a name to lm-eval's object ---------------------------------------------------------------------------


class _Builder:
    """lm-eval's TaskFactory with two methods replaced, to read files strictly, check tasks and explain errors."""

    def __init__(self, index: Index, include_dir: Path | None, on_task: OnTask) -> None:
        from lm_eval.tasks._factory import TaskFactory

        self._index, self._include_dir, self._on_task = index, include_dir, on_task
        self._factory = TaskFactory()
        self._own_config, self._own_task = self._factory._load_full_config, self._factory._build_task  # noqa: SLF001
        self._factory._load_full_config = self._config  # noqa: SLF001
        self._factory._build_task = self._task  # noqa: SLF001

    def build(self, name: str) -> Iterator[Any]:
        """The tasks this name stands for."""
        built = _explain_unusable_task(
            name, self._index[name], lambda entry: self._factory.build(entry, registry=self._index)
        )
        if isinstance(built, list):  # a tag
            yield from built
        elif hasattr(built, "get_all_tasks"):
            yield from {task.task_name: task for task in built.get_all_tasks()}.values()
        else:
            yield built

    def _config(self, entry: Any, overrides: dict[str, Any] | None = None) -> dict[str, Any]:
        if self._include_dir and entry.yaml_path and entry.yaml_path.is_relative_to(self._include_dir):
            config = self._local_config(entry, self._include_dir, overrides)
        else:
            config = self._own_config(entry, overrides)
        return _with_absolute_files(config, entry.yaml_path.parent) if entry.yaml_path else config

    def _local_config(self, entry: Any, top: Path, overrides: dict[str, Any] | None) -> dict[str, Any]:
        """lm-eval's configuration of a task, from our own strict reader: lm-eval's reader would trust the file."""
        from lm_eval.tasks._yaml_loader import _import_func_in_yml

        from eval.tasks.index import local_task_config

        path: Path = entry.yaml_path
        read = local_task_config(path, top, lambda name: _import_func_in_yml(name, path.parent))
        config: dict[str, Any] = self._own_config(dataclasses.replace(entry, yaml_path=None, cfg=read), overrides)
        config["metadata"]["config_source"] = str(path)
        return config

    def _task(self, entry: Any, overrides: dict[str, Any] | None) -> Any:
        self._on_task(entry.name)
        return _explain_unusable_task(entry.name, entry, lambda entry: self._checked(entry, overrides))

    def _checked(self, entry: Any, overrides: dict[str, Any] | None) -> Any:
        task = self._own_task(entry, overrides)
        if self._include_dir and entry.yaml_path.is_relative_to(self._include_dir) and hasattr(task, "features"):
            task_checks.check_task(task)
        return task


def _explain_unusable_task(name: str, entry: Any, build: Callable[[Any], Any]) -> Any:
    try:
        return build(entry)
    except (StageFailure, MemoryError):
        raise
    except Exception as error:
        if is_stage_out_of_space(error):
            raise
        raise task_errors.unusable_task(name, entry.yaml_path, error) from error


def _with_absolute_files(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Resolve data files relative to the YAML instead of the working directory, also in inline tasks."""
    changed = dict(config)
    path, options = config.get("dataset_path"), config.get("dataset_kwargs")
    if path in offline.FILE_READERS and isinstance(options, dict):
        found = {
            key: _absolute_data_files(options[key], folder) for key in ("data_files", "data_dir") if key in options
        }
        changed["dataset_kwargs"] = {**options, **found}
    elif isinstance(path, str) and (folder / path).is_dir():
        changed["dataset_path"] = str(folder / path)
    if isinstance(config.get("task"), list):
        members = config["task"]
        changed["task"] = [_with_absolute_files(m, folder) if isinstance(m, dict) else m for m in members]
    return changed


def _absolute_data_files(files: Any, folder: Path) -> Any:
    """Make paths absolute in a string, a list or a mapping of splits; URLs stay as they are."""
    if isinstance(files, dict):
        return {split: _absolute_data_files(value, folder) for split, value in files.items()}
    if isinstance(files, list):
        return [_absolute_data_files(value, folder) for value in files]
    return files if not isinstance(files, str) or "://" in files else str(folder / files)


def _leaf_task(entry: TaskEntry, task: Any, seed: int) -> LeafTask:
    shots = _n_shots_of_task(entry, task)
    task.set_config(key="num_fewshot", value=shots)
    task.set_fewshot_seed(seed=seed)
    if problem := task_checks.task_lacks_examples(task, shots):
        message = f"The task {task.task_name!r} is asked with {shots} examples, but {problem}"
        raise StageFailure(ExitCode.BAD_REQUEST, "no-examples", message, "Set num_fewshot for it in the suite.")
    version = "" if task.VERSION in (None, _NO_VERSION) else str(task.VERSION)
    return LeafTask(str(task.task_name), entry, task, str(task.get_config("output_type")), version, shots)


def _n_shots_of_task(entry: TaskEntry, task: Any) -> int:
    """The number of examples, decided as in `simple_evaluate`: 0 set by a task wins. Rolling texts have none."""
    says = task.get_config("num_fewshot")
    if task.get_config("output_type") == "loglikelihood_rolling":
        return 0
    return says or 0 if entry.num_fewshot is None or says == 0 else entry.num_fewshot


def _fix_seed_of_language_detector() -> None:
    """langdetect, which IFEval checks with, draws at random: without a seed, one answer gets several verdicts."""
    if detector := sys.modules.get("langdetect"):
        detector.DetectorFactory.seed = 0


def _compile_templates_once() -> None:
    """lm-eval compiles a task's Jinja templates again for each question and each of its choices."""
    from lm_eval import utils

    environment: Any = utils.env  # whether mypy sees its types depends on what is installed beside it
    if not hasattr(environment.from_string, "cache_info"):
        environment.from_string = lru_cache(_MOST_TEMPLATES)(environment.from_string)


# ---- What is refused -------------------------------------------------------------------------------------------


def _unknown_task(name: str, include_dir: Path | None) -> StageFailure:
    from eval.tasks.index import known_task_names

    near = difflib.get_close_matches(name, known_task_names(include_dir), n=3, cutoff=0.6)
    advice = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
    message = f"Neither lm-eval nor the suite has a task {name!r}.{advice}"
    hint = "See lm-eval's list of tasks, or check the suite's include_path."
    return StageFailure(ExitCode.BAD_REQUEST, "unknown-task", message, hint)


def _refuse_unusable_tasks(index: Index, *, allow_unsafe_code: bool) -> None:
    """Refuse tasks that run code from the model, or need images or audio, before anything is downloaded."""
    for name, entry in index.items():
        config = entry.cfg or {}
        if config.get("unsafe_code") and not allow_unsafe_code:
            message = f"The task {name!r} runs code that the model writes."
            hint = "Leave it out, or insist with ALLOW_UNSAFE_CODE=1: it runs in a container without a network."
            raise StageFailure(ExitCode.BAD_REQUEST, "unsafe-code", message, hint)
        if config.get("doc_to_image") or config.get("doc_to_audio"):
            message = f"The task {name!r} needs a model that takes images or audio."
            raise StageFailure(ExitCode.BAD_REQUEST, "not-text", message, "Leave it out: only text is measured.")


def _refuse_repeated_leaf_tasks(leaves: Sequence[LeafTask]) -> None:
    entry_of: dict[str, str] = {}
    for leaf in leaves:
        other = entry_of.setdefault(leaf.name, leaf.entry.task)
        if other != leaf.entry.task:
            message = f"The task {leaf.name!r} is in the suite twice: by {other!r} and by {leaf.entry.task!r}."
            raise StageFailure(ExitCode.BAD_REQUEST, "task-twice", message, "Remove one of them from the suite.")
