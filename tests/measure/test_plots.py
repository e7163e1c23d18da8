"""The plots: that they say what the report holds, that nothing covers anything, and that they come out the same."""

from __future__ import annotations

import json
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("matplotlib")

from matplotlib.lines import Line2D
from matplotlib.text import Text

from eval.rendering.plots import PLOTS, draw_report_plots
from eval.rendering.style import MARKS, THEMES, Theme, plot_style
from quantyard.formatting.numbers import format_percent
from quantyard.metrics.headline_metrics import headline_scores
from quantyard.protocol.evaluation import ReportRequest, Suite, TaskEntry
from quantyard.protocol.measurements import EvalReport
from tests.evaluations import LARGE, SMALL, evaluation, outcome, right_or_wrong, simulated

REPORTS = {
    "three files of a small model": lambda: simulated(SMALL, title="SmolLM2-135M", n_params=134.5e6, n_tasks=6),
    "nine files of a large model": lambda: simulated(LARGE, title="Llama-3.1-8B-Instruct", n_params=8e9, skill=0.2),
    "one file and one task": lambda: simulated(SMALL[::2], title="SmolLM2-135M", n_params=134.5e6, n_tasks=1),
    "percentiles close together": lambda: _close_together(SMALL),
    "the baseline alone": lambda: simulated(SMALL[:1], title="SmolLM2-135M", n_params=134.5e6, n_tasks=5),
}
LIGHT, DARK = THEMES
MARKS_OF_ORIGINAL = "s"


def _close_together(quants: list[tuple[str, float, float]]) -> EvalReport:
    """Q8_0 of a 135M model: all tokens are about equally far off."""
    measured = simulated(quants[:2], title="SmolLM2-135M", n_params=134.5e6, n_tasks=2)
    shares = {"50": 0.0029, "90": 0.0060, "95": 0.0076, "99": 0.0128, "99.9": 0.0176, "100": 0.0232}
    first, second = measured.measurements
    assert second.divergence
    divergence = second.divergence.model_copy(update={"kld_percentiles": shares})
    return measured.model_copy(update={"measurements": (first, second.model_copy(update={"divergence": divergence}))})


@pytest.fixture(scope="module", params=REPORTS)
def report(request: pytest.FixtureRequest) -> EvalReport:
    return REPORTS[request.param]()


@pytest.fixture(scope="module")
def small() -> EvalReport:
    return REPORTS["three files of a small model"]()


def _figures(report: EvalReport, theme: Theme) -> Iterator[tuple[str, Any]]:
    for name, plot in PLOTS.items():
        with plot_style(theme):
            figure = plot(report, theme)
            if figure is not None:
                yield name, figure


def _texts(figure: Any) -> list[Text]:
    """All text that is drawn."""
    return [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]


def test_no_text_covers_another_or_leaves_the_picture(report: EvalReport) -> None:
    for name, figure in _figures(report, LIGHT):
        renderer, canvas = figure.canvas.get_renderer(), figure.bbox
        boxes = [(text.get_text(), Text.get_window_extent(text, renderer)) for text in _texts(figure)]
        assert len(boxes) > 4
        for text, box in boxes:
            inside = box.x0 >= canvas.x0 and box.y0 >= canvas.y0 and box.x1 <= canvas.x1 and box.y1 <= canvas.y1
            assert inside, f"{name}: {text!r} leaves the picture"
        for (one, first), (two, second) in combinations(boxes, 2):
            width = min(first.x1, second.x1) - max(first.x0, second.x0)
            height = min(first.y1, second.y1) - max(first.y0, second.y0)
            assert not (width > 1 and height > 2), f"{name}: {one!r} covers {two!r}"


def test_every_file_is_named_in_every_plot_that_shows_it(report: EvalReport) -> None:
    labels = {m.file.label for m in report.measurements}
    for name, figure in _figures(report, LIGHT):
        written = {text.get_text().split(",")[0] for text in _texts(figure)}
        expected = labels - {report.baseline} if name in ("divergence", "accuracy") else labels
        assert expected <= written, name


def _marks(figure: Any) -> list[tuple[str, str]]:
    """Shape and colour of every marker."""
    lines = [line for line in figure.findobj(Line2D) if line.get_marker() not in ("None", "")]
    return [(line.get_marker(), line.get_color()) for line in lines]


def test_the_accuracy_plot_marks_every_verdict_in_its_colour(small: EvalReport) -> None:
    figure = dict(_figures(small, DARK))["accuracy"]
    shown = {(s.task, s.metric) for s in headline_scores(small.suite, small.measurements[0].scores)}
    verdicts = [c.verdict for m in small.measurements for c in m.comparisons if (c.task, c.metric) in shown]
    key = sorted(set(verdicts))
    expected = [(MARKS[v].shape, getattr(DARK, MARKS[v].colour)) for v in (*verdicts, *key)]
    assert Counter(_marks(figure)) == Counter(expected)


def test_the_original_is_in_the_plot_of_sizes_and_a_line_joins_three_files_or_more(small: EvalReport) -> None:
    for report, has_line in ((small, False), (REPORTS["nine files of a large model"](), True)):
        figure = dict(_figures(report, LIGHT))["tradeoff"]
        assert (MARKS_OF_ORIGINAL, LIGHT.text) in _marks(figure)
        fronts = [line for line in figure.findobj(Line2D) if len(line.get_xdata()) > 2]
        assert bool(fronts) == has_line


