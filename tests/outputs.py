"""The published schemas of JSON output, as tests compare what commands print with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from jsonschema import Draft202012Validator

from quantyard.cli.json_outputs.schemas import OUTPUTS, SCHEMAS, output_schema_name
from quantyard.paths import REPO_DIR

FOLDER = REPO_DIR / "docs" / "reference" / "json"


@cache
def published(name: str) -> Draft202012Validator:
    """The validator of a published schema."""
    schema = json.loads((FOLDER / f"{name}.schema.json").read_text())
    Draft202012Validator.check_schema(schema)
    return Draft202012Validator(schema)


def check_output(command: str, said: Mapping[str, Any]) -> None:
    """Fail if this is not what the command's published schema, or that of errors, describes, field by field."""
    name = "error" if "error" in said else output_schema_name(OUTPUTS[command])
    check_named(name, said)


def check_named(name: str, said: Mapping[str, Any]) -> None:
    """Fail if this is not what a published schema describes, or has a field more."""
    published(name).validate(said)
    assert said.keys() <= SCHEMAS[name].model_fields.keys(), f"{name}: a field that the schema does not name"
