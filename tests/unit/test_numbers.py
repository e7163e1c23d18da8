"""Numbers are written in one place: every view of one manifest shows the same figure, and no module formats its own."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from eval.rendering.markdown import render_report_markdown
from quantyard.card.blocks import card_blocks, card_table_cells
from quantyard.card.render import render_card
from quantyard.cli.render.evaluation import terminal_measured_files as terminal_files
from quantyard.cli.render.evaluation import terminal_measured_tasks as terminal_tasks
from quantyard.cli.render.tables import FittedTable
from quantyard.formatting import numbers
from quantyard.gate.budgets import load_gate_budgets
from quantyard.gate.judge import judge_gate_budgets
from quantyard.metrics.intervals import estimate_interval, ppl_change_interval
from quantyard.metrics.kinds import score_metric_kind
from quantyard.paths import REPO_DIR
from quantyard.protocol.estimates import Interval
from quantyard.protocol.measurements import Measurement
from quantyard.publish.registry.annotations import oci_evaluation_annotations
from quantyard.report_page.files_table import page_files_table as page_files
from quantyard.report_page.tables import page_files as files_of
from quantyard.report_page.task_tables import page_tasks_table as page_tasks
from quantyard.store.manifest import Manifest
from tests.cards import CONTEXT, whole

QUANT, SUITE = "Q4_K_M", "standard"
Row = dict[str, str]


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return whole()


@pytest.fixture(scope="module")
def found(manifest: Manifest) -> Measurement:
    return next(m for m in manifest.evaluations[SUITE].measurements if m.file.label == QUANT)


# ---- what each view shows of one file ----------------------------------------------------------------


def _terminal(table: FittedTable | None) -> list[Row]:
    """The rows of a table as a wide terminal shows them, without marks."""
    assert table is not None
    plain = ([Console().render_str(cell).plain for cell in row] for row in table.rows)
    return [dict(zip(table.columns, row, strict=True)) for row in plain]


def _markdown(text: str) -> Iterator[Row]:
    """The rows of every table in a text of Markdown."""
    head: list[str] = []
    for line in text.splitlines():
        if not line.startswith("|"):
            head = []
        elif not head:
            head = card_table_cells(line)
        elif ":---" not in line:
            yield dict(zip(head, card_table_cells(line), strict=True))


def _card(manifest: Manifest) -> str:
    """The card's tables and lists, without the marks of Markdown's escaping."""
    blocks = dict(card_blocks(render_card(manifest, CONTEXT).replace("\\", "")))
    return "\n\n".join("\n".join(lines) for lines in blocks.values())


def _row(rows: Iterator[Row] | list[Row], first: str, *columns: str) -> Row:
    """The row that begins with this word, of the table with these columns."""
    return next(
        row for row in rows
        if set(columns) <= row.keys() and next(iter(row.values())).replace("`", "").split("<")[0].strip() == first
    )  # fmt: skip


def _page(manifest: Manifest) -> Row:
    report = manifest.evaluations[SUITE]
    table = page_files(files_of(manifest, report))
    row = next(row for row in table.rows if row.cells[0].text == QUANT)
    return {column.name: f"{cell.text} ({cell.note})" if cell.note else cell.text
            for column, cell in zip(table.columns, row.cells, strict=True)}  # fmt: skip


def _gate(manifest: Manifest, tmp_path: Path, budgets: str) -> str:
    path = tmp_path / "gate.yaml"
    path.write_text(f"defaults: {budgets}")
    (result,) = judge_gate_budgets(manifest, [QUANT], SUITE, load_gate_budgets(path)).results
    return result.finding


def test_a_file_has_the_same_figures_in_every_view(manifest: Manifest, found: Measurement, tmp_path: Path) -> None:
    report = manifest.evaluations[SUITE]
    terminal = _row(_terminal(terminal_files(report)), QUANT, "mean KLD")
    text = _row(_markdown(render_report_markdown(report)), QUANT, "mean KLD")
    card = _row(_markdown(_card(manifest)), QUANT, "mean KLD")
    speeds = _row(_markdown(_card(manifest)), QUANT, "peak memory")
    page, said = _page(manifest), oci_evaluation_annotations(manifest, QUANT, SUITE)
    divergence, speed = found.divergence, found.speed
    assert divergence and speed and divergence.mean_kld and divergence.top1_agreement
    change = ppl_change_interval(divergence)
    assert change is not None

    assert terminal["size"] == text["size"] == card["size"] == page["Size"]
    assert terminal["bits"] == text["bits per weight"] == card["bits per weight"] == page["Bits/weight"]
    assert numbers.format_bits_per_weight(float(said["quantyard.bits-per-weight"])) == terminal["bits"]
    assert terminal["PPL"] == text["PPL"] == card["PPL"] == page["PPL"]
    assert numbers.format_perplexity(float(said["quantyard.ppl"])) == terminal["PPL"]
    assert text["ΔPPL"] == card["ΔPPL"] == page["ΔPPL"] == str(numbers.format_change_interval(change))
    assert text["ΔPPL"].startswith(f"{terminal['Δ']} (") and terminal["Δ"] == "+2.51 %"
    assert numbers.format_change_interval(_interval(said["quantyard.ppl-change"])) == numbers.format_change_interval(
        change
    )
    assert terminal["mean KLD"] == text["mean KLD"] == card["mean KLD"] == page["Mean KLD"] == "0.0310"
    assert numbers.format_kld(float(said["quantyard.mean-kld"])) == terminal["mean KLD"]
    assert text["p99 KLD"] == card["p99 KLD"] == page["p99 KLD"] == numbers.format_kld(float(said["quantyard.p99-kld"]))
    assert terminal["same top token"] == text["same top token"] == card["same top token"] == page["Top-1"]
    assert numbers.format_percent(float(said["quantyard.top1-agreement"])) == terminal["same top token"]
    assert terminal["prompt"] == f"{text['prompt tokens/s']} tokens/s" == f"{speeds['prompt tokens/s']} tokens/s"
    assert (
        page["Prompt"]
        == text["prompt tokens/s"]
        == numbers.format_tokens_per_s(float(said["quantyard.prompt-tokens-per-s"]))
    )
    generated = {text["generated tokens/s"], speeds["generated tokens/s"], page["Generation"]}
    assert {terminal["generated"]} == {f"{figure} tokens/s" for figure in generated}
    assert terminal["memory"] == text["peak memory"] == speeds["peak memory"] == page["Peak"]
    assert numbers.format_memory(int(said["quantyard.peak-memory-bytes"])) == terminal["memory"]

    assert f"mean KLD {numbers.format_kld_interval(estimate_interval(divergence.mean_kld))} is" in _gate(
        manifest, tmp_path, "{max_mean_kld: 1}"
    )
    assert f"perplexity {card['ΔPPL']} is within" in _gate(manifest, tmp_path, "{max_ppl_change: 50}")
    assert f"generation {text['generated tokens/s']} tokens/s is" in _gate(
        manifest, tmp_path, "{min_generated_tokens_per_s: 1}"
    )
    assert f"the size {card['size']} (" in _gate(manifest, tmp_path, "{max_size: 50GB}")
    schemas = page["Schemas"]
    assert f"JSON schema {schemas} is at least 10.0 %" in _gate(manifest, tmp_path, "{min_schema_conformance: 0.1}")
    assert schemas in _row(_markdown(_card(manifest)), QUANT, "passed")["answers that conform to their JSON schema"]


def test_a_task_has_the_same_figures_in_every_view(manifest: Manifest, found: Measurement) -> None:
    """Accuracy, perplexity and bits per byte; the change of the last was told in two ways."""
    report = manifest.evaluations[SUITE]
    said = oci_evaluation_annotations(manifest, QUANT, SUITE)
    rows = [row for row in _terminal(terminal_tasks(report)) if row["file"] == QUANT]
    page = [row for row in page_tasks(report, files_of(manifest, report)).rows if row.cells[0].text == QUANT]
    kinds, n_quoted = set(), 0
    for comparison, terminal, on_page in zip(found.comparisons, rows, page, strict=True):
        kinds.add(score_metric_kind(comparison))
        written = numbers.format_delta_interval(comparison.delta, score_metric_kind(comparison))
        shown = [cell.text for cell in on_page.cells]
        assert (terminal["Δ"], terminal["95 % interval"]) == (written.value, written.ends)
        assert (on_page.cells[6].text, on_page.cells[6].note) == (written.value, written.ends)
        assert [terminal["n"], terminal["baseline"], terminal["value"]] == shown[3:6]
        told = said[f"quantyard.task.{comparison.task}.{comparison.metric}.delta"]
        assert numbers.format_delta_interval(_interval(told), score_metric_kind(comparison)) == written
        in_report = (comparison.task, comparison.metric)
        on_card = f"{comparison.task} ({comparison.metric})"
        quoted = [
            row
            for row in _markdown(render_report_markdown(report))
            if (row.get("task"), row.get("metric")) == in_report
        ]
        quoted += [row for row in _markdown(_card(manifest)) if row.get("task") == on_card]
        for row in (row for row in quoted if QUANT in row):
            n_quoted += 1
            baseline = row[report.baseline].partition(" (chance")[0]
            assert [row["questions"], baseline, row[QUANT], row["Δ (95 %)"]] == [*shown[3:6], str(written)]
    assert kinds == {"share", "relative"} and n_quoted > len(found.comparisons)


def test_a_change_of_bits_per_byte_is_told_in_per_cent() -> None:
    found = Interval(value=0.0123, low=0.0031, high=0.0215)
    assert str(numbers.format_delta_interval(found, "relative")) == "+1.23 % (+0.31 to +2.15)"


def _interval(text: str) -> Interval:
    """"0.01 [0.005, 0.015]" as an annotation has it."""
    value, low, high = (float(part) for part in re.findall(r"-?[\d.]+", text)[:3])
    return Interval(value=value, low=low, high=high)


# ---- the rules ---------------------------------------------------------------------------------------


@given(st.floats(1e-9, 1e9))
def test_numbers_for_programs_are_plain_decimals_within_half_of_their_sixth_digit(x: float) -> None:
    text = numbers.format_for_machine(-x)
    assert re.fullmatch(r"-\d+(\.\d+)?", text)
    assert float(text) == pytest.approx(-x, rel=1e-5)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (numbers.format_memory(105_453_920), "101 MiB"), (numbers.format_exact_bytes(105_453_920), "105,453,920 bytes"),
        (numbers.format_bits_per_weight(6.1712), "6.17"), (numbers.format_bits_per_weight(0), "—"),
        (numbers.format_count(12345), "12,345"),
        (numbers.format_forecast_count(12345), "13,000"), (numbers.format_forecast_count(7), "7"),
        (numbers.format_weight_count(1_100_048_384), "1.10 B"),
        (numbers.format_weight_count(134_515_008), "135 M"), (numbers.format_elapsed(10.24), "10.2 s"),
        (numbers.format_elapsed(600), "10 min"),
        (numbers.format_change(0.00123), "+0.12 %"), (numbers.format_change(-0.25), "−25.0 %"),
        (numbers.format_clock(58), "0:58"), (numbers.format_clock(3723), "1:02:03"),
        (numbers.format_running(58), "elapsed 0:58"),
        (numbers.format_running(58, 240), "elapsed 0:58 · about 4 min left"),
        (numbers.format_running(600, 0), "elapsed 10:00 · about 1 s left"),
        (numbers.format_rough_percent(0.045), "4.5 %"), (numbers.format_rough_percent(0.314), "31 %"),
        (numbers.format_p_value(0.0004), "< 0.001"), (numbers.format_p_value(0.0456), "0.046"),
        (numbers.format_p_value(0.456), "0.46"),
        (numbers.format_as_written(5.0), "5"), (numbers.format_as_written(0.05), "0.05"),
        (numbers.format_as_written(1e-9), "1e-09"),
        (numbers.format_as_written(1.17e9), "1170000000"), (numbers.format_margin(0.01), "1 %"),
        (numbers.format_axis_label(-0.5), "−0.5"),
    ],
)  # fmt: skip
def test_each_figure_has_its_rule(written: str, expected: str) -> None:
    assert written == expected


# ---- nobody else formats -----------------------------------------------------------------------------

_NUMBER: re.Pattern[str] = re.compile(r"[-+ ]?#?0?\d*(,|_|[,_]?(\.\d+)?[eEfFgG%])$")
_IN_TEXT = re.compile(r"\{\w*:([^{}]*)\}")
# Where numbers are no figures that somebody measured: a refusal names a limit and what passed it, in whole numbers.
_REFUSALS = {
    "builder": "what of a model or a text is beyond a limit",
    "eval/analysis/chunks.py": "tokens of a text that is too short",
    "eval/datasets.py": "seconds until the next try",
    "eval/llama/compared_models.py": "tokens of a vocabulary",
    "quantyard/cli/values.py": "characters of a setting",
    "quantyard/engines/stage_io.py": "bytes that are left, hours of a limit",
    "quantyard/files": "bytes and names beyond a limit",
    "quantyard/formats": "bytes, values and digits beyond a limit",
    "quantyard/hub": "bytes and parts beyond a limit",
    "quantyard/network": "bytes and seconds beyond a limit",
    "quantyard/plan/calibration_inputs.py": "the place of a byte",
    "quantyard/plan/local_tasks.py": "tasks beyond a limit",
    "quantyard/plan/lora.py": "bytes beyond a limit",
    "quantyard/protocol": "bytes beyond a limit",
    "quantyard/publish/hub/errors.py": "seconds that the Hub asks to wait",
    "quantyard/publish/registry/login.py": "seconds that a helper may take",
    "quantyard/publish/registry/errors.py": "bytes that a registry lost",
    "quantyard/publish/verify.py": "bytes of a file that was changed, compared to the last one",
    "quantyard/quants/recipe.py": "characters beyond a limit",
    "quantyard/sandbox": "bytes and seconds beyond a limit",
    "quantyard/store": "bytes beyond a limit",
    "server": "bytes and seconds beyond a limit",
}
_WHOLE = frozenset({",", "g", ".0f", ".1f"})  # forms of a refusal
_OWN_FORM = {  # file → a form that another program reads
    "eval/analysis/kl_divergence.py": "g",  # the key of a percentile
    "quantyard/card/app_files.py": "g",  # the count of weights that LM Studio reads
    "quantyard/cli/settings_file.py": "f",  # a number of TOML as the text of a setting
    "quantyard/publish/registry/artifact.py": ".2f",  # the count of weights that Docker Model Runner shows
}


def _forms(tree: ast.AST) -> Iterator[str]:
    """Every form of a number: of f-strings, format() and str.format."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FormattedValue) and node.format_spec is not None:
            yield "".join(str(v.value) if isinstance(v, ast.Constant) else "" for v in node.format_spec.values)  # type: ignore[attr-defined]
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "format":
            yield from (str(arg.value) for arg in node.args[1:] if isinstance(arg, ast.Constant))
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
            text = node.func.value.value if isinstance(node.func.value, ast.Constant) else ""
            yield from _IN_TEXT.findall(text) if isinstance(text, str) else ()


