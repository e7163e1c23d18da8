"""Decides from YAML whether the tasks of a user's suite need a network; the orchestrator does not have lm-eval.

A task is local if its questions are in files of the suite; a suite of local tasks is measured without a network.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from quantyard.errors import BadRequest
from quantyard.formats.strict_yaml import YamlProblem
from quantyard.formats.task_yaml import read_task_yaml

# The same as in eval/tasks/offline.py; tests/measure/test_tasks.py compares the two.
FILE_READERS = frozenset({"json", "csv", "parquet", "text", "arrow", "xml"})
HELP = "docs/how-to/your-own-questions.md shows a suite that works."
_MAX_DEPTH = 20
_MAX_MEMBERS = 20_000  # tasks of all groups, including nested ones; lm-eval would build each
Configs = Mapping[str, dict[str, Any]]  # task or group → its YAML


def are_planned_tasks_local(folder: Path, names: Iterable[str]) -> bool:
    """Whether all these tasks and groups are defined under `folder` and read only files there.

    Raises:
        BadRequest: a YAML file there does not parse, or groups have too many tasks.
    """
    configs = _local_task_configs(folder)
    counted: dict[str, int] = {}
    names = tuple(names)
    if sum(_n_local_tasks(name, configs, counted) for name in names) > _MAX_MEMBERS:
        raise BadRequest(f"The suite's groups have more than {_MAX_MEMBERS:,} tasks.", HELP)
    return all(_is_task_local(name, configs) for name in names)


def _local_task_configs(folder: Path) -> Configs:
    configs: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*.yaml")):
        config = _load_local_task(path, folder) | {"_folder": path.parent}
        group = config.get("group")
        name = group if isinstance(group, str) else config.get("task")
        if isinstance(name, str):
            configs.setdefault(name, config)
            for tag in _local_task_list(config.get("tag")) if name is not group else ():
                configs.setdefault(tag, {"group": tag, "task": []})["task"].append(name)
    return configs


def _load_local_task(path: Path, top: Path) -> dict[str, Any]:
    """One file with what it includes; `!function module.name` is kept as text, never imported."""
    try:
        return read_task_yaml(path, top, lambda name: f"!function {name}")
    except YamlProblem as problem:
        raise BadRequest(f"{problem}.", HELP) from problem


def _n_local_tasks(name: str, configs: Configs, counted: dict[str, int], depth: int = 0) -> int:
    """The number of tasks of a name. Each group is counted once, because nested groups can multiply quickly.

    Raises:
        BadRequest: groups are nested too deeply.
    """
    config = configs.get(name)
    if config is None or not isinstance(config.get("group"), str):
        return 1
    if depth > _MAX_DEPTH:
        raise BadRequest(f"The group {name!r} is nested deeper than {_MAX_DEPTH} groups.", HELP)
    if name not in counted:
        counted[name] = 1  # in case the group contains itself
        members = (member for member in _local_task_list(config.get("task")) if isinstance(member, str))
        counted[name] = min(_MAX_MEMBERS + 1, sum(_n_local_tasks(one, configs, counted, depth + 1) for one in members))
    return counted[name]


def _is_task_local(name: str, configs: Configs, above: frozenset[str] = frozenset()) -> bool:
    config = configs.get(name)
    if config is None or name in above:
        return False
    if not isinstance(config.get("group"), str):
        return _does_local_task_read_files(config)
    return all(
        _is_task_local(member, configs, above | {name})
        if isinstance(member, str)
        else _is_task_member_local(member, configs)
        for member in _local_task_list(config.get("task"))
    )


def _is_task_member_local(member: Any, configs: Configs) -> bool:
    """Whether a task that a group changes or defines inline is local."""
    if not isinstance(member, dict) or isinstance(member.get("group"), str):
        return False
    known = configs.get(str(member.get("task")), {})
    return _does_local_task_read_files({**known, **member})


def _does_local_task_read_files(config: Mapping[str, Any]) -> bool:
    if "class" in config or config.get("custom_dataset"):
        return False  # code: it may load anything
    path, options = config.get("dataset_path"), config.get("dataset_kwargs") or {}
    if path in FILE_READERS:
        files = [options.get(key) for key in ("data_files", "data_dir")] if isinstance(options, dict) else []
        return any(files) and "://" not in json.dumps(files, default=str)
    folder = config.get("_folder")
    return isinstance(path, str) and isinstance(folder, Path) and (folder / path).is_dir()


def _local_task_list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
