"""The command that makes every useful quant of a model in one run, and compares them."""

from __future__ import annotations

import argparse
import sys

from quantyard.cli.output import data, people, print_json
from quantyard.cli.render import evaluation as eval_summary
from quantyard.cli.render import matrix as say
from quantyard.cli.request import request_of
from quantyard.cli.terminal_reporter import TerminalReporter
from quantyard.formatting.columns import columns
from quantyard.workflows import matrix as workflow
from quantyard.workflows.matrix import Matrix


def matrix(args: argparse.Namespace) -> None:
    """A quant that fails is named at the end, and its exit code is the command's."""
    request = request_of(args)
    found = workflow.matrix(request, TerminalReporter())
    if request.json:
        print_json(say.matrix_json(found))
    else:
        _print(found, request.model)
    if failures := found.built.failures:
        people().print(say.failures_text(failures, others=True), soft_wrap=True)
        sys.exit(next(iter(failures.values())).code)


def _print(found: Matrix, model: str) -> None:
    measured = found.built.measured
    assert measured is not None, "a matrix has one"
    people().print(say.head_text(found.built), soft_wrap=True)
    out = data()
    out.print(eval_summary.files_table(measured.report, out.width))
    if front := say.front_text(measured.report):
        out.print(f"\n{front}", soft_wrap=True)
    people().print(columns(say.end_facts(found, model)), soft_wrap=True)
