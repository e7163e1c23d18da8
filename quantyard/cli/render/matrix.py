"""The end of a matrix: the Pareto front, the beaten files, the file to take, and the paths of the results."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from quantyard.choose.candidates import ChoiceSet
from quantyard.choose.pick import Choice, ChoiceBudget
from quantyard.cli.render.build import terminal_trusted_files
from quantyard.cli.render.choice import terminal_choice_line
from quantyard.cli.render.styled import escape_rich_markup
from quantyard.errors import StageFailed
from quantyard.execution.manifest_writer import BuiltFile
from quantyard.formatting.columns import format_columns
from quantyard.metrics.pareto import pareto_beaten_by, pareto_entries, pareto_metric, pareto_standings
from quantyard.protocol.measurements import EvalReport
from quantyard.workflows.matrix import Matrix
from quantyard.workflows.results import Built

_Fact = tuple[str, str]


def terminal_pareto_front(report: EvalReport) -> str:
    """The front, and a line for each beaten file; empty if quality was not measured."""
    entries = sorted(pareto_entries(report), key=lambda entry: -entry.size_bytes)
    if not entries:
        return ""
    best = [label for label, winners in pareto_beaten_by(entries).items() if not winners]
    facts = [("Front", f"{', '.join(best)}: no other file is at least as small, as accurate and as fast")]
    facts += [(label, text) for label, text in pareto_standings(entries, pareto_metric(report)).items()]
    return format_columns([(escape_rich_markup(name), escape_rich_markup(text)) for name, text in facts])


def terminal_matrix_end(found: Matrix, model: str) -> list[_Fact]:
    """The file to take, and the paths of the results."""
    built, measured = found.built, found.built.measured
    assert measured is not None, "a matrix has one"
    chosen = found.chosen
    facts = (
        terminal_matrix_choice(chosen.choices, chosen.budget, chosen.choice, model)
        if chosen
        else terminal_matrix_no_choice(found.not_chosen, model)
    )
    facts += terminal_matrix_paths(found.page, measured.folder, built.manifest_path) + terminal_matrix_imatrices(
        built.files
    )
    return facts if built.ran else [*facts, terminal_trusted_files(built.files[0].path)]


def terminal_matrix_choice(choices: ChoiceSet, budget: ChoiceBudget, choice: Choice | None, model: str) -> list[_Fact]:
    """The file to take on this machine, and the command for another memory and speed."""
    if choice is None:
        return [("Take", "no file fits in the memory of this machine"), _render_other_choice(model)]
    return [("Take", escape_rich_markup(terminal_choice_line(choices, budget, choice))), _render_other_choice(model)]


def terminal_matrix_no_choice(why: str, model: str) -> list[_Fact]:
    """The reason why no file can be chosen, and the command for another memory and speed."""
    return [("Take", escape_rich_markup(why)), _render_other_choice(model)]


def _render_other_choice(model: str) -> _Fact:
    return "", escape_rich_markup(f"for another memory and speed: make choose MODEL={model} RAM=8GiB MIN_TPS=20")


def terminal_matrix_paths(page: Path, report: Path, manifest: Path) -> list[_Fact]:
    """The files to open."""
    plots = len({path.stem.rsplit("-", 1)[0] for path in (report / "plots").glob("*.svg")})  # light and dark
    drawn = f", {plots} plots beside it" if plots else ""
    return [
        ("Page", escape_rich_markup(str(page))), ("Card", escape_rich_markup(str(page.with_name("README.md")))),
        ("Report", escape_rich_markup(f"{report / 'report.md'}{drawn}")),
        ("Manifest", escape_rich_markup(str(manifest))),
    ]  # fmt: skip


def terminal_matrix_imatrices(built: Sequence[BuiltFile]) -> list[_Fact]:
    """The importance matrices, and the files that were made with them."""
    quants: dict[Path, list[str]] = {}
    for file in built:
        if file.record.imatrix:
            quants.setdefault(file.path.with_name(file.record.imatrix.file), []).append(file.quant)
    return [("Imatrix", escape_rich_markup(f"{path}, for {', '.join(names)}")) for path, names in quants.items()]


def terminal_matrix_head(built: Built) -> str:
    """The number of built files."""
    n_files = len(built.files)
    files = f"{n_files} file{'s' * (n_files != 1)}"
    return f"[bold green]{'' if built.ran else 'Nothing to do: '}{files} built, verified and measured[/]"


def terminal_matrix_failures(failures: Mapping[str, StageFailed], others: bool) -> str:
    """The failed steps and the reasons. `others`: whether the other steps succeeded."""
    lines = [
        f"  [red]{escape_rich_markup(label)}[/]: {escape_rich_markup(f.message)} {escape_rich_markup(f.hint)}"
        for label, f in failures.items()
    ]
    return "\n".join([f"[bold red]{len(failures)} failed[/]{', the others are done' * others}:", *lines])
