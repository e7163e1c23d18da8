"""Parses the result of a stage, which is not trusted: the stage may have processed hostile files."""

from __future__ import annotations

from typing import Final

from pydantic import ValidationError

from quantyard.formats.finite_json import dump_finite_json, only_finite_json
from quantyard.formats.strict_json import load_json
from quantyard.protocol.base import StageResult

RESULT: Final = "result.json"
MAX_RESULT_BYTES: Final = 8 * 1024 * 1024
_MAX_FACTS_BYTES: Final = 256 * 1024  # they go into the manifest, which every command reads
_MAX_ARGV_BYTES: Final = 256 * 1024


def parse_stage_result(text: bytes) -> StageResult:
    """Parse a result.

    Raises:
        ValueError: it is not a valid result, or too large; the message names the first wrong field.
    """
    only_finite_json(load_json(text, MAX_RESULT_BYTES))
    try:
        result = StageResult.model_validate_json(text, strict=True)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from error
    if len(dump_finite_json(result.facts)) > _MAX_FACTS_BYTES:
        raise ValueError(f"facts: they are larger than {_MAX_FACTS_BYTES:,} bytes")
    if sum(len(word) for argv in result.argv for word in argv) > _MAX_ARGV_BYTES:
        raise ValueError(f"argv: the commands are longer than {_MAX_ARGV_BYTES:,} characters")
    return result
