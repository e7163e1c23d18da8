"""What a stage left in its folder, read and checked."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from pydantic import TypeAdapter, ValidationError

from pipeline.errors import QuantyardError

T = TypeVar("T")


def read_left(path: Path, kind: type[T], wrong: str) -> T:
    """A record in JSON. `wrong` is what to say of a file that is none: "is not a divergence".

    Raises:
        QuantyardError: it is not there, or is none.
    """
    try:
        return TypeAdapter(kind).validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise QuantyardError(f"{path} {wrong}: {error}", "Please report this, with the lines above.") from error
