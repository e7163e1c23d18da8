"""Reads and checks suites: those that come with Quantyard, and a user's own YAML file.

    loaded = find_suite("quick")                        # smoke, quick, standard, full, domains, cache, behaviour
    loaded = find_suite("my/suite.yaml")                # or a file
    suite = adjusted_suite(loaded, limit=50)            # changes from the command line

A suite file has the fields of `protocol.evaluation.Suite`, all of them optional, with three shortcuts: `name` defaults
to the file's name (for a `suite.yaml`, the folder's), a task without settings is just its name, and `divergence: false`
or `speed: false` leaves that part out, `domains: true`, `cache: true`, `openvino: true` or `behaviour: true` adds one.
`include_path`, `text` and `texts` are relative to the file and must be inside its folder.

Built-in suites are in `eval/suites`. The eval image contains them, so a stage looks in its input `suite` if it has one,
else in its own `suites`.
"""

import difflib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from pydantic import BaseModel, ValidationError

from quantyard.errors import BadRequest
from quantyard.files.own_files import leads_out_of_folder, typed_file_path
from quantyard.formats.names import path_format_fault, shown_name
from quantyard.formats.strict_yaml import YamlProblem, read_strict_yaml
from quantyard.paths import REPO_DIR
from quantyard.plan.local_tasks import HELP, are_planned_tasks_local
from quantyard.protocol.base import FileEntry, files_digest
from quantyard.protocol.behaviour import BehaviourEntry, BehaviourSettings
from quantyard.protocol.cache_types import CacheSettings
from quantyard.protocol.evaluation import DivergenceSettings, DomainSettings, SpeedSettings, Suite, TaskEntry
from quantyard.protocol.openvino import OpenVinoSettings, RuntimeName
from quantyard.protocol.runner import file_sha256
from quantyard.store.artifact import Artifact

SUITES_DIR = REPO_DIR / "eval" / "suites"
# eval/suites/<name>.yaml: the smallest first, then those of one part.
BUILTIN = ("smoke", "quick", "standard", "full", "domains", "cache", "speed", "behaviour")
_PARTS: Mapping[str, type[BaseModel]] = {
    "divergence": DivergenceSettings, "domains": DomainSettings, "behaviour": BehaviourSettings,
    "speed": SpeedSettings, "cache": CacheSettings, "openvino": OpenVinoSettings,
}  # fmt: skip
# Parts that are measured only where the suite names them.
_OPT_IN: Final = ("domains", "behaviour", "cache", "openvino")


class BadSuite(BadRequest):
    """The suite does not exist or cannot be measured."""

    kind = "bad-suite"


@dataclass(frozen=True)
class LoadedSuite:
    """A suite and its files.

    Attributes:
        suite: the checked suite; `needs_network` says whether data sets must be fetched.
        local: the files of a user's suite that stages need (its tasks, its text), as the stages' input `suite`; None
            for a built-in suite or one without files.
        origin: the suite's file, for messages.
    """

    suite: Suite
    local: Artifact | None
    origin: Path


def find_suite(text: str) -> LoadedSuite:
    """The suite of this name or in this file.

    Raises:
        BadSuite: the suite does not exist, or has a mistake; the message says where.
    """
    if text.strip().lower() in BUILTIN:
        path = SUITES_DIR / f"{text.strip().lower()}.yaml"
        return LoadedSuite(_read_suite(path, SUITES_DIR), None, path)
    path = typed_file_path(text)
    if path.is_dir() or path.suffix not in (".yaml", ".yml"):
        raise _unknown_suite(text, path)
    if not path.is_file():
        hint = f"Give a file that exists, or a built-in suite: {', '.join(BUILTIN)}."
        raise BadSuite(f"The file {text} does not exist.", hint)
    suite = _read_suite(path, path.parent)
    return LoadedSuite(suite, _local_suite_files(suite, path.parent), path)


