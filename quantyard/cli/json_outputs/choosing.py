"""The answers of `choose` and `tune`. Sizes are bytes, divergences nats, speeds tokens per second."""

from __future__ import annotations

from typing import Literal

from quantyard.choose.candidates import ChoiceCandidate, ChoiceSet
from quantyard.choose.pick import Choice, ChoiceBudget, missed_choice_limits
from quantyard.choose.removals import choice_removals
from quantyard.cli.json_outputs.base import Finite, JsonOutput, JsonRow
from quantyard.metrics.choice import DecidedBy, silent_zone_of
from quantyard.metrics.pareto import Metric, pareto_beaten_by
from quantyard.protocol.estimates import Interval
from quantyard.protocol.removals import Removal
from quantyard.quants.recipe import Recipe
from quantyard.workflows.tune import Tuned


class BudgetRow(JsonRow):
    """The limits, and how the file will be served."""

    memory_bytes: int
    min_tokens_per_s: float
    max_mean_kld: float | None  # null: no limit
    context_tokens: int
    parallel: int  # requests answered at once
    cache_type: str  # of the KV cache, such as q8_0, or q8_0/f16 for keys and values apart


class CandidateRow(JsonRow):
    """One file to choose from."""

    quant: str
    path: str
    size_bytes: int
    memory_bytes: int | None  # at the wanted context; null: not known exactly
    context_bytes: int | None
    quality: Finite  # in `metric`; the lower the better
    quality_stderr: Finite
    cache_kld: Finite | None  # of the type of the cache, from the same file with f16, nats; null: f16
    tokens_per_s: Finite  # generated
    on_front: bool
    beaten_by: list[str]  # the files that are at least as small, as accurate and as fast
    misses: list[Literal["RAM", "MIN_TPS", "MAX_KLD"]]  # the limits that it does not meet


class ChooseOutput(JsonOutput):
    """The answer of `choose`."""

    choice: str  # the quant to take
    path: str
    runner_up: str | None
    tied_with: list[str]
    reason: str
    budget: BudgetRow
    suite: str
    metric: Metric  # of `quality`
    left_out: dict[str, str]  # each other quant → why it cannot be chosen
    decided_by: DecidedBy  # what decided between files of equal quality; "quality" where there is one best
    silent_zone: float  # the `quality` up to which files count as equal; 0: of this metric none is known
    removals: dict[str, list[Removal]]  # each quant but the choice → the reasons against it
    files: list[CandidateRow]


def choose_output(choices: ChoiceSet, budget: ChoiceBudget, choice: Choice, reason: str) -> ChooseOutput:
    """The choice."""
    beaten = pareto_beaten_by(c.entry for c in choices.candidates)
    return ChooseOutput(
        choice=choice.best.quant, path=str(choice.best.path),
        runner_up=choice.runner_up.quant if choice.runner_up else None,
        tied_with=[c.quant for c in choice.equal], reason=reason,
        budget=BudgetRow(
            memory_bytes=budget.memory_bytes, min_tokens_per_s=budget.min_tokens_per_s, max_mean_kld=budget.max_kld,
            context_tokens=choices.use.tokens, parallel=choices.use.sequences,
            cache_type=choices.cache_type,
        ),
        suite=choices.report.suite.name, metric=choices.metric, left_out=dict(choices.others),
        decided_by=choice.decided_by, silent_zone=silent_zone_of(choices.metric),
        removals={quant: list(found) for quant, found in choice_removals(choices, budget, choice).items()},
        files=[_candidate_json(c, budget, beaten[c.quant]) for c in choices.candidates],
    )


def _candidate_json(found: ChoiceCandidate, budget: ChoiceBudget, winners: tuple[str, ...]) -> CandidateRow:
    return CandidateRow(
        quant=found.quant, path=str(found.path), size_bytes=found.size_bytes, memory_bytes=found.memory_bytes,
        context_bytes=found.context_bytes, quality=found.quality.value, quality_stderr=found.quality.stderr,
        cache_kld=found.cache.mean_kld.value if found.cache and found.cache.mean_kld else None,
        tokens_per_s=found.tokens_per_s, on_front=not winners, beaten_by=list(winners),
        misses=[miss.what for miss in missed_choice_limits(found, budget)],
    )


class TunedFileRow(JsonRow):
    """One of the two files, on text that the search has not read."""

    size_bytes: int
    mean_kld: Interval


class TensorGroupRow(JsonRow):
    """One group of tensors."""

    name: str
    weights: int
    kld_when_low: float  # the divergence that it causes at low precision
    type: str  # that it got


class TuneOutput(JsonOutput):
    """The answer of `tune`."""

    recipe: Recipe
    recipe_file: str  # path, for RECIPE
    expected_kld: float
    files: dict[str, TunedFileRow]  # by quant: the tuned file, and the stock one nearest in size
    stock: str
    difference: Interval  # of mean KLD, tuned less stock
    verdict: str  # better, worse, no significant difference
    relative: Interval  # the difference as a share of the stock file's divergence
    groups: list[TensorGroupRow]


def tune_output(tuned: Tuned) -> TuneOutput:
    """The result of a search."""
    gain = tuned.gain
    return TuneOutput(
        recipe=tuned.recipe, recipe_file=str(tuned.recipe_path), expected_kld=tuned.mix.kld,
        files={
            one.quant: TunedFileRow(size_bytes=one.size_bytes, mean_kld=one.kld) for one in (gain.tuned, gain.stock)
        },
        stock=gain.stock.quant, difference=gain.difference, verdict=gain.verdict, relative=gain.relative,
        groups=[
            TensorGroupRow(name=one.group.name, weights=one.group.n_params, kld_when_low=one.kld, type=kind)
            for one, kind in zip(tuned.sensitivities, tuned.mix.types, strict=True)
        ],
    )
