# ruff: noqa: INP001 (a helper of scripts, not a package)
"""The reference of the Python API: each function with its signature, its words, and the fields of what it returns."""

from __future__ import annotations

import dataclasses
import inspect
import re
import typing
from collections.abc import Callable, Iterator
from typing import Any

import quantyard
from quantyard.api.settings import MachineSettings

_MACHINE = typing.get_type_hints(MachineSettings)


def python_reference() -> Iterator[str]:
    """The parts of the page, after its title."""
    yield (
        "`import quantyard` gives these functions; [Use it from Python](../how-to/python-api.md) shows how. "
        "Keyword arguments are the [settings](settings.md) of the command of the same name, in lower case. `**machine` "
        "stands for " + ", ".join(f"`{name}`" for name in _MACHINE) + "."
    )
    results: dict[str, type] = {}
    for name in sorted(quantyard.__all__):
        function = getattr(quantyard, name)
        if inspect.isfunction(function):
            yield from _function(name, function)
            hints = typing.get_type_hints(function)
            results |= {found.__name__: found for found in _own_classes(hints.get("return"))}
    yield "## Results"
    yield "Each is a frozen object. Records of the manifest are in [Manifest and JSON schemas](manifest.md)."
    for name, result in sorted(results.items()):
        if dataclasses.is_dataclass(result):
            yield f"### {name}"
            yield from _result(result)


def _function(name: str, function: Callable[..., object]) -> Iterator[str]:
    yield f"## {name}"
    signature = inspect.signature(function)
    positional = [one.name for one in signature.parameters.values() if one.kind is not inspect.Parameter.KEYWORD_ONLY]
    keywords = [one for one in signature.parameters if one not in positional]
    own = [one for one in keywords if one not in _MACHINE]
    shown = [*positional, *(["*", *(f"{one}=…" for one in own)] if own else []), *(["**machine"] if keywords else [])]
    yield "```python\n" + f"{name}({', '.join(shown)}) -> {_without_modules(signature.return_annotation)}\n```"
    paragraphs = inspect.cleandoc(function.__doc__ or "").split("\n\n")
    yield from (" ".join(part.split()) for part in paragraphs if not part.startswith(("Args:", "Raises:", "Settings")))
    if raises := [part for part in paragraphs if part.startswith("Raises:")]:
        yield "Raises:"
        yield "\n".join(_items(raises[0]))


def _without_modules(annotation: object) -> str:
    """`Manifest | None` for quantyard.store.manifest.Manifest | None; annotations that are text have no modules."""
    return re.sub(r"\b[a-z_]+(\.[a-z_]+)*\.(?=[A-Z])", "", str(annotation))


def _items(block: str) -> Iterator[str]:
    """Lines `Name: text`, which may go on below, as a list."""
    items: list[str] = []
    for line in block.splitlines()[1:]:
        if line.startswith("    ") and not line.startswith("     "):
            items.append(line.strip())
        elif items:
            items[-1] += " " + line.strip()
    for item in items:
        name, _, text = item.partition(": ")
        yield f"- `{name}`: {text}"


def _result(result: type) -> Iterator[str]:
    yield " ".join(inspect.cleandoc(result.__doc__ or "").split("\n\n")[0].split())
    lines = ["| attribute | type |", "| --- | --- |"]
    annotations = inspect.get_annotations(result)
    properties = {name: one for name, one in vars(result).items() if isinstance(one, property) and name[0] != "_"}
    fields = {name: str(kind) for name, kind in annotations.items() if not name.startswith("_")}
    fields |= {name: str(inspect.get_annotations(one.fget).get("return", "")) for name, one in properties.items()}
    lines += [f"| `{name}` | `{kind}` |".replace(" | None", r" \| None") for name, kind in fields.items()]
    yield "\n".join(lines)


def _own_classes(annotation: Any) -> Iterator[type]:
    if inspect.isclass(annotation) and annotation.__module__.startswith("quantyard."):
        yield annotation
    for argument in typing.get_args(annotation):
        yield from _own_classes(argument)
