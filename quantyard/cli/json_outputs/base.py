"""The base of every answer in JSON, and the answer of a command that failed."""

from __future__ import annotations

import math
from typing import Annotated, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, model_validator

JSON_VERSION: Final = 1


def _finite_json_value(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value


Finite = Annotated[float | None, BeforeValidator(_finite_json_value)]  # null: not known, or not finite


class JsonRow(BaseModel):
    r"""Base of the objects inside an answer. Bytes of a path that are not UTF-8 are written as an escape: \udcff."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", defer_build=True, json_schema_serialization_defaults_required=True,
    )

    @model_validator(mode="before")
    @classmethod
    def _unicode(cls, value: object) -> object:
        return _as_unicode_json(value)


def _as_unicode_json(value: object) -> object:
    if isinstance(value, dict):
        return {key: _as_unicode_json(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_as_unicode_json(item) for item in value]
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else value


class JsonOutput(JsonRow):
    """Base of all answers.

    A new field keeps the version, so readers must ignore fields that they do not know. A field that goes, gets another
    name, type or meaning raises it.
    """

    schema_version: Literal[1] = JSON_VERSION


class ErrorFacts(JsonRow):
    """Why a command failed."""

    kind: str  # stable, in kebab-case: see the reference of exit codes
    message: str  # fact and value, for people; not stable
    hint: str  # what to type next; may be empty
    detail: str  # further lines, such as the end of a tool's stderr; may be empty
    exit_code: int  # of the program; make turns it into 2


class ErrorOutput(JsonOutput):
    """A command that failed. It is printed instead of the command's own answer."""

    error: ErrorFacts
