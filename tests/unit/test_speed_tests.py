"""Speed in llama-bench's terms: what the repeats say, by hand, and how it is shown."""

from __future__ import annotations

import pytest

from eval.analysis.speed_tests import TimedTest, repeats_interval, speed_test
from eval.rendering.cache_table import markdown_cache_section
from eval.rendering.speed_table import markdown_speed_section
from quantyard.metrics.plots.panels import MeasuredFile, plot_overview
from quantyard.metrics.speed import pace_sentence
from quantyard.metrics.speed_tests import energy_sentence, speed_rows
from quantyard.protocol.estimates import Interval
from quantyard.protocol.measurements import EvalReport
from tests.caches import add_caches, cache_measurement
from tests.manifests import manifest_of
from tests.speeds import with_speed_tests

REPORT = manifest_of().evaluations["standard"]


def test_a_test_is_the_mean_of_its_repeats_with_students_interval() -> None:
    # 10, 20 and 30 tokens/s: standard deviation 10, error 10 / sqrt 3, t of 2 degrees of freedom 4.3027.
    found = speed_test(TimedTest("tg", 60, (6.0, 3.0, 2.0), depth=4096))
    assert (found.name, found.repeats, found.joules_per_token) == ("tg60 @ d4096", 3, None)
    assert found.tokens_per_s == pytest.approx(20)
    assert found.interval is not None and found.interval.low == 0  # 20 - 24.84, and no speed is below nothing
    assert found.interval.high == pytest.approx(20 + 4.30265 * 10 / 3**0.5, rel=1e-4)


def test_joules_are_those_of_a_token() -> None:
    # 8 and 12 joules for 4 tokens: 2 and 3 a token, error 0.5, t of 1 degree of freedom 12.706.
    found = speed_test(TimedTest("pp", 4, (1.0, 1.0), (8.0, 12.0), batch=128))
    assert found.name == "pp4, ub 128" and found.joules_per_token == pytest.approx(2.5)
    assert found.joules_interval is not None
    assert found.joules_interval.high == pytest.approx(2.5 + 12.7062 / 2, rel=1e-4)


def test_one_repeat_has_no_interval() -> None:
    assert repeats_interval([3.0]) is None and repeats_interval([]) is None
    found = speed_test(TimedTest("tg", 8, (2.0,), (4.0,)))
    assert (found.tokens_per_s, found.interval, found.joules_per_token, found.joules_interval) == (4, None, 0.5, None)


def _timed(*, has_energy: bool) -> EvalReport:
    return with_speed_tests(REPORT, has_energy=has_energy)


def test_the_report_shows_every_test_of_every_file_and_the_pace_beside_the_baseline_once() -> None:
    text = markdown_speed_section(_timed(has_energy=True))
    rows = [line for line in text.splitlines() if line.startswith("| Q4_K_M")]
    assert [row.split("|")[2].strip() for row in rows] == ["pp512", "tg64", "pp512 @ d4096", "tg64 @ d4096"]
    assert sum("times (" in row for row in rows) == 2 and "J/token" in text and "RAPL package-0" in text


def test_where_no_energy_can_be_read_the_report_says_why_and_has_no_column_for_it() -> None:
    report = _timed(has_energy=False)
    text = markdown_speed_section(report)
    assert "not measurable here (/sys/…/energy_uj can be read by root alone)" in text and "J/token" not in text
    assert energy_sentence(REPORT.measurements) == "" and speed_rows(REPORT.measurements) == []


@pytest.mark.parametrize(("has_energy", "names"), [
    (True, ["Size", "Quality lost", "Speed", "Energy"]), (False, ["Size", "Quality lost", "Speed"]),
])  # fmt: skip
def test_one_chart_shows_what_a_file_gives_up_for_what(has_energy: bool, names: list[str]) -> None:
    report = _timed(has_energy=has_energy)
    files = [MeasuredFile(i, m, m.file.label == report.baseline) for i, m in enumerate(report.measurements)]
    panels = plot_overview(files)
    assert [panel.name for panel in panels] == names
    assert {tuple(row.spot.number for row in panel.rows) for panel in panels} == {tuple(range(len(files)))}


@pytest.mark.parametrize(("low", "high", "said"), [
    (1.8, 2.0, "Generates 1.9 times (1.8 to 2.0) as many tokens per second as BF16, timed by turns."),
    (0.95, 1.1, "Generates as fast as BF16, within the interval of runs by turns."),
])  # fmt: skip
def test_the_pace_of_runs_by_turns_is_told_before_that_of_separate_runs(low: float, high: float, said: str) -> None:
    base, file = (m.speed for m in _timed(has_energy=True).measurements[:2])
    assert file is not None
    pace = Interval(value=(low + high) / 2, low=low, high=high)
    assert pace_sentence(file.model_copy(update={"generation_pace": pace}), base, "BF16") == said


def test_the_types_of_the_cache_are_one_table_with_the_reason_of_those_that_cannot_be() -> None:
    manifest = manifest_of()
    found = cache_measurement("Q4_K_M", {"q8_0": 0.002}, {"f16/q4_0": "NO_FLASH_ATTENTION"})
    add_caches(manifest, {"Q4_K_M": found})
    text = markdown_cache_section(manifest.evaluations["standard"])
    (row,) = (line for line in text.splitlines() if line.startswith("| Q4_K_M | q8_0 | 0.00200 | 0.00200 | 0.0240"))
    assert "| 98.0 % | 0.0420 | 17.0 KiB | −3.00 % | +12.0 % |" in row
    assert "| Q4_K_M | q8_0 | 0.00100 | 0.00200 |" in text  # by the tokens in the cache
    assert "- Q4_K_M, f16/q4_0: not possible: quantized values need flash attention" in text
