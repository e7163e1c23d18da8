"""A measured value with its error: a confidence interval, or a mean and its standard error."""

from typing import Annotated, Final

from pydantic import Field

from quantyard.protocol.base import Frozen

CONFIDENCE: Final = 0.95


class Interval(Frozen):
    """A value and its 95 % confidence interval."""

    value: float
    low: float
    high: float


class Estimate(Frozen):
    """A mean and its standard error.

    Neighbouring tokens are not independent, so the standard error of a mean over tokens is that of the clusters that
    the text was cut into, and `df` is their number less one (None: not known, large). `clusters` are what the clusters
    say each; their mean is `value`, so that two files can be compared cluster by cluster.
    """

    value: float
    stderr: float
    df: Annotated[float | None, Field(exclude_if=lambda value: value is None)] = None
    clusters: Annotated[tuple[float, ...], Field(exclude_if=lambda value: not value)] = ()
