"""The command that names the best file for a memory and a speed."""

from __future__ import annotations

import argparse
import os
from dataclasses import replace
from pathlib import Path

from quantyard.choose.candidates import Field, find_field, nothing_measured, paths_of
from quantyard.choose.pick import Budget, choose, nearest
from quantyard.choose.suggestions import remedies
from quantyard.cli.output import data, people, print_json
from quantyard.cli.render import choice as say
from quantyard.cli.run import plan_of, request_of
from quantyard.requests import BuildRequest, ChooseRequest
from quantyard.store.artifacts import ModelStore
from quantyard.store.manifest import read_manifest


def choose_file(args: argparse.Namespace) -> None:
    """Name the best file among those that were built and measured, with the reason and the runner-up."""
    request = request_of(args)
    asked = request.choose
    assert asked is not None
    field, budget = _field(request, asked), budget_of(asked)
    if any(c.memory_bytes is None for c in field.candidates):
        raise say.unknown_memory(field)
    if budget.max_kld is not None and field.metric != "mean KLD":
        raise say.no_divergence(field)
    choice = choose(field.candidates, budget)
    if choice is None:
        people().print(say.files_table(field, budget, None))
        people().print(say.conditions_text(field, budget), soft_wrap=True)
        raise say.nothing_fits(
            field, budget, nearest(field.candidates, budget), remedies(field, budget, request.model)
        )
    if request.json:
        print_json(say.choice_json(field, budget, choice))
        return
    data().print(say.files_table(field, budget, choice))
    data().print()
    data().print(say.choice_text(field, budget, choice, request.model), soft_wrap=True)


def _field(request: BuildRequest, asked: ChooseRequest) -> Field:
    # Nothing is made here, so nothing has to be allowed: a GGUF that is quantized already was measured as it is.
    plan = plan_of(replace(request, measure=None, allow_requantize=True))
    folder = ModelStore(request.artifacts, plan.source.model).folder
    manifest = read_manifest(folder / "manifest.json")
    if manifest is None:
        raise nothing_measured(f"nothing is built in {folder}", ["Q4_K_M", "Q8_0"])
    source: Path | None = plan.source.local.folder if plan.source.local else None
    paths = paths_of(manifest, folder, source, asked.quants)
    suite = request.measure.suite if request.measure else ""
    return find_field(manifest, plan.source.model.name, paths, suite, asked.context_tokens, asked.parallel)


def budget_of(asked: ChooseRequest) -> Budget:
    """What the file must keep; the memory is this machine's unless another was named."""
    if asked.ram_bytes is not None:
        return Budget(asked.ram_bytes, "as asked", asked.min_tokens_per_s, asked.max_kld)
    memory, why = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE"), "all of this machine's; RAM=… is another"
    return Budget(memory, why, asked.min_tokens_per_s, asked.max_kld)
