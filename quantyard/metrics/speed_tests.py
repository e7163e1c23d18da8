"""The tests of speed in llama-bench's terms, formatted once for report, terminal, page and card."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from quantyard.formatting.numbers import DASH, format_digits, format_tokens_per_s
from quantyard.protocol.estimates import Interval
from quantyard.protocol.measurements import Measurement
from quantyard.protocol.speed_results import Speed, SpeedTest

SPEED_HEAD: Final = ("test", "tokens/s", "95 %", "J/token", "J 95 %", "beside the baseline")


@dataclass(frozen=True)
class SpeedRow:
    """One test of one file."""

    label: str
    test: SpeedTest
    pace: Interval | None = None  # beside the baseline, of the first test of each kind

    @property
    def cells(self) -> tuple[str, ...]:
        """As `SPEED_HEAD` names them."""
        test, joules = self.test, self.test.joules_per_token
        return (
            test.name, format_tokens_per_s(test.tokens_per_s), speed_interval_text(test.interval),
            DASH if joules is None else format_digits(joules, 2), speed_interval_text(test.joules_interval, 2),
            DASH if self.pace is None else f"{format_digits(self.pace.value)} times ({speed_interval_text(self.pace)})",
        )  # fmt: skip


def speed_interval_text(found: Interval | None, digits: int = 3) -> str:
    """The ends of an interval: "59.8 to 62.6"; a dash where there is none."""
    return DASH if found is None else f"{format_digits(found.low, digits)} to {format_digits(found.high, digits)}"


def speed_rows(measurements: Sequence[Measurement]) -> list[SpeedRow]:
    """Every test of every file, in the order of the files."""
    return [row for m in measurements if m.speed for row in _speed_rows_of_file(m.file.label, m.speed)]


def _speed_rows_of_file(label: str, speed: Speed) -> Iterator[SpeedRow]:
    paces = {"pp": speed.prompt_pace, "tg": speed.generation_pace}
    for test in speed.tests:
        yield SpeedRow(label, test, paces.pop(test.kind, None))


def has_more_than_usual(rows: Sequence[SpeedRow]) -> bool:
    """Whether the tests say more than the two speeds that the table of files has."""
    return any(row.test.depth or row.pace or row.test.joules_per_token is not None for row in rows) or any(
        row.test.batch != rows[0].test.batch for row in rows
    )


def generation_joules(speed: Speed | None) -> SpeedTest | None:
    """The first test of generation, if its energy was read."""
    tests = speed.tests if speed else ()
    return next((test for test in tests if test.kind == "tg" and test.joules_per_token is not None), None)


def energy_sentence(measurements: Sequence[Measurement]) -> str:
    """Where the joules come from, or why there are none; "" where nothing was timed since energy is read."""
    timed = [m.speed for m in measurements if m.speed and (m.speed.energy_source or m.speed.energy_missing)]
    if not timed:
        return ""
    if source := next((found.energy_source for found in timed if found.energy_source), ""):
        return f"Energy by {source}: all that the machine used meanwhile, idle power included."
    return f"Energy: not measurable here ({timed[0].energy_missing})."
