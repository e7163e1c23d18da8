"""The commands that build, measure and serve."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from quantyard.cli.output import data, people, print_json, print_line
from quantyard.cli.precedence import compose_environment, resolve
from quantyard.cli.render import build as summary
from quantyard.cli.render import evaluation as eval_summary
from quantyard.cli.run import request_of
from quantyard.cli.settings_file import read_settings_file
from quantyard.cli.terminal_reporter import TerminalReporter
from quantyard.execution.manifest_writer import Measured
from quantyard.quants.catalog import QUANTS
from quantyard.requests import BuildRequest
from quantyard.sources.presets import presets
from quantyard.workflows import build as workflow
from quantyard.workflows.planning import plan as plan_workflow
from quantyard.workflows.results import Built


def build(args: argparse.Namespace) -> None:
    request = request_of(args)
    _print_built(request, workflow.build(request, TerminalReporter()))


def measure(args: argparse.Namespace) -> None:
    request = request_of(args)
    _print_built(request, workflow.evaluate(request, TerminalReporter()))


def contract(args: argparse.Namespace) -> None:
    request = request_of(args)
    reports = workflow.check_api(request, TerminalReporter()).contracts
    if request.json:
        print_json({"contracts": [report.model_dump(mode="json") for report in reports]})
    else:
        data().print(summary.contract_text(reports), markup=False, soft_wrap=True)
    if not all(report.passed for report in reports):
        sys.exit(1)


def image(args: argparse.Namespace) -> None:
    from quantyard.workflows.image import pack

    for tag in pack(request_of(args), TerminalReporter()):
        print_line(tag)


def lora(args: argparse.Namespace) -> None:
    from quantyard.workflows.lora import make_lora

    request = request_of(args)
    adapter = make_lora(request, TerminalReporter())
    if request.json:
        print_json(summary.lora_json(adapter))
        return
    print_line(adapter.path)
    what = f"Serve its base model with it:  LORA_FILE={adapter.path} docker compose up"
    people().print(what, markup=False, soft_wrap=True)


def serve(args: argparse.Namespace) -> None:
    from quantyard.workflows.serve import serve

    request, given = request_of(args), resolve(args, os.environ, read_settings_file(Path.cwd()))
    sys.exit(serve(request, compose_environment(request.artifacts, given, os.environ), TerminalReporter()))


def plan(args: argparse.Namespace) -> None:
    request = request_of(args)
    planned = plan_workflow(request)
    if request.json:
        print_json(summary.plan_json(planned))
        return
    data().print(summary.plan_text(planned), soft_wrap=True)
    planned.check_disk()


def quants(args: argparse.Namespace) -> None:
    if request_of(args).json:
        print_json({"quants": [summary.quant_json(quant) for quant in QUANTS]})
    else:
        data().print(summary.quants_table(QUANTS))


def models(args: argparse.Namespace) -> None:
    if request_of(args).json:
        print_json({"models": [summary.preset_json(preset) for preset in presets()]})
    else:
        data().print(summary.presets_text(presets()), soft_wrap=True)


def doctor(args: argparse.Namespace) -> None:
    from quantyard.workflows import doctor

    request = request_of(args)
    findings = doctor.examine(request)
    if request.json:
        print_json({"findings": [finding.__dict__ for finding in findings]})
    else:
        data().print(summary.doctor_text(findings), soft_wrap=True)
    if any(finding.state == "missing" for finding in findings):
        sys.exit(1)


def demo(args: argparse.Namespace) -> None:
    from quantyard.workflows.demo import demo

    request = request_of(args)
    found = demo(request, TerminalReporter())
    _print_built(request, found.built)
    people().print(summary.demo_end(found), soft_wrap=True)


def images(args: argparse.Namespace) -> None:
    from quantyard.workflows.image import prepare_tools

    described = prepare_tools(request_of(args), TerminalReporter())
    lines = (f"{name}={value}" for found in described.values() for name, value in found.items())
    for line in dict.fromkeys(lines):  # what they have in common once
        print_line(line)


def _print_built(request: BuildRequest, built: Built) -> None:
    if request.json:
        print_json(summary.built_json(built))
        return
    people().print(summary.built_text(built), soft_wrap=True)
    if built.measured:
        _print_measured(built.measured)
        return
    for file in built.files:
        print_line(file.path)


def _print_measured(measured: Measured) -> None:
    people().print(eval_summary.where_text(measured), soft_wrap=True)
    out = data()
    out.print(eval_summary.files_table(measured.report, out.width))
    if table := eval_summary.tasks_table(measured.report):
        out.print()
        out.print(table)
