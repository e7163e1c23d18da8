"""Why a file is not the one to take: names that a program can read."""

from typing import Annotated, Final, Literal, get_args

from pydantic import Field

from quantyard.protocol.base import Frozen

# To add a reason: add its name here, and what it means to the table below.
RemovalName = Literal["DOMINATED_BY", "WITHIN_NOISE_OF"]
REMOVALS: Final[dict[RemovalName, str]] = {
    "DOMINATED_BY": "another file is at least as small, as close to the baseline and as fast",
    "WITHIN_NOISE_OF": "a smaller file is not measurably further from the baseline",
}
assert set(get_args(RemovalName)) == set(REMOVALS)


class Removal(Frozen):
    """One reason against a file: its name, the other file, and a sentence with the figures of both."""

    name: RemovalName
    other: Annotated[str, Field(max_length=200)] = ""  # its label
    text: Annotated[str, Field(max_length=1000)] = ""
