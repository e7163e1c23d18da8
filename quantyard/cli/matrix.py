"""The command that makes every useful quant of a model in one run, and compares them."""

from __future__ import annotations

import argparse
import sys
from dataclasses import replace
from pathlib import Path

from quantyard.choose.candidates import Field, find_field
from quantyard.choose.pick import Budget, Choice, choose
from quantyard.cli.choose import budget_of
from quantyard.cli.output import data, people, print_json
from quantyard.cli.release import write_report
from quantyard.cli.render import build as summary
from quantyard.cli.render import evaluation as eval_summary
from quantyard.cli.render import matrix as say
from quantyard.cli.render.build import trusted_fact
from quantyard.cli.render.choice import unknown_memory
from quantyard.cli.run import built_for, plan_of, request_of, source_of
from quantyard.errors import BadRequest, StageFailed
from quantyard.execution.manifest_writer import BuiltFile
from quantyard.execution.runner import Builder
from quantyard.formatting.columns import columns
from quantyard.plan.steps import BuildPlan
from quantyard.quants.selection import parse_list
from quantyard.requests import BuildRequest, ChooseRequest, MeasureRequest, PublishRequest
from quantyard.store.manifest import read_manifest

_QUANTS = "Q2_K,Q3_K_M,Q4_K_M,Q5_K_M,Q6_K,Q8_0"
_SUITE = "quick"


def matrix(args: argparse.Namespace) -> None:
    """One conversion for all, one baseline for all; a quant that fails leaves the others alone."""
    request, plan = matrix_plan(request_of(args))
    builder, built = built_for(request, plan, keep_going=True)
    failed = list(builder.failures.values())
    if builder.measured is None:  # then there is nothing to compare
        if len(failed) > 1:
            people().print(say.failures_text(builder.failures, others=False), soft_wrap=True)
        raise failed[0]
    page = _write_page(request, builder, built)
    if request.json:
        print_json(_json(builder, built, page))
    else:
        _print(request, builder, built, page)
    if failed:
        people().print(say.failures_text(builder.failures, others=True), soft_wrap=True)
        sys.exit(failed[0].code)


def matrix_plan(request: BuildRequest) -> tuple[BuildRequest, BuildPlan]:
    """The request with its quants, and its plan. QUANTS decides; else what the preset recommends, else one of each
    size. Recipes of RECIPE come beside them.
    """
    source = source_of(request)
    asked = request.measure or MeasureRequest()
    measure = replace(asked, suite=asked.suite or _SUITE)
    request = replace(request, measure=measure, imatrix=request.imatrix or "auto")
    names = request.matrix_quants or (",".join(source.preset.quants) if source.preset else _QUANTS)
    own = tuple(quant for quant in request.quants if quant.recipe)
    quants = parse_list(names, [quant.recipe for quant in own if quant.recipe], setting="QUANTS")
    request = replace(request, quants=tuple(dict.fromkeys((*quants, *own))), matrix_quants=names)
    return request, plan_of(request, source)


# ---- what it ends with -------------------------------------------------------------------------------


def _write_page(request: BuildRequest, builder: Builder, built: list[BuiltFile]) -> Path:
    """The page of what was made. LIMIT, TASKS and the like make another suite of it, whose name tells."""
    quants = tuple(quant for quant in request.quants if quant.name in {file.quant for file in built})
    assert builder.measured is not None, "the caller has looked"
    measure = replace(request.measure or MeasureRequest(), suite=builder.measured.report.suite.name)
    return write_report(replace(request, quants=quants, measure=measure), PublishRequest(), builder.plan)


def _print(request: BuildRequest, builder: Builder, built: list[BuiltFile], page: Path) -> None:
    measured = builder.measured
    assert measured is not None
    people().print(say.head_text(len(built), bool(builder.ran)))
    out = data()
    out.print(eval_summary.files_table(measured.report, out.width))
    if front := say.front_text(measured.report):
        out.print(f"\n{front}", soft_wrap=True)
    facts = _choice_facts(request, builder, built)
    facts += say.where_facts(page, measured.folder, builder.store.folder / "manifest.json")
    facts += say.imatrix_facts(built) + ([] if builder.ran else [trusted_fact(built[0].path)])
    people().print(columns(facts), soft_wrap=True)


def _choice_facts(request: BuildRequest, builder: Builder, built: list[BuiltFile]) -> list[tuple[str, str]]:
    try:
        return say.choice_facts(*_choice(builder, built), request.model)
    except BadRequest as error:  # a suite without speed, say
        return say.no_choice(error.message, request.model)


def _choice(builder: Builder, built: list[BuiltFile]) -> tuple[Field, Budget, Choice | None]:
    """What `make choose` would say without a budget.

    Raises:
        BadRequest: these files cannot be chosen from.
    """
    manifest, asked = read_manifest(builder.store.folder / "manifest.json"), ChooseRequest()
    assert manifest is not None, "the run has written it"
    assert builder.measured is not None, "the caller has looked"
    paths, suite = {file.quant: file.path for file in built}, builder.measured.report.suite.name
    name = builder.plan.source.model.name
    field, budget = find_field(manifest, name, paths, suite, asked.context_tokens, asked.parallel), budget_of(asked)
    if any(found.memory_bytes is None for found in field.candidates):
        raise unknown_memory(field)
    return field, budget, choose(field.candidates, budget)


def _json(builder: Builder, built: list[BuiltFile], page: Path) -> dict[str, object]:
    assert builder.measured is not None
    made = summary.built_json(builder.plan, built, builder.ran, builder.store.folder / "manifest.json")
    failed: dict[str, StageFailed] = builder.failures
    return made | eval_summary.measured_json(builder.measured) | {
        "front": say.front_json(builder.measured.report), "page": str(page), "card": str(page.with_name("README.md")),
        "failed": [{"stage": label, "message": f.message, "exit_code": f.code} for label, f in failed.items()],
    }