_WRITES_YAML = ("quantyard/card/hub_results.py", "quantyard/card/app_files.py")  # what the Hub and LM Studio read
_EARLIER = ("quantyard/card/cells_0_1.py",)  # what reads cards of an earlier version writes as that did


def _files() -> list[str]:
    folders = ("quantyard", "builder", "eval", "server")
    found = (path.relative_to(REPO_DIR).as_posix() for folder in folders for path in (REPO_DIR / folder).rglob("*.py"))
    return sorted(path for path in found if not path.startswith("quantyard/formatting/") and path not in _EARLIER)


@cache
def _tree(path: str) -> ast.Module:
    return ast.parse((REPO_DIR / path).read_text(encoding="utf-8"))


@cache
def _classes() -> list[tuple[str, str]]:
    """Each class of ours: its name and its module."""
    trees = ((path, _tree(path)) for path in _files())
    return [(node.name, path) for path, tree in trees for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def _is_refusal(path: str) -> bool:
    return any(path == place or path.startswith(f"{place}/") for place in _REFUSALS)


@pytest.mark.commands
def test_no_module_but_formatting_has_a_form_for_numbers() -> None:
    wrong = []
    for path in _files():
        for form in _forms(_tree(path)):
            allowed = _OWN_FORM.get(path) == form or (_is_refusal(path) and form in _WHOLE)
            if _NUMBER.fullmatch(form) and not allowed:
                wrong.append(f"{path}: {form}")
    assert wrong == [], "write it with quantyard.formatting.numbers"


_UNITS_OF_OTHERS = re.compile(r"(?<![a-z])t/s\b|tok/s|top-1\b|(MB|GB|kB) of (memory|RAM)|[0-9]% [a-z]|/ ?sec\b")
_OTHERS_WORDS = ("quantyard/card/layout_0_1.py", "builder/twin.py", "builder/parity.py")  # top-1: of a twin


def _words(path: str) -> Iterator[str]:
    """Every text in a module that is not a docstring."""
    docstrings = {
        id(node.body[0].value) for node in ast.walk(_tree(path))
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and node.body
        and isinstance(node.body[0], ast.Expr)
    }  # fmt: skip
    for node in ast.walk(_tree(path)):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings:
            yield node.value


@pytest.mark.commands
def test_a_unit_has_one_name() -> None:
    """tokens/s, same top token, memory in MiB and GiB, a per cent sign after a space."""
    found = {
        f"{path}: {text[:80]}" for path in _files() if path not in _OTHERS_WORDS
        for text in _words(path) if _UNITS_OF_OTHERS.search(text)
    }  # fmt: skip
    presets = (REPO_DIR / "models.toml").read_text(encoding="utf-8")
    assert found == set() and not _UNITS_OF_OTHERS.search(presets)


@pytest.mark.commands
def test_every_exception_is_still_needed() -> None:
    texts = {path: list(_forms(_tree(path))) for path in _files()}
    assert {place for place in _REFUSALS if not any(
        _NUMBER.fullmatch(form) for path, forms in texts.items() if path == place or path.startswith(f"{place}/")
        for form in forms
    )} == set()  # fmt: skip
    assert {path for path, form in _OWN_FORM.items() if form not in texts.get(path, [])} == set()


# ---- one name, one thing -----------------------------------------------------------------------------


@pytest.mark.commands
@pytest.mark.parametrize("name", ["Subject", "Recipe", "Measured", "Table", "Check"])
def test_a_class_of_this_name_is_defined_once(name: str) -> None:
    defined = [path for each, path in _classes() if each == name]
    assert len(defined) <= 1, defined


@pytest.mark.commands
@pytest.mark.parametrize(
    ("words", "home"),
    [("NormalDist", "quantyard/metrics/intervals.py"), ("def wilson_interval", "quantyard/metrics/intervals.py"),
     ("def is_unquantized_type", "quantyard/quants/catalog.py"), ("def quant_family", "quantyard/quants/catalog.py"),
     ("def kv_bytes", "quantyard/memory/kv_cache.py"), ("import yaml", "quantyard/formats/strict_yaml.py")],
)  # fmt: skip
def test_a_definition_has_one_home(words: str, home: str) -> None:
    """z, Wilson's interval, "unquantized", the bytes of a KV cache, the reading of YAML."""
    texts = {path: (REPO_DIR / path).read_text(encoding="utf-8") for path in _files()}
    found = [path for path, text in texts.items() if re.search(rf"\b{words}\b", text)]
    assert [path for path in found if path not in _WRITES_YAML] == [home]
