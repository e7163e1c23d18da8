"""The noise of the packing of questions, pooled over the tasks of a file: one form for all that show it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Final

from quantyard.formatting.numbers import DASH, format_count, format_difference, format_digits, format_percent
from quantyard.metrics.intervals import wilson_interval
from quantyard.protocol.measurements import Measurement
from quantyard.protocol.task_results import AccuracyNoise, LayoutNoise

LAYOUT_COLUMNS: Final = (
    "file", "questions asked again", "SD of a score, nats", "picks flipped", "accuracy: SD of the packing",
    "accuracy: SE of the sample",
)  # fmt: skip
LAYOUT_NOTE: Final = (
    "Some questions were asked again in another packing, in which the same file rounds otherwise. A flip of this kind "
    "favours no file, and is one of the flips that the intervals and tests of the verdicts count: they hold for other "
    "questions in other packings. Where a file flips hardly more answers than the packing does, its flips say nothing. "
    "The last two columns say how far the accuracy of all choice questions would move with another packing of them, at "
    "most, and with other questions."
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
        flips=sum(noise.flips for noise in known), accuracy=_pooled_accuracy_noise(known),
    )  # fmt: skip


def _pooled_accuracy_noise(found: Sequence[LayoutNoise]) -> AccuracyNoise | None:
    """Of the accuracy over the questions of all tasks that have one; tasks are independent."""
    known = [noise.accuracy for noise in found if noise.accuracy]
    n = sum(one.n_questions for one in known)
    if not n:
        return None
    layout, sample = (
        math.sqrt(sum((one.n_questions * sd) ** 2 for one, sd in zip(known, of, strict=True))) / n
        for of in ([one.layout_sd for one in known], [one.sample_stderr for one in known])
    )
    flips = sum(one.expected_flips for one in known)
    return AccuracyNoise(n_questions=n, expected_flips=flips, layout_sd=layout, sample_stderr=sample)


def layout_rows(measurements: Sequence[Measurement]) -> Iterator[tuple[str, ...]]:
    """One row a file, in the order of `LAYOUT_COLUMNS`."""
    for m in measurements:
        if noise := m.layout_noise:
            share = wilson_interval(noise.flips, noise.n_questions)
            ends = f"{format_percent(share.low)} to {format_percent(share.high)}"
            flipped = f"{format_count(noise.flips)}: {format_percent(share.value)} ({ends})"
            asked, sd = format_count(noise.n_questions), format_difference(noise.sd_nats)
            yield m.file.label, asked, sd, flipped, *_accuracy_cells(noise.accuracy)


def _accuracy_cells(found: AccuracyNoise | None) -> tuple[str, str]:
    if found is None:
        return DASH, DASH
    layout, sample = (f"{format_digits(100 * share, 2)} points" for share in (found.layout_sd, found.sample_stderr))
    return layout, sample


def layout_sentence(noise: LayoutNoise | None) -> str:
    """Such as: in another packing a score moves by 0.021 nats and accuracy by 0.6 points (other questions: 3.1); ""."""
    if noise is None:
        return ""
    said = f"in another packing of its questions a score moves by {format_difference(noise.sd_nats)} nats"
    if noise.accuracy is None:
        return f"{said} (standard deviation)"
    layout, sample = _accuracy_cells(noise.accuracy)
    return f"{said} and accuracy by {layout}, with other questions by {sample} (standard deviations)"