def adjusted_suite(
    loaded: LoadedSuite, tasks: tuple[str, ...] | None = None, limit: int | None = None,
    num_fewshot: int | None = None, seed: int | None = None, cache_types: tuple[str, ...] = (),
    runtime: RuntimeName | None = None,
) -> Suite:
    """The suite with the changes of the command line: other tasks (those of the suite keep their settings), and one
    limit, number of examples or seed for all of them. None changes nothing. Types of the KV cache take the place of the
    suite's own. A runtime is measured beside llama.cpp.

    The changes become part of its name, so that its report does not replace that of the whole suite.

    Raises:
        BadSuite: a value is invalid, or a task is missing or named twice.
    """
    suite = loaded.suite
    known = {entry.task: entry for entry in suite.tasks}
    chosen = suite.tasks if tasks is None else tuple(known.get(name) or TaskEntry(task=name) for name in tasks)
    changes = {"limit": limit, "num_fewshot": num_fewshot}
    given = {key: value for key, value in changes.items() if value is not None}
    data = suite.model_dump() | {"tasks": [entry.model_dump() | given for entry in chosen]}
    if limit is not None and suite.behaviour is not None:
        data["behaviour"]["suites"] = [entry.model_dump() | {"limit": limit} for entry in suite.behaviour.suites]
    if tasks is not None:
        data["needs_network"] = _does_suite_need_network(suite, loaded.origin.parent, tasks)
    marks = [*(tasks or ()), *(f"{key}-{value}" for key, value in given.items())]
    marks += [] if seed is None else [f"seed-{seed}"]
    if cache_types:
        data["cache"] = (suite.cache or CacheSettings()).model_dump() | {"types": cache_types}
        marks += [f"cache-{name.replace('/', '-')}" for name in cache_types]
    if runtime is not None:
        data[runtime] = (suite.openvino or OpenVinoSettings()).model_dump()
        marks.append(runtime)
    data["name"] = "+".join([suite.name, *marks])
    changed = _validated_suite(data | ({} if seed is None else {"seed": seed}), "The command line")
    if tasks is not None and not chosen:
        raise BadSuite("TASKS is empty.", "Name at least one, or leave TASKS out.")
    _refuse_repeated_tasks(chosen, "The command line")
    return changed


def _does_suite_need_network(suite: Suite, folder: Path, tasks: Iterable[str]) -> bool:
    """Whether one of these tasks reads a data set that is not in the suite's own folder."""
    return suite.include_path is None or not are_planned_tasks_local(folder / suite.include_path, tasks)


# ---- Reading ---------------------------------------------------------------------------------------------------


def _unknown_suite(text: str, path: Path) -> BadSuite:
    if path.is_dir() and (inside := sorted(path.glob("*.yaml"))):
        return BadSuite(f"{text} is a folder.", f"Name the file in it: {inside[0]}")
    near = difflib.get_close_matches(text.strip().lower(), BUILTIN, n=1, cutoff=0.5)
    advice = f" Did you mean {near[0]!r}?" if near else ""
    return BadSuite(f"Unknown suite {text!r}.{advice}", f"Built-in suites: {', '.join(BUILTIN)}; or give a .yaml file.")


def _read_suite(path: Path, folder: Path) -> Suite:
    """The suite in a file whose paths are relative to `folder`."""
    data = _suite_mapping(path)
    _check_suite_keys(data, Suite, path.name)
    name = path.parent.absolute().name if path.stem == "suite" else path.stem
    data = {"name": name, **data, "tasks": _suite_tasks(data.get("tasks"), path.name)}
    for part, model in _PARTS.items():
        data[part] = _suite_part(data, part, model, path.name)
    data["behaviour"] = _suite_behaviours(data["behaviour"], path.name)
    suite = _validated_suite(data, path.name)
    _refuse_repeated_tasks(suite.tasks, path.name)
    if not (suite.tasks or any(getattr(suite, part) for part in _PARTS)):
        raise BadSuite(f"{path.name} measures nothing: no tasks, no {', no '.join(_PARTS)}.", HELP)
    if suite.include_path is not None:
        _check_inside_suite_folder(folder, suite.include_path, f"{path.name}: include_path")
    names = [entry.task for entry in suite.tasks]
    needs_network = data.get("needs_network") is True or (
        bool(names) and _does_suite_need_network(suite, folder, names)
    )
    return suite.model_copy(update={"needs_network": needs_network})


def _suite_mapping(path: Path) -> dict[str, Any]:
    try:
        data = read_strict_yaml(path)
    except YamlProblem as problem:
        raise BadSuite(f"{path.name} is not valid YAML: {problem}.", HELP) from problem
    except OSError as error:
        raise BadSuite(f"{path} cannot be read: {error.strerror}.") from error
    if not isinstance(data, dict) or not data:
        raise BadSuite(f"{path.name} is not a suite: it must be a mapping with the key tasks.", HELP)
    return data


def _suite_tasks(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) and value is not None:
        raise BadSuite(f"{where}: tasks is not a list.", "Write one task a line, each after '- '.")
    tasks = [{"task": item} if isinstance(item, str) else item for item in value or []]
    for number, task in enumerate(tasks, 1):
        if not isinstance(task, dict):
            raise BadSuite(f"{where}: task {number} is {task!r}, neither a name nor settings with the key task.", HELP)
        _check_suite_keys(task, TaskEntry, f"{where}: task {number}")
    return tasks


def _suite_part(data: dict[str, Any], name: str, model: type[BaseModel], where: str) -> Any:
    """The settings of one part: `false` and null leave it out; `true` or a missing key means the defaults, but for a
    part that must be named.
    """
    value = data.get(name, None if name in _OPT_IN else {})
    if value is True:
        return {}
    if value is False or value is None:
        return None
    if isinstance(value, dict):
        _check_suite_keys(value, model, f"{where}: {name}")
    return value


