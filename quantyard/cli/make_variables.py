"""Refuses misspelt variables typed after `make build`: make itself accepts every name.

Make passes the typed variables to its recipes, in MAKEFLAGS after ` -- `. A name is refused if it is one of our
settings in another case (`quant`), or has at least four letters and is close to one (a similarity of 0.8 by difflib:
`MODLE`). Every other name may be meant for make, a script or another tool, and is accepted.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Mapping
from typing import Final

from quantyard.cli.settings import BY_NAME
from quantyard.errors import BadRequest
from quantyard.paths import REPO_DIR

CALLED_BY_MAKE: Final = "QUANTYARD_CALLED_BY_MAKE"  # set by our Makefile only
_ALIKE: Final = 0.8
_SHORTEST: Final = 4
_ASSIGNMENT: Final = re.compile(r"([^\s:?+!=]+)(?:::?:?|\?|\+|!)?=")
_OURS: Final = ("PYTHON", "SLOW", "HOSTILE")  # of the Makefile and its scripts


def check_make_variables(environment: Mapping[str, str]) -> None:
    """Refuse misspelt variables.

    Raises:
        BadRequest: a variable looks like one of ours.
    """
    if not environment.get(CALLED_BY_MAKE):
        return
    typed = [name for name in typed_make_variables(environment.get("MAKEFLAGS", "")) if name not in BY_NAME]
    known = {*_OURS, *_compose_variables()} if typed else set()
    meant = {name: close for name in typed if name not in known and (close := _close(name))}
    if not meant:
        return
    what = "an unknown variable" if len(meant) == 1 else "unknown variables"
    told = " ".join(f"{close}=…" for close in meant.values())
    message = f"make was given {what}: {', '.join(name[:80] for name in meant)}."
    raise BadRequest(message, f"Did you mean {told}? Every variable: make build-help")


def typed_make_variables(makeflags: str) -> Iterator[str]:
    """The names of the variables on make's command line. A blank in a value is escaped with a backslash."""
    _, _, assignments = f" {makeflags} ".partition(" -- ")
    for word in re.findall(r"(?:\\.|\S)+", assignments):
        if match := _ASSIGNMENT.match(word):
            yield match[1]


def _compose_variables() -> set[str]:
    return set(re.findall(r"^#?([A-Z_]+)=", (REPO_DIR / ".env.example").read_text(), re.MULTILINE))


def _close(name: str) -> str:
    upper = name.upper().replace("-", "_")
    if upper.endswith("_PROXY"):  # common in both cases
        return ""
    if upper in BY_NAME:
        return upper
    if len(upper) < _SHORTEST:  # RM and AR are make's
        return ""
    return next(iter(difflib.get_close_matches(upper, BY_NAME, n=1, cutoff=_ALIKE)), "")
