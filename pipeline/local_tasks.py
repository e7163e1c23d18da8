"""What a suite's own tasks need, read off their YAML on the host, where there is no lm-eval.

A task is local if its questions lie in files beside it; a suite of local tasks is measured without any network.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from pipeline.errors import BadRequest

# The same as in eval/offline.py; tests/measure/test_tasks.py compares them.
FILE_READERS = frozenset({"json", "csv", "parquet", "text", "arrow", "xml"})
Configs = Mapping[str, dict[str, Any]]  # task or group → its YAML


class _Loader(yaml.SafeLoader):  # type: ignore[misc]  # a library without types
    """YAML as lm-eval writes it: `!function module.name` is kept as text, never imported."""


_Loader.add_multi_constructor("!", lambda _loader, suffix, node: f"!{suffix} {node.value}")


def are_all_local(folder: Path, names: Iterable[str]) -> bool:
    """Whether all these tasks and groups are defined under `folder` and read nothing but files there.

    Raises:
        BadRequest: a YAML file there does not parse.
    """
    configs = _configs(folder)
    return all(_is_local(name, configs) for name in names)


def yaml_problem(error: Exception) -> str:
    """What is wrong with the YAML and on which line, counted from 1."""
    mark = getattr(error, "problem_mark", None)
    problem = getattr(error, "problem", None) or str(error).splitlines()[0]
    return f"line {mark.line + 1}: {problem}" if mark else str(problem)


def _configs(folder: Path) -> Configs:
    configs: dict[str, dict[str, Any]] = {}
    for path in sorted(folder.rglob("*.yaml")):
        config = _load(path, folder) | {"_folder": path.parent}
        group = config.get("group")
        name = group if isinstance(group, str) else config.get("task")
        if isinstance(name, str):
            configs.setdefault(name, config)
            for tag in _list(config.get("tag")) if name is not group else ():
                configs.setdefault(tag, {"group": tag, "task": []})["task"].append(name)
    return configs


def _load(path: Path, top: Path, depth: int = 0) -> dict[str, Any]:
    """One file with what it includes; its own keys win."""
    try:
        data = yaml.load(path.read_bytes(), _Loader)  # noqa: S506  (a SafeLoader)
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise BadRequest(f"{path.name} is not valid YAML: {yaml_problem(error)}.") from error
    if not isinstance(data, dict):
        raise BadRequest(f"{path.name} is no task: it holds no mapping.")
    merged: dict[str, Any] = {}
    for name in _list(data.pop("include", None)):
        included = path.parent / name
        if not included.is_file():
            raise BadRequest(f"{path.name} includes {name}, which is not there.")
        if not included.resolve().is_relative_to(top.resolve()):
            raise BadRequest(f"{path.name} includes {name}, which lies outside of {top.name}.")
        if depth > 8:
            raise BadRequest(f"{path.name} includes itself.")
        merged |= _load(included, top, depth + 1)
    return merged | data


def _is_local(name: str, configs: Configs, above: frozenset[str] = frozenset()) -> bool:
    config = configs.get(name)
    if config is None or name in above:
        return False
    if not isinstance(config.get("group"), str):
        return _reads_files(config)
    return all(
        _is_local(member, configs, above | {name}) if isinstance(member, str) else _is_local_member(member, configs)
        for member in _list(config.get("task"))
    )


def _is_local_member(member: Any, configs: Configs) -> bool:
    """A task or group that a group changes, or defines in place."""
    if not isinstance(member, dict) or isinstance(member.get("group"), str):
        return False
    known = configs.get(str(member.get("task")), {})
    return _reads_files({**known, **member})


def _reads_files(config: Mapping[str, Any]) -> bool:
    if "class" in config or config.get("custom_dataset"):
        return False  # code: it may load anything
    path, options = config.get("dataset_path"), config.get("dataset_kwargs") or {}
    if path in FILE_READERS:
        files = [options.get(key) for key in ("data_files", "data_dir")] if isinstance(options, dict) else []
        return any(files) and "://" not in json.dumps(files, default=str)
    folder = config.get("_folder")
    return isinstance(path, str) and isinstance(folder, Path) and (folder / path).is_dir()


def _list(value: Any) -> list[Any]:
    if value is None:
        return []
    return value if isinstance(value, list) else [value]
