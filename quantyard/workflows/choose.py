"""Which of the files that were built and measured is the one for a memory and a speed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from quantyard.choose.candidates import Candidate, ChoiceSet, find_choice_set, nothing_measured, paths_of
from quantyard.choose.pick import Budget, Choice, nearest
from quantyard.choose.pick import choose as pick_file
from quantyard.choose.refusals import no_divergence, nothing_fits, unknown_memory
from quantyard.choose.suggestions import remedies
from quantyard.errors import BadRequest
from quantyard.hardware.machine import memory_bytes
from quantyard.requests import BuildRequest, ChooseRequest
from quantyard.store.manifest import Manifest, read_manifest
from quantyard.store.stages import ModelStore
from quantyard.workflows.planning import plan_of


@dataclass(frozen=True)
class Chosen:
    """The files, the budget, and the choice; `choice` is None where no file meets the limits."""

    choices: ChoiceSet
    budget: Budget
    choice: Choice | None

    @property
    def best(self) -> Candidate:
        """The file to take.

        Raises:
            BadRequest: no file meets the limits.
        """
        if self.choice is None:
            raise self.refusal("…")
        return self.choice.best

    def refusal(self, model: str) -> BadRequest:
        """The error where no file meets the limits, with what would help.

        Args:
            model: what the user typed after MODEL=.
        """
        candidates = self.choices.candidates
        helps = remedies(self.choices, self.budget, model)
        return nothing_fits(self.choices, self.budget, nearest(candidates, self.budget), helps)


def choose(request: BuildRequest) -> Chosen:
    """The best file among those that were built and measured, with the runner-up.

    Raises:
        BadRequest: nothing was measured, or what the limits are about was not.
    """
    asked = request.choose or ChooseRequest()
    # Nothing is made here, so nothing has to be allowed: a GGUF that is quantized already was measured as it is.
    plan = plan_of(replace(request, measure=None, allow_requantize=True))
    folder = ModelStore(request.artifacts, plan.source.model).folder
    manifest = read_manifest(folder / "manifest.json")
    if manifest is None:
        raise nothing_measured(f"nothing is built in {folder}", ["Q4_K_M", "Q8_0"])
    source: Path | None = plan.source.local.folder if plan.source.local else None
    paths = paths_of(manifest, folder, source, asked.quants)
    suite = request.measure.suite if request.measure else ""
    return choose_from(manifest, plan.source.model.name, paths, suite, asked)


def choose_from(manifest: Manifest, name: str, paths: Mapping[str, Path], suite: str, asked: ChooseRequest) -> Chosen:
    """The choice among these files.

    Args:
        name: the model's.
        paths: the files in question: quant → where it is.
        suite: whose evaluation; "": the one that holds most of them.

    Raises:
        BadRequest: none of them was measured, or what the limits are about was not.
    """
    choices = find_choice_set(manifest, name, paths, suite, asked.context_tokens, asked.parallel)
    budget = budget_of(asked)
    if any(candidate.memory_bytes is None for candidate in choices.candidates):
        raise unknown_memory(choices)
    if budget.max_kld is not None and choices.metric != "mean KLD":
        raise no_divergence(choices)
    return Chosen(choices, budget, pick_file(choices.candidates, budget))


def budget_of(asked: ChooseRequest) -> Budget:
    """What the file must keep; the memory is this machine's unless another was named."""
    if asked.ram_bytes is not None:
        return Budget(asked.ram_bytes, "as asked", asked.min_tokens_per_s, asked.max_kld)
    why = "all of this machine's; RAM=… is another"
    return Budget(memory_bytes(), why, asked.min_tokens_per_s, asked.max_kld)
