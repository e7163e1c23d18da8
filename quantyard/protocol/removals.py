"""Why a file is not the one to take: names that a program can read."""

from typing import Annotated, Final, Literal, get_args

from pydantic import Field

from quantyard.protocol.base import Frozen

# To add a reason: add its name here, and what it means to the table below.
RemovalName = Literal[
    "DOMINATED_BY", "WITHIN_NOISE_OF", "SILENT_ZONE_OF", "WORSE_DOMAIN_THAN", "WORSE_BEHAVIOUR_THAN", "FURTHER_THAN",
    "TOO_LARGE", "FAILS_BUDGET", "NOT_MEASURED", "CACHE_NOT_MEASURED", "CACHE_REFUSED", "MISSING", "CHANGED",
]
REMOVALS: Final[dict[RemovalName, str]] = {
    "DOMINATED_BY": "another file is at least as small, as close to the baseline and as fast",
    "WITHIN_NOISE_OF": "a smaller file is not measurably further from the baseline",
    "SILENT_ZONE_OF": "both are so near the baseline that divergence predicts no benchmark, and the other is smaller",
    "WORSE_DOMAIN_THAN": "another file of equal quality diverges measurably less in its worst domain",
    "WORSE_BEHAVIOUR_THAN": "another file of equal quality is measurably worse than the baseline in fewer behaviours",
    "FURTHER_THAN": "the file that was taken is measurably closer to the baseline",
    "TOO_LARGE": "it needs more memory than there is",
    "FAILS_BUDGET": "it does not meet a limit of speed or divergence",
    "NOT_MEASURED": "what the choice needs was not measured on its current bytes",
    "CACHE_NOT_MEASURED": "it was not measured with the asked type of the KV cache",
    "CACHE_REFUSED": "it cannot have the asked type of the KV cache",
    "MISSING": "the file is not where it was built",
    "CHANGED": "the file was changed after it was verified",
}
assert set(get_args(RemovalName)) == set(REMOVALS)


class Removal(Frozen):
    """One reason against a file: its name, the other file, and a sentence with the figures of both."""

    name: RemovalName
    other: Annotated[str, Field(max_length=200)] = ""  # its label
    text: Annotated[str, Field(max_length=1000)] = ""