def _suite_behaviours(value: Any, where: str) -> Any:
    """The part `behaviour` with its shortcut: a kind without settings is just its name."""
    if not isinstance(value, dict) or not isinstance(value.get("suites"), list):
        return value
    entries = [{"suite": item} if isinstance(item, str) else item for item in value["suites"]]
    for number, entry in enumerate(entries, 1):
        if isinstance(entry, dict):
            _check_suite_keys(entry, BehaviourEntry, f"{where}: behaviour: suite {number}")
    names = [entry.get("suite") for entry in entries if isinstance(entry, dict)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise BadSuite(f"{where}: behaviour names {twice!r} twice.", "Results are kept by name: name it once.")
    return {**value, "suites": entries}


def _check_suite_keys(data: dict[Any, Any], model: type[BaseModel], where: str) -> None:
    for key in data:
        if key not in model.model_fields:
            near = difflib.get_close_matches(str(key), model.model_fields, n=1, cutoff=0.5)
            advice = f" Did you mean {near[0]!r}?" if near else ""
            raise BadSuite(f"{where}: unknown key {key!r}.{advice}", f"Allowed are {', '.join(model.model_fields)}.")


def _validated_suite(data: dict[str, Any], where: str) -> Suite:
    try:  # from JSON, because strict validation of Python values does not accept a list for a tuple
        return Suite.model_validate_json(json.dumps(data, default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part + 1) if isinstance(part, int) else part for part in first["loc"])
        message = f"{where}: {place} is {first['input']!r}: {first['msg'].removeprefix('Value error, ')}."
        raise BadSuite(message, HELP) from error


def _refuse_repeated_tasks(tasks: Iterable[TaskEntry], where: str) -> None:
    seen: set[str] = set()
    for entry in tasks:
        if entry.task in seen:
            raise BadSuite(f"{where} names the task {entry.task!r} twice.", "Results are kept by task: name it once.")
        seen.add(entry.task)


# ---- The files of a user's suite -------------------------------------------------------------------------------


def _check_inside_suite_folder(folder: Path, relative: str, where: str) -> Path:
    path = folder / relative
    if not path.exists():
        raise BadSuite(f"{where}: {relative} is not in {folder}.", "Paths are relative to the suite's file.")
    if fault := path_format_fault(relative.removesuffix("/")):
        raise BadSuite(f"{where}: {shown_name(relative)} cannot be used: {fault}.", "Rename it.")
    if leads_out_of_folder(folder, path):
        raise BadSuite(f"{where}: {relative} leads out of {folder}.", "Put it into the folder of the suite's file.")
    return path


def _local_suite_files(suite: Suite, folder: Path) -> Artifact | None:
    """The files below include_path, the text, and the domains' texts; other files of the folder are left out."""
    paths = _suite_task_files(folder, suite.include_path) if suite.include_path else []
    texts = {part.text for part in (suite.divergence, suite.cache, suite.openvino) if part and part.text}
    paths += [_suite_text_file(folder, text) for text in sorted(texts)]
    paths += _suite_domain_files(folder, suite.domains.texts) if suite.domains and suite.domains.texts else []
    if not paths:
        return None
    files = tuple(
        FileEntry(path=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size, sha256=file_sha256(path))
        for path in sorted(set(paths))
    )
    return Artifact(files_digest(files), files, folder.absolute(), whole_folder=False)


def _suite_task_files(folder: Path, include_path: str) -> list[Path]:
    top = folder / include_path
    if not top.is_dir():
        raise BadSuite(f"include_path {include_path} is a file.", "Name the folder with the tasks' YAML files.")
    paths = [p for p in top.rglob("*") if p.is_file() and not _is_suite_clutter(p.relative_to(top))]
    if not any(path.suffix == ".yaml" for path in paths):
        raise BadSuite(f"include_path {include_path} does not have a task: no .yaml file.", HELP)
    for path in paths:
        _check_inside_suite_folder(
            folder, path.relative_to(folder).as_posix(), "include_path"
        )  # it may be a link out of the folder
    return paths


def _is_suite_clutter(path: Path) -> bool:
    return any(part.startswith(".") or part == "__pycache__" for part in path.parts)


def _suite_text_file(folder: Path, name: str) -> Path:
    path = _check_inside_suite_folder(folder, name, "text")
    if not path.is_file():
        raise BadSuite(f"text: {name} is not a file.", "Name one plain text file.")
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise BadSuite(f"text: {name} is not text in UTF-8.", "Give a plain text file.") from error
    if "\0" in text:
        raise BadSuite(f"text: {name} holds binary data.", "Give a plain text file.")
    if not text.strip():
        raise BadSuite(f"text: {name} is empty.", "Give some thousands of words.")
    return path


def _suite_domain_files(folder: Path, name: str) -> list[Path]:
    top = _check_inside_suite_folder(folder, name, "domains.texts")
    paths = sorted(top.glob("*.jsonl"))
    if not paths:
        raise BadSuite(f"domains.texts: {name} does not have a domain: no .jsonl file.", "Add one file for each.")
    for path in paths:
        _check_inside_suite_folder(folder, path.relative_to(folder).as_posix(), "domains.texts")
    return paths
