"""Reads and checks the JSON records that a stage left."""

from __future__ import annotations

from pathlib import Path
from typing import Final, TypeVar

from pydantic import TypeAdapter, ValidationError

from quantyard.errors import ResultRefused
from quantyard.files.safe_files import UnsafeFile, read_file_below
from quantyard.formats.finite_json import only_finite_json
from quantyard.formats.strict_json import load_json

T = TypeVar("T")
MAX_BYTES: Final = 8 * 1024 * 1024  # a report goes into the manifest


def read_stored_output(folder: Path, name: str, kind: type[T], wrong: str) -> T:
    """Read a JSON record. `wrong` is the message for an invalid one, such as "is not a divergence".

    Raises:
        ResultRefused: the file is missing, a link, or not such a record.
    """
    try:
        text = read_file_below(folder, name, MAX_BYTES)
        only_finite_json(load_json(text, MAX_BYTES))
        return TypeAdapter(kind).validate_json(text)
    except (UnsafeFile, ValueError, ValidationError) as error:
        first = str(error).splitlines()[0] if not isinstance(error, ValidationError) else _first_output_error(error)
        raise ResultRefused(folder.parent.name, f"{name} {wrong}: {first}") from error


def _first_output_error(error: ValidationError) -> str:
    one = error.errors(include_input=False, include_url=False)[0]
    return f"{'.'.join(map(str, one['loc']))}: {one['msg']}"
