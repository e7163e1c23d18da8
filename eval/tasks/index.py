"""Finds the files of lm-eval that define the requested tasks, without parsing all 14,000 of them as YAML (10 s).

A file can define a name only if the name occurs in it, or in a file it includes, as a whole word. So the files are
searched as text (0.3 s), and only the matching ones are parsed, with lm-eval's own functions and in its order. The
result is a part of lm-eval's full index; `tests/measure/test_tasks.py` compares the two.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

import lm_eval.tasks
from lm_eval.tasks._index import Kind, TaskIndex
from lm_eval.tasks._yaml_loader import load_yaml

from quantyard.formats.strict_yaml import OnFunction, YamlProblem, load_strict_yaml
from quantyard.formats.task_yaml import read_task_yaml
from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure

Index = dict[str, Any]  # name → lm_eval.tasks._index.Entry
_NO_YAML = frozenset({".py", ".pyc", ".md", ".jpg", ".png", ".json", ".tsv", ".txt", ".sh", ".lark"})
_INCLUDE = re.compile(rb"^include:(.*(?:\n\s*-.*)*)", re.MULTILINE)
_NAME = re.compile(rb"""^(?:task|group):\s*["']?([\w.-]+)["']?\s*$""", re.MULTILINE)
_PLAIN = re.compile(r"[\w./ -]+")
_WORD = rb"[\w./-]"


def task_index_for(names: Iterable[str], include_dir: Path | None) -> Index:
    """The entries of these tasks, groups and tags, and of everything they refer to. Unknown names are absent.

    Raises:
        StageFailure: a YAML file under `include_dir` cannot be read.
    """
    names = tuple(names)
    local = local_task_index(include_dir) if include_dir else {}
    index, wanted, seen = local, set(names), set[str]()
    while new := wanted - seen:
        seen |= new
        index = {**_parsed_task_index(_candidate_task_files(seen - local.keys())), **local}
        wanted = _reachable_tasks(names, index)
    return {name: index[name] for name in wanted if name in index}


def _reachable_tasks(names: Iterable[str], index: Index) -> set[str]:
    """These names and all names that groups and tags among them refer to, known or not."""
    found: set[str] = set()
    queue = list(names)
    while queue:
        name = queue.pop()
        if name not in found:
            found.add(name)
            entry = index.get(name)
            queue += list(task_members(entry)) if entry else []
    return found


def task_members(entry: Any) -> Iterator[str]:
    """The names that a group or tag refers to; none for a task."""
    if entry.kind is Kind.TAG:
        yield from sorted(entry.tags)
    elif entry.kind is Kind.GROUP:
        yield from _tasks_in_group(entry.cfg)


def _tasks_in_group(config: Mapping[str, Any]) -> Iterator[str]:
    tasks = config.get("task")
    for item in tasks if isinstance(tasks, list) else ():
        if isinstance(item, str):
            yield item
        elif isinstance(item, dict):
            yield from (str(item[key]) for key in ("task", "group") if isinstance(item.get(key), str))
            yield from _tasks_in_group(item)  # a group defined in place


def known_task_names(include_dir: Path | None) -> set[str]:
    """Names of nearly all tasks and groups, to suggest one for a misspelt name: found as text, without parsing."""
    found = {match[1].decode() for text in _task_file_texts().values() for match in _NAME.finditer(text)}
    return found | (local_task_index(include_dir).keys() if include_dir else set())


def local_task_index(folder: Path) -> Index:
    """The tasks defined under one folder. Unlike lm-eval's own index, it raises for files that it cannot read."""
    index: Index = {}
    for path in sorted(folder.rglob("*.yaml"), key=lambda path: path.as_posix()):
        config = local_task_config(path, folder)
        if config.keys() & {"task", "group", "class"}:  # else the file is only included by others
            TaskIndex.process_cfg(config, path, index)
    return index


def local_task_config(path: Path, top: Path, on_function: OnFunction = str) -> dict[str, Any]:
    """An untrusted task file under the folder `top`; `on_function` replaces each `!function`.

    Raises:
        StageFailure: it is not a task.
    """
    try:
        return read_task_yaml(path, top, on_function)
    except YamlProblem as problem:
        message = f"{path.name} is not a task of lm-eval: {problem}."
        raise StageFailure(ExitCode.BAD_REQUEST, "bad-task", message) from problem


def _builtin_dir() -> Path:
    return Path(lm_eval.tasks.__file__).resolve().parent


@cache
def _task_file_texts() -> Mapping[Path, bytes]:
    """The text of every file that may define a built-in task or be included by such a file."""
    files = (path for path in _builtin_dir().rglob("*") if path.suffix not in _NO_YAML and path.is_file())
    return {path: path.read_bytes() for path in files}


@cache
def _task_file_includers() -> Mapping[Path, frozenset[Path]]:
    """File → the files that include it."""
    found: dict[Path, set[Path]] = {}
    for path, text in _task_file_texts().items():
        for match in _INCLUDE.finditer(text):
            for included in _included_task_files(path.parent, match[1].decode(errors="replace")):
                found.setdefault(included, set()).add(path)
    return {path: frozenset(by) for path, by in found.items()}


def _included_task_files(folder: Path, value: str) -> Iterator[Path]:
    try:
        # Most values are plain paths, and parsing YAML is slow.
        items = value.strip() if _PLAIN.fullmatch(value) else load_strict_yaml(value)
    except YamlProblem:
        return
    for item in items if isinstance(items, list) else [items]:
        yield Path(os.path.normpath(folder / str(item)))


def _candidate_task_files(names: Iterable[str]) -> frozenset[Path]:
    """The YAML files that contain one of these names, and those that include such a file, directly or indirectly."""
    hits = {path for name in names for path in _task_files_with(name)}
    queue = list(hits)
    while queue:
        new = _task_file_includers().get(queue.pop(), frozenset()) - hits
        hits |= new
        queue += new
    return frozenset(path for path in hits if path.suffix == ".yaml")


@cache
def _task_files_with(name: str) -> frozenset[Path]:
    plain = name.encode()
    word = re.compile(rb"(?<!%b)%b(?!%b)" % (_WORD, re.escape(plain), _WORD))
    return frozenset(path for path, text in _task_file_texts().items() if plain in text and word.search(text))


def _parsed_task_index(paths: Iterable[Path]) -> Index:
    """Index as `TaskIndex.build` does: files in order of path, the first of a name counts, broken ones are skipped."""
    index: Index = {}
    for path in sorted(paths, key=lambda path: path.as_posix()):
        with suppress(Exception):
            TaskIndex.process_cfg(_parsed_task_file(path), path, index)
    return index


@cache
def _parsed_task_file(path: Path) -> dict[str, Any]:
    config: dict[str, Any] = load_yaml(path, resolve_func=False)
    return config
