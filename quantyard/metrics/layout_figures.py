"""The noise of the packing of questions, pooled over the tasks of a file: one form for report and card."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from quantyard.formatting.numbers import format_count, format_difference, format_percent
from quantyard.metrics.intervals import wilson_interval
from quantyard.protocol.measurements import Measurement
from quantyard.protocol.task_results import LayoutNoise

LAYOUT_COLUMNS: Final = ("file", "questions asked again", "SD of a score, nats", "picks flipped")
LAYOUT_NOTE: Final = (
    "Some questions were asked again in another packing, in which the same file rounds otherwise. A flip of this kind "
    "favours no file, and is one of the flips that the intervals and tests of the verdicts count: they hold for other "
    "questions in other packings. Where a file flips hardly more answers than the packing does, its flips say nothing."
)


def pooled_layout_noise(found: Iterable[LayoutNoise | None]) -> LayoutNoise | None:
    """Of several tasks: the root mean square over all requests; None where none was measured."""
    known = [noise for noise in found if noise]
    n_requests = sum(noise.n_requests for noise in known)
    if not n_requests:
        return None
    square = sum(noise.n_requests * noise.sd_nats**2 for noise in known) / n_requests
    return LayoutNoise(
        n_questions=sum(noise.n_questions for noise in known), n_requests=n_requests, sd_nats=math.sqrt(square),
        flips=sum(noise.flips for noise in known),
    )  # fmt: skip


def layout_rows(measurements: Sequence[Measurement]) -> Iterator[tuple[str, ...]]:
    """One row a file, in the order of `LAYOUT_COLUMNS`."""
    for m in measurements:
        if noise := m.layout_noise:
            share = wilson_interval(noise.flips, noise.n_questions)
            ends = f"{format_percent(share.low)} to {format_percent(share.high)}"
            flipped = f"{format_count(noise.flips)}: {format_percent(share.value)} ({ends})"
            yield m.file.label, format_count(noise.n_questions), format_difference(noise.sd_nats), flipped
