"""The commands that build, measure and serve."""

from __future__ import annotations

import argparse
import os
import sys
from dataclasses import replace

from quantyard.cli.matrix import matrix_plan
from quantyard.cli.output import data, people, print_json, print_line, reporter_for
from quantyard.cli.release import write_report
from quantyard.cli.render import build as summary
from quantyard.cli.render import evaluation as eval_summary
from quantyard.cli.run import built_for, engine_of, foreseen, plan_of, quants_setting, request_of, run_plan
from quantyard.engines.images import IMAGES
from quantyard.errors import BadRequest
from quantyard.execution.manifest_writer import BuiltFile, Measured
from quantyard.execution.runner import Builder
from quantyard.hub.client import HubAccess
from quantyard.paths import REPO_DIR
from quantyard.plan.api_tests import add_contract
from quantyard.quants.catalog import QUANTS
from quantyard.quants.selection import parse_list
from quantyard.requests import BuildRequest, MeasureRequest, PublishRequest
from quantyard.sources.presets import presets
from quantyard.store.artifacts import HashCache
from quantyard.store.manifest import read_manifest

_DEMO_QUANTS = "Q4_K_M,Q8_0"
_DEMO_SUITE = "smoke"
_EVAL_SUITE = "quick"


def build(args: argparse.Namespace) -> None:
    _run_build(request_of(args))


def measure(args: argparse.Namespace) -> None:
    request = request_of(args)
    asked = request.measure or MeasureRequest()
    _run_build(replace(request, measure=replace(asked, suite=asked.suite or _EVAL_SUITE)))


def contract(args: argparse.Namespace) -> None:
    request = request_of(args)
    builder, _built = built_for(request, add_contract(plan_of(request), request.threads))
    if request.json:
        print_json({"contracts": [report.model_dump(mode="json") for report in builder.contracts]})
    else:
        data().print(summary.contract_text(builder.contracts), markup=False, soft_wrap=True)
    if not all(report.passed for report in builder.contracts):
        sys.exit(1)


def image(args: argparse.Namespace) -> None:
    """Build what is not built, then pack each file; several get the quant's name at the end of their tag."""
    from quantyard.serve import model_image

    request = request_of(args)
    pack = request.pack
    assert pack is not None
    model_image.check_tag(pack.tag)
    engine, _reason = engine_of(request)
    if engine.name != "docker":
        raise BadRequest("An image needs Docker, and ENGINE is local.", "See what is missing: make doctor")
    builder, built = built_for(request, plan_of(request))
    manifest = read_manifest(builder.store.folder / "manifest.json")
    assert manifest is not None
    with reporter_for(people()) as reporter:
        engine.prepare("server", reporter.note)
        base = engine.describe("server")["base_digest"]
        for file in built:
            tag = pack.tag if len(built) == 1 else f"{pack.tag}-{file.quant.lower()}"
            reporter.note(f"packing {file.path.name} as {tag}")
            image = model_image.model_image(tag, file.quant, file.path, manifest)
            model_image.build_model_image(REPO_DIR, image, base, request.images, push=pack.push)
            print_line(tag)


def lora(args: argparse.Namespace) -> None:
    from quantyard.plan.lora import lora_json, plan_lora, publish_lora

    request, console = request_of(args), people()
    access, hashes = HubAccess(request.endpoint, request.hf_token), HashCache(request.artifacts / ".hashes.json")
    builder, _none = run_plan(request, plan_lora(request, access, hashes))
    path = publish_lora(builder)
    if request.json:
        print_json(lora_json(builder, path))
        return
    print_line(path)
    console.print(f"Serve its base model with it:  LORA_FILE={path} docker compose up", markup=False, soft_wrap=True)


def serve(args: argparse.Namespace) -> None:
    from quantyard.serve.run import compose_up, serve_local

    request = request_of(args)
    engine, _reason = engine_of(request)
    with reporter_for(people()) as reporter:
        engine.prepare("server", reporter.note)
    if engine.name == "docker":
        sys.exit(compose_up(REPO_DIR, os.environ))
    sys.exit(serve_local(request, REPO_DIR / ".venv-local" / "bin" / "python", os.environ))


def _run_build(request: BuildRequest) -> None:
    builder, built = built_for(request, plan_of(request))
    _print_built(request, builder, built)


def plan(args: argparse.Namespace) -> None:
    request = request_of(args)
    if request.measure is not None and not request.measure.suite and not request.matrix_quants:
        request = replace(request, measure=None)
    engine, reason = engine_of(request)
    request, planned = matrix_plan(request) if request.matrix_quants else (request, plan_of(request))
    builder, finished, cost = foreseen(request, planned, engine)
    if request.json:
        print_json(summary.plan_json(builder.plan, finished, cost, engine.name))
        return
    data().print(summary.plan_text(builder.plan, finished, cost, engine.name, reason), soft_wrap=True)
    cost.check_disk(request.artifacts, quants_setting(request))


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
    from quantyard.workflows.demo import DEMO_NAME, demo_folder

    request = request_of(args)
    console = people()
    engine, reason = engine_of(request)
    console.print(summary.demo_text(engine.name, reason), soft_wrap=True)
    with reporter_for(console) as reporter:
        folder = demo_folder(request, engine, reporter)
    measure = MeasureRequest(suite=_DEMO_SUITE)
    request = replace(request, model=str(folder), quants=parse_list(_DEMO_QUANTS), measure=measure)
    _run_build(request)
    page = write_report(request, PublishRequest())
    console.print(summary.demo_end(DEMO_NAME, _DEMO_QUANTS, folder, page), soft_wrap=True)


def images(args: argparse.Namespace) -> None:
    request = request_of(args)
    engine, _reason = engine_of(request)
    with reporter_for(people()) as reporter:
        for image in IMAGES:
            engine.prepare(image, reporter.note)
    described = (f"{name}={value}" for image in IMAGES for name, value in engine.describe(image).items())
    for line in dict.fromkeys(described):  # what they have in common once
        print_line(line)


def _print_built(request: BuildRequest, builder: Builder, built: list[BuiltFile]) -> None:
    measured = builder.measured
    if request.json:
        made = summary.built_json(builder.plan, built, builder.ran, builder.store.folder / "manifest.json")
        print_json(made | eval_summary.measured_json(measured) if measured else made)
        return
    text = summary.built_text(built, builder.store.folder, bool(builder.ran), measured is not None)
    people().print(text, soft_wrap=True)
    if measured:
        _print_measured(measured)
        return
    for file in built:
        print_line(file.path)


def _print_measured(measured: Measured) -> None:
    console = people()
    console.print(eval_summary.where_text(measured), soft_wrap=True)
    out = data()
    out.print(eval_summary.files_table(measured.report, out.width))
    if table := eval_summary.tasks_table(measured.report):
        out.print()
        out.print(table)
