"""Chooses one of the built and measured files for a memory size and a speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from quantyard.choose.candidates import (
    ChoiceCandidate,
    ChoiceSet,
    candidate_paths,
    find_choice_set,
    no_candidates_error,
)
from quantyard.choose.pick import Choice, ChoiceBudget, nearest_candidate
from quantyard.choose.pick import choose_candidate as pick_file
from quantyard.choose.refusals import candidate_memory_unknown, choice_needs_divergence, no_candidate_fits
from quantyard.choose.suggestions import choice_remedies
from quantyard.errors import BadRequest
from quantyard.hardware.machine import machine_memory_bytes
from quantyard.metrics.choice import silent_zone_of
from quantyard.requests import BuildRequest, ChooseRequest
from quantyard.store.manifest import Manifest, read_manifest
from quantyard.store.stages import ModelStore
from quantyard.workflows.planning import workflow_plan


@dataclass(frozen=True)
class Chosen:
    """The files, the limits, and the choice; `choice` is None if no file meets the limits."""

    choices: ChoiceSet
    budget: ChoiceBudget
    choice: Choice | None

    @property
    def best(self) -> ChoiceCandidate:
        """The chosen file.

        Raises:
            BadRequest: no file meets the limits.
        """
        if self.choice is None:
            raise self.refusal("…")
        return self.choice.best

    def refusal(self, model: str) -> BadRequest:
        """The error if no file meets the limits, with suggestions.

        Args:
            model: the value of MODEL, for the commands in the hint.
        """
        candidates = self.choices.candidates
        helps = choice_remedies(self.choices, self.budget, model)
        return no_candidate_fits(self.choices, self.budget, nearest_candidate(candidates, self.budget), helps)


def choose(request: BuildRequest) -> Chosen:
    """The best file among those that were built and measured, with the runner-up.

    Raises:
        BadRequest: nothing was measured, or a value that the limits need was not measured.
    """
    asked = request.choose or ChooseRequest()
    # Nothing is made here, so a quantized source needs no permission.
    plan = workflow_plan(replace(request, measure=None, allow_requantize=True))
    folder = ModelStore(request.artifacts, plan.source.model).folder
    manifest = read_manifest(folder / "manifest.json")
    if manifest is None:
        raise no_candidates_error(f"nothing is built in {folder}", ["Q4_K_M", "Q8_0"])
    source: Path | None = plan.source.local.folder if plan.source.local else None
    paths = candidate_paths(manifest, folder, source, asked.quants)
    suite = request.measure.suite if request.measure else ""
    return workflow_choose_from_manifest(manifest, plan.source.model.name, paths, suite, asked)


def workflow_choose_from_manifest(
    manifest: Manifest, name: str, paths: Mapping[str, Path], suite: str, asked: ChooseRequest
) -> Chosen:
    """The choice among these files.

    Args:
        name: the model's name.
        paths: quant → path of each file in question.
        suite: the evaluation to use; "": the one that measured most of the files.

    Raises:
        BadRequest: nothing was measured, or a value that the limits need was not measured.
    """
    choices = find_choice_set(manifest, name, paths, suite, asked.context_tokens, asked.parallel, asked.cache_type)
    budget = choice_budget(asked)
    if any(candidate.memory_bytes is None for candidate in choices.candidates):
        raise candidate_memory_unknown(choices)
    if budget.max_kld is not None and choices.metric not in ("mean KLD", "KLD of the file"):
        raise choice_needs_divergence(choices)
    return Chosen(choices, budget, pick_file(choices.candidates, budget, silent_zone_of(choices.metric)))


def choice_budget(asked: ChooseRequest) -> ChoiceBudget:
    """The limits; the memory defaults to this machine's."""
    if asked.ram_bytes is not None:
        return ChoiceBudget(asked.ram_bytes, "as asked", asked.min_tokens_per_s, asked.max_kld)
    why = "all of this machine's; set RAM=… for another"
    return ChoiceBudget(machine_memory_bytes(), why, asked.min_tokens_per_s, asked.max_kld)