def test_axes_say_their_scale_and_which_way_is_better_and_the_chance_level_is_written(small: EvalReport) -> None:
    words = {name: " ".join(text.get_text() for text in _texts(figure)) for name, figure in _figures(small, LIGHT)}
    assert "lower is better, log scale" in words["tradeoff"] and "smaller is better: size, " in words["tradeoff"]
    assert "lower is better" in words["divergence"] and "log scale" in words["divergence"]
    assert "higher is better" in words["speed"] and "lower is better" in words["speed"]
    for score in headline_scores(small.suite, small.measurements[0].scores):
        written = score.chance is None or f"chance {format_percent(score.chance)}" in words["accuracy"]
        assert written, score.task


def test_letters_can_be_read_where_a_picture_is_400_pixels_wide(report: EvalReport) -> None:
    for name, figure in _figures(report, LIGHT):
        if len(report.measurements[0].scores) > 6 and name == "accuracy":
            continue  # two columns: at 400 pixels to zoom into
        shown = 400 / (figure.get_figwidth() * 72)  # pixels per point
        assert min(text.get_size() for text in _texts(figure)) * shown >= 9, name


def test_plots_without_data_are_left_out(tmp_path: Path) -> None:
    tasks_only = simulated(SMALL, title="m", n_params=1e8, n_tasks=1, divergence=False, speed=False)
    assert {path.name.split("-")[0] for path in draw_report_plots(tasks_only, tmp_path)} == {"accuracy"}
    nothing = tasks_only.model_copy(update={"measurements": tuple(
        m.model_copy(update={"scores": (), "comparisons": ()}) for m in tasks_only.measurements
    )})  # fmt: skip
    assert draw_report_plots(nothing, tmp_path) == []


def test_each_plot_comes_as_svg_and_png_on_light_and_dark(small: EvalReport, tmp_path: Path) -> None:
    paths = draw_report_plots(small, tmp_path / "plots")
    expected = {f"{name}-{theme}.{kind}" for name in PLOTS for theme in ("light", "dark") for kind in ("svg", "png")}
    assert {path.name for path in paths} == expected == {path.name for path in (tmp_path / "plots").iterdir()}
    for path in paths:
        assert path.stat().st_size > 3000
        if path.suffix == ".svg":
            assert ET.parse(path).getroot().tag.endswith("svg")  # noqa: S314  our own
            assert "<dc:date>" not in path.read_text()
        else:
            assert path.read_bytes().startswith(b"\x89PNG")


def test_drawn_again_in_another_process_every_file_is_the_same_to_the_byte(small: EvalReport, tmp_path: Path) -> None:
    source = tmp_path / "report.json"
    source.write_text(small.model_dump_json())
    subprocess.run([sys.executable, "-m", "eval.rendering.plots", str(source), str(tmp_path / "again")], check=True)
    first = {path.name: path.read_bytes() for path in draw_report_plots(small, tmp_path / "first")}
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == first


@pytest.mark.parametrize("theme", THEMES, ids=lambda theme: theme.name)
def test_text_stands_out_from_its_ground(theme: Theme) -> None:
    assert _contrast(theme.text, theme.ground) > 7
    assert _contrast(theme.muted, theme.ground) > 4.5
    for colour in (theme.green, theme.vermillion, theme.blue):
        assert _contrast(colour, theme.ground) > 3


def _contrast(one: str, two: str) -> float:
    """WCAG 2's contrast ratio."""

    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        r, g, b = (x / 12.92 if x <= 0.04045 else ((x + 0.055) / 1.055) ** 2.4 for x in parts)
        return 0.2126 * r + 0.7152 * g + 0.0722 * b

    low, high = sorted((luminance(one), luminance(two)))
    return (high + 0.05) / (low + 0.05)


def test_the_stage_leaves_report_text_and_plots_and_says_what_it_found(tmp_path: Path) -> None:
    suite = Suite(name="s", tasks=(TaskEntry(task="arc"),), divergence=None, speed=None)
    request = ReportRequest(title="m", suite=suite, baseline="BF16", labels=("BF16", "Q4_K_M"))
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "request.json").write_text(request.model_dump_json())
    for label, lost in (("BF16", 0), ("Q4_K_M", 40)):
        folder = tmp_path / "in" / f"evaluate-{label}"
        folder.mkdir()
        answers = outcome("arc", right_or_wrong([0] * lost + [1] * (300 - lost) + [0] * 200), chance=0.25)
        (folder / "evaluation.json").write_text(evaluation(label, answers).model_dump_json())
    argv = [sys.executable, "-m", "eval.report", "--in", str(tmp_path / "in"), "--out", str(tmp_path / "out")]
    (tmp_path / "out").mkdir()
    done = subprocess.run(argv, capture_output=True, text=True)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert (done.returncode, result["error"]) == (0, None), done.stderr
    paths = {output["path"] for output in result["outputs"]}
    assert {"report.json", "report.md", "plots/accuracy-dark.svg", "plots/accuracy-light.png"} <= paths
    assert result["facts"]["files"]["Q4_K_M"]["verdicts"] == {"worse": 1}
    report = EvalReport.model_validate_json((tmp_path / "out" / "files" / "report.json").read_bytes())
    assert [m.file.label for m in report.measurements] == ["BF16", "Q4_K_M"]
    assert (tmp_path / "out" / "files" / "report.json").read_text().startswith('{\n  "report_version"')
