# ruff: noqa: INP001 (a helper of scripts, not a package)
"""The pages and JSON schemas of what Quantyard writes: manifests, and what commands print with JSON=1."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from pydantic import BaseModel
from reference.markdown import code_text, first_sentence, table_text

from quantyard.cli.json_outputs import base as outputs
from quantyard.cli.json_outputs.schemas import OUTPUTS, SCHEMAS, identified_schema, output_schema_name
from quantyard.protocol import base, evaluation
from quantyard.protocol.base import StageResult
from quantyard.protocol.late_models import LateModel
from quantyard.store.manifest import SCHEMA_VERSION, Manifest

_LONGEST_DEFAULT = 60  # characters

# Of files: each with the version that its identifier names.
FILE_SCHEMAS: dict[str, tuple[type[BaseModel], int]] = {
    "manifest": (Manifest, SCHEMA_VERSION),
    "suite": (evaluation.Suite, 1),  # it has no field for it: people write suites
    "stage-result": (StageResult, base.PROTOCOL_VERSION),
}


def manifest_page() -> Iterator[str]:
    """The fields of the manifest."""
    yield (
        "`manifest.json` in a model's folder records what was made, from what, and by what. The card and `make verify` "
        "read nothing else."
    )
    links = ", ".join(f"[{name}]({name}.schema.json)" for name in FILE_SCHEMAS)
    yield f"As JSON schemas: {links}. What commands print with `JSON=1`: [JSON output](json-output.md)."
    yield (
        "The schema's `$id` names its version, and a manifest says its own in `schema_version`. A field that goes, or "
        "gets another name or meaning, raises it; a newer Quantyard reads all older versions. A new field with a "
        "default keeps the version, but an older Quantyard refuses a manifest with a field that it does not know, "
        "since it would lose it: update Quantyard."
    )
    yield from _model_fields(Manifest, depth=2)


def json_output_page() -> Iterator[str]:
    """What commands print with JSON=1."""
    yield (
        "With `JSON=1` (`--json`) a command prints one object on stdout and nothing else there. Each has a JSON "
        "schema, generated from the code; tests compare what commands print with it."
    )
    yield table_text(
        ("command", "schema"),
        ((code_text(name), f"[{output_schema_name(model)}](json/{output_schema_name(model)}.schema.json)")
         for name, model in OUTPUTS.items()),
    )  # fmt: skip
    yield (
        "A command that fails prints an [error](json/error.schema.json) instead. A negative answer is not an error: "
        "`gate`, `contract`, `verify`, `doctor` and `matrix` print their answer, and the "
        "[exit code](exit-codes.md) says what it is."
    )
    yield (
        "Objects that manifests hold too, such as EvalReport and ContractReport, are explained there: "
        "[Manifest](manifest.md)."
    )
    yield "## Versions"
    yield (
        "`schema_version` stands in every object, and at the end of the schema's `$id`. A new field keeps the "
        "version, so readers must ignore fields that they do not know; the schemas allow them. A field that goes, or "
        "gets another name, type or meaning, raises the version, and the changelog says what to change."
    )
    for name, model in SCHEMAS.items():
        yield f"## {name}"
        yield first_sentence(model.__doc__ or "")
        yield from _output_tables(model)


def _output_tables(model: type[BaseModel]) -> Iterator[str]:
    """The fields of an answer and of its rows; what manifests have too is explained there."""
    todo, seen = [model], {model}
    while todo:
        now = todo.pop(0)
        if now is not model:
            yield f"{code_text(now.__name__)}: {first_sentence(now.__doc__ or '')}"
        yield field_table(now, skip=("schema_version",))
        below = [found for field in now.model_fields.values() for found in _models_in(field.annotation)]
        todo += [found for found in dict.fromkeys(below) if issubclass(found, outputs.JsonRow) and found not in seen]
        seen.update(below)


def _model_fields(model: type[BaseModel], depth: int) -> Iterator[str]:
    """A table of the fields of a model, and of every model below it, each once."""
    todo, seen = [model], {model}
    while todo:
        now = todo.pop(0)
        yield f"{'#' * depth} {now.__name__}"
        yield first_sentence(now.__doc__ or "")
        yield field_table(now)
        for field in now.model_fields.values():
            for below in _models_in(field.annotation):
                if below not in seen:
                    seen.add(below)
                    todo.append(below)


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        yield annotation
    for mark in getattr(annotation, "__metadata__", ()):
        if isinstance(mark, LateModel):
            yield mark.model
    for argument in getattr(annotation, "__args__", ()):
        yield from _models_in(argument)


def field_table(model: type[BaseModel], skip: Sequence[str] = ()) -> str:
    """The fields of a model."""
    properties = model.model_json_schema()["properties"]
    said = _field_comments(model)
    rows = []
    for name, field in model.model_fields.items():
        if name not in skip:
            default = "" if field.is_required() else json.dumps(properties[name].get("default"), ensure_ascii=False)
            shown = code_text(default) if len(default) < _LONGEST_DEFAULT else "…"
            rows.append((code_text(name), _schema_type(properties[name]), shown, said.get(name, "")))
    return table_text(("field", "type", "default", "meaning"), rows) if rows else "It has no fields of its own."


def _schema_type(schema: dict[str, Any]) -> str:
    """A JSON schema in a few words."""
    if "$ref" in schema:
        return schema["$ref"].rsplit("/", 1)[1]
    if "const" in schema:
        return code_text(json.dumps(schema["const"]))
    if "enum" in schema:
        return ", ".join(code_text(json.dumps(value)) for value in schema["enum"])
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return " or ".join(dict.fromkeys(_schema_type(one) for one in schema[several]))
    kind = schema.get("type", "any value")
    if kind == "array":
        return f"list of {_schema_type(schema['items'])}" if "items" in schema else "list"
    if kind == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"mapping to {_schema_type(schema['additionalProperties'])}"
    return str(schema.get("format") or kind)


def _field_comments(model: type[BaseModel]) -> dict[str, str]:
    """What the comment behind each field says, of a model and those that it extends."""
    found: dict[str, str] = {}
    for cls in reversed(model.__mro__):
        if cls is not BaseModel and cls is not object and issubclass(cls, BaseModel):
            found |= dict(re.findall(r"^    (\w+): .*?  # (.*)$", inspect.getsource(cls), re.MULTILINE))
    return {name: text for name, text in found.items() if not text.startswith(("noqa", "type:"))}


def schema_file(name: str) -> str:
    """The JSON schema of a file, by its name in `FILE_SCHEMAS`."""
    model, version = FILE_SCHEMAS[name]
    return json_file(identified_schema(model.model_json_schema(), name, version))


def json_file(schema: dict[str, Any]) -> str:
    """A schema as text."""
    return json.dumps(schema, indent=1, ensure_ascii=False) + "\n"
