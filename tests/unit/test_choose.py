"""`choose`: the best of what was measured, by hand from the report; and what it says where nothing fits.

Files are sparse: their headers are real, their sizes those of the simulated report.
"""

from __future__ import annotations

import argparse
import io
import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from eval.analysis.kl_divergence import divergence_parts
from quantyard import cli
from quantyard.choose.cache_choice import smaller_measured_caches
from quantyard.choose.candidates import (
    ChoiceCandidate,
    ChoiceSet,
    candidate_memory_bytes,
    candidate_paths,
    find_choice_set,
)
from quantyard.choose.pick import Choice, ChoiceBudget, choose_candidate, missed_choice_limits, nearest_candidate
from quantyard.choose.refusals import candidate_memory_unknown, choice_needs_divergence, no_candidate_fits
from quantyard.choose.removals import choice_removals
from quantyard.choose.suggestions import choice_remedies, largest_candidate_context
from quantyard.cli.parser import add_command_options
from quantyard.cli.render import choice as say
from quantyard.cli.request import read_command_request
from quantyard.errors import BadRequest
from quantyard.hub.client import HubAccess
from quantyard.memory.kv_cache import ContextUse
from quantyard.metrics.choice import SILENT_ZONE_NATS, is_quality_tie
from quantyard.metrics.pareto import pareto_beaten_by
from quantyard.protocol.estimates import Estimate
from quantyard.protocol.measurements import EvalReport
from quantyard.requests import ChooseRequest
from quantyard.sources.resolve import find_source
from quantyard.store.hash_cache import HashCache
from quantyard.store.manifest import Manifest
from tests.caches import add_caches, cache_measurement
from tests.evaluations import LARGE
from tests.gguf_files import SMALL_TENSORS, Value, gguf
from tests.manifests import NAME, manifest_of

GIB, MIB, KIB = 2**30, 2**20, 2**10
HEADER: Mapping[str, Value] = {
    "general.architecture": "llama", "llama.context_length": 16384, "llama.block_count": 16,
    "llama.embedding_length": 2048, "llama.attention.head_count": 32, "llama.attention.head_count_kv": 8,
}  # 2 x 8 heads x 64 x 2 bytes x 16 layers = 32 KiB a token
Keep = Callable[..., ChoiceSet]


@pytest.fixture
def keep(tmp_path: Path) -> Keep:
    """Lays out a measured model; the choices of its files."""

    def lay_out(
        quants: Sequence[tuple[str, float, float]] = LARGE, *, context: int = 0, parallel: int = 4, suite: str = "",
        header: Mapping[str, Value] = HEADER, change: Callable[[Manifest], None] = lambda _: None,
        only: Sequence[str] = (), gone: Sequence[str] = (), cache_type: str = "f16",
    ) -> ChoiceSet:
        manifest = manifest_of(quants)
        change(manifest)
        paths = candidate_paths(manifest, tmp_path, None, only)
        for quant, path in paths.items():
            _write(path, manifest.quants[quant].size_bytes, header)
        for quant in gone:
            paths[quant].unlink()
        return find_choice_set(manifest, NAME, paths, suite, context, parallel, cache_type)

    return lay_out


def _write(path: Path, size_bytes: int, header: Mapping[str, Value] = HEADER) -> None:
    path.write_bytes(gguf(header, SMALL_TENSORS))
    os.truncate(path, size_bytes)


def _by_name(choices: ChoiceSet) -> dict[str, ChoiceCandidate]:
    return {c.quant: c for c in choices.candidates}


def _with(quality: float, stderr: float = 0.0, **more: Any) -> Callable[[ChoiceCandidate], ChoiceCandidate]:
    return lambda c: replace(c, quality=Estimate(value=quality, stderr=stderr), **more)


def _change_report(**more: Any) -> Callable[[Manifest], None]:
    """Change every measurement of the report."""

    def change(manifest: Manifest) -> None:
        report = manifest.evaluations["standard"]
        changed = tuple(m.model_copy(update=more) for m in report.measurements)
        manifest.evaluations["standard"] = report.model_copy(update={"measurements": changed})

    return change


def _text(choices: ChoiceSet, budget: ChoiceBudget, choice: Choice | None) -> str:
    out = io.StringIO()
    console = Console(file=out, width=200)
    console.print(say.terminal_choice_table(choices, budget, choice))
    if choice:
        console.print(say.terminal_choice(choices, budget, choice, "org/name"))
    return out.getvalue()


# ---- memory ------------------------------------------------------------------------------------------


def test_memory_is_the_measured_peak_and_what_the_context_takes_more(keep: Keep) -> None:
    choices = keep(context=8192)
    found = _by_name(choices)["Q4_K_M"]
    assert found.speed.n_ctx == 1024
    # four requests have 2,048 tokens each, whose mask is that of a batch of one of them
    assert found.memory_bytes == found.speed.peak_memory_bytes + (8192 - 1024) * 32 * KIB + (2048 - 1024) * KIB
    assert found.context_bytes == 8192 * 32 * KIB


def test_less_context_than_was_measured_takes_less_memory(keep: Keep) -> None:
    found = _by_name(keep(context=256, parallel=1))["Q4_K_M"]
    # the mask of a batch of 256 tokens, where 512 were read at once
    mask = 256 * 256 * 2 - 1024 * 512 * 2
    assert found.memory_bytes == found.speed.peak_memory_bytes - (1024 - 256) * 32 * KIB + mask


@pytest.mark.parametrize(("trained", "used"), [(16384, 8192), (2048, 2048)])
def test_the_context_is_what_the_model_was_trained_on_but_not_above_8192(keep: Keep, trained: int, used: int) -> None:
    assert keep(header={**HEADER, "llama.context_length": trained}).use.tokens == used


def test_an_architecture_that_is_not_known_has_no_memory_at_another_context(keep: Keep) -> None:
    unknown = {key.replace("llama", "other"): "other" if x == "llama" else x for key, x in HEADER.items()}
    choices = keep(header=unknown, context=8192)
    assert {c.memory_bytes for c in choices.candidates} == {None}
    error = candidate_memory_unknown(choices)
    assert "not known exactly for other" in error.message and "CONTEXT_SIZE=1024 PARALLEL=1" in error.hint


def test_at_the_context_that_was_measured_the_peak_counts_whatever_the_architecture(keep: Keep) -> None:
    unknown = {key.replace("llama", "other"): "other" if x == "llama" else x for key, x in HEADER.items()}
    choices = keep(header=unknown, context=1024, parallel=1)
    assert all(c.memory_bytes == c.speed.peak_memory_bytes for c in choices.candidates)


# ---- the front ---------------------------------------------------------------------------------------


def test_a_file_that_is_larger_worse_and_slower_is_beaten_and_the_others_are_the_front(keep: Keep) -> None:
    # Q4_0 is larger than IQ4_XS (4.67 and 4.46 bits), worse (0.058 and 0.041) and so slower in this report
    found = pareto_beaten_by(c.entry for c in keep().candidates)
    assert found.pop("Q4_0") == ("IQ4_XS",)
    assert set(found.values()) == {()} and len(found) == 7


# ---- the choice --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("budget", "best", "runner_up"), [
    (ChoiceBudget(8 * GIB, ""), "Q8_0", "Q6_K"),
    (ChoiceBudget(1300 * MIB, ""), "Q6_K", "Q5_K_M"),  # 903 MB x 1.08 + 60 MB + 242 MB = 1219 MiB; Q8_0 1492 MiB
    (ChoiceBudget(8 * GIB, "", min_tokens_per_s=30), "Q4_K_M", "IQ4_XS"),  # 2.1e10 / size: 31.5 t/s; Q5_K_M 26.8
    (ChoiceBudget(8 * GIB, "", min_tokens_per_s=35, max_kld=0.2), "Q3_K_M", None),
    (ChoiceBudget(8 * GIB, "", max_kld=0.001), "Q8_0", None),
])  # fmt: skip
def test_of_what_keeps_the_budget_the_best_by_quality_is_taken(
    keep: Keep, budget: ChoiceBudget, best: str, runner_up: str | None
) -> None:
    choice = choose_candidate(keep().candidates, budget)
    assert choice is not None
    assert (choice.best.quant, choice.runner_up.quant if choice.runner_up else None) == (best, runner_up)


def test_what_is_better_by_less_than_the_interval_is_not_worth_its_size(keep: Keep) -> None:
    # 0.0041 ± 3 % and 0.0042 ± 3 %: the difference is 0.0001, its interval ± 1.96 x 0.000176 = 0.000345
    choices = keep([("BF16", 16, 0), ("Q6_K", 6.57, 0.0041), ("Q5_K_M", 5.69, 0.0042), ("Q2_K", 3.16, 0.42)])
    budget = ChoiceBudget(8 * GIB, "")
    choice = choose_candidate(choices.candidates, budget)
    assert choice is not None
    assert (choice.best.quant, [c.quant for c in choice.equal]) == ("Q5_K_M", ["Q6_K"])
    assert choice.runner_up is not None and choice.runner_up.quant == "Q2_K"
    assert "Q6_K is better by less than the interval: +0.00010 (−0.00025 to +0.00045); take the smaller" in _text(
        choices, budget, choice
    )


def test_a_difference_beyond_the_interval_is_no_tie(keep: Keep) -> None:
    one, other = keep().candidates[:2]
    assert is_quality_tie(_with(0.010, 0.001)(one), _with(0.0127, 0.001)(other))  # 1.96 x 0.001414 = 0.00277
    assert not is_quality_tie(_with(0.010, 0.001)(one), _with(0.0129, 0.001)(other))


def test_where_all_tie_the_larger_is_the_runner_up(keep: Keep) -> None:
    choices = keep([("BF16", 16, 0), ("Q6_K", 6.57, 0.0041), ("Q5_K_M", 5.69, 0.0042)])
    choice = choose_candidate(choices.candidates, ChoiceBudget(8 * GIB, ""))
    assert choice is not None and choice.runner_up is not None
    assert (choice.best.quant, choice.runner_up.quant) == ("Q5_K_M", "Q6_K")


def test_every_file_but_the_choice_has_a_reason_with_a_name(keep: Keep) -> None:
    choices = keep([("BF16", 16, 0), ("Q8_0", 8.5, 0.002), ("Q6_K", 6.57, 0.004), ("Q5_K_M", 5.69, 0.02)])
    budget = ChoiceBudget(64 * GIB, "as asked")
    choice = choose_candidate(choices.candidates, budget, SILENT_ZONE_NATS)
    assert choice is not None and (choice.best.quant, choice.decided_by) == ("Q6_K", "size")
    found = choice_removals(choices, budget, choice)
    assert found.keys() == {c.quant for c in choices.candidates} - {"Q6_K"}
    assert [(one.name, one.other) for one in found["Q8_0"]][:1] == [("SILENT_ZONE_OF", "Q6_K")]
    assert [(one.name, one.other) for one in found["Q5_K_M"]][:1] == [("FURTHER_THAN", "Q6_K")]
    assert "divergence says nothing about benchmarks" in say.choice_reason(choices, choice)


def test_files_are_compared_by_what_they_lost_and_the_limit_judges_what_is_served(keep: Keep) -> None:
    values = np.full(40, 0.004)
    parts = divergence_parts(values / 4, values, 2)

    def add_parts(manifest: Manifest) -> None:
        report = manifest.evaluations["standard"]
        changed = tuple(
            m.model_copy(update={"divergence": m.divergence.model_copy(update={"parts": parts})})
            if m.divergence and m.divergence.mean_kld else m for m in report.measurements
        )  # fmt: skip
        manifest.evaluations["standard"] = report.model_copy(update={"measurements": changed})

    choices = keep([("BF16", 16, 0), ("Q8_0", 8.5, 0.004), ("Q6_K", 6.57, 0.03)], change=add_parts)
    found = _by_name(choices)
    assert choices.metric == "KLD of the file" and found["Q6_K"].quality.value == pytest.approx(0.001)
    assert found["Q6_K"].served_kld > 0.02 > found["Q8_0"].served_kld
    budget = ChoiceBudget(64 * GIB, "", max_kld=0.02)
    assert [miss.what for miss in missed_choice_limits(found["Q6_K"], budget)] == ["MAX_KLD"]
    assert not missed_choice_limits(found["Q8_0"], budget)


def test_a_missed_limit_is_the_reason_of_a_file(keep: Keep) -> None:
    choices = keep()
    budget = ChoiceBudget(1, "as asked", min_tokens_per_s=1e9, max_kld=0.0)
    names = {tuple(one.name for one in reasons)[:2] for reasons in choice_removals(choices, budget, None).values()}
    assert names == {("TOO_LARGE", "FAILS_BUDGET")}


def test_the_runner_up_is_no_file_that_is_beaten(keep: Keep) -> None:
    choices = keep(only=["Q4_K_M", "Q4_0", "IQ4_XS"])
    worse = [_with(0.5)(c) if c.quant == "IQ4_XS" else c for c in choices.candidates]
    choice = choose_candidate(worse, ChoiceBudget(8 * GIB, ""))
    assert choice is not None and choice.runner_up is not None
    assert (choice.best.quant, choice.runner_up.quant) == ("Q4_K_M", "Q4_0")
    choice = choose_candidate(choices.candidates, ChoiceBudget(8 * GIB, ""))
    assert choice is not None and choice.runner_up is not None and choice.runner_up.quant == "IQ4_XS"


def test_the_unquantized_file_is_the_best_where_it_fits_and_was_built(keep: Keep) -> None:
    def build_baseline(manifest: Manifest) -> None:
        measured = manifest.evaluations["standard"].measurements[0].file
        record = manifest.quants["Q8_0"].model_copy(update={
            "file": f"{NAME}-BF16.gguf", "size_bytes": measured.size_bytes, "sha256": measured.sha256,
        })  # fmt: skip
        manifest.quants["BF16"] = record

    choice = choose_candidate(keep(change=build_baseline).candidates, ChoiceBudget(8 * GIB, ""))
    assert choice is not None and choice.best.quant == "BF16" and choice.best.quality.value == 0


def test_perplexity_decides_where_there_is_no_divergence(keep: Keep) -> None:
    def drop(manifest: Manifest) -> None:
        report = manifest.evaluations["standard"]
        without = tuple(
            m.model_copy(update={"divergence": m.divergence and m.divergence.model_copy(update={"mean_kld": None})})
            for m in report.measurements
        )
        manifest.evaluations["standard"] = report.model_copy(update={"measurements": without})

    choices, budget = keep(change=drop, only=["Q4_K_M", "Q2_K"]), ChoiceBudget(8 * GIB, "")
    choice = choose_candidate(choices.candidates, budget)
    assert choice is not None and choices.metric == "ΔPPL"
    # ln ratio 0.8 x 0.031 = 0.0248: 2.51 %; the ends: ± 1.96 x 0.03 x √0.031
    assert "+2.51 % (+1.46 to +3.58)" in _text(choices, budget, choice)
    assert "MAX_KLD cannot be checked" in choice_needs_divergence(choices).message


# ---- what is no candidate ----------------------------------------------------------------------------


def test_a_file_that_was_not_measured_is_left_out_and_said_with_what_to_type(keep: Keep) -> None:
    def build_another(manifest: Manifest) -> None:
        manifest.quants["Q5_0"] = manifest.quants["Q4_0"].model_copy(update={"file": "other.gguf"})

    choices, budget = keep(change=build_another), ChoiceBudget(8 * GIB, "")
    assert choices.others == {"Q5_0": "was not measured with the suite standard"}
    text = _text(choices, budget, choose_candidate(choices.candidates, budget))
    assert "Q5_0 was not measured" in text
    assert "make eval MODEL=org/name QUANT=Q8_0,Q6_K,Q5_K_M,Q4_K_M,Q4_0,IQ4_XS,Q3_K_M,Q2_K,Q5_0 SUITE=standard" in text


def test_a_file_that_is_gone_or_another_one_now_is_left_out(keep: Keep, tmp_path: Path) -> None:
    def build_again(manifest: Manifest) -> None:
        manifest.quants["Q6_K"].sha256 = "0" * 64

    choices = keep(change=build_again, gone=["Q8_0"])
    assert choices.others["Q8_0"].startswith("is missing: ")
    assert "was built again" in choices.others["Q6_K"]
    assert not {"Q8_0", "Q6_K"} & set(_by_name(choices))


def test_a_file_of_another_size_than_recorded_is_left_out(tmp_path: Path) -> None:
    manifest = manifest_of()
    paths = candidate_paths(manifest, tmp_path, None, ())
    for quant, path in paths.items():
        _write(path, manifest.quants[quant].size_bytes + (quant == "Q8_0"))
    choices = find_choice_set(manifest, NAME, paths, "", 0, 4)
    assert list(choices.others) == ["Q8_0"] and "was changed" in choices.others["Q8_0"]


@pytest.mark.parametrize(("missing", "what"), [("speed", "has no speed"), ("divergence", "has no mean KLD")])
def test_without_speed_or_divergence_nothing_can_be_chosen(keep: Keep, missing: str, what: str) -> None:
    with pytest.raises(BadRequest) as error:
        keep(change=_change_report(**{missing: None}))
    assert what in error.value.message and "make eval" in error.value.hint


def test_a_file_without_a_mean_kld_is_left_out(keep: Keep) -> None:
    def break_it(manifest: Manifest) -> None:
        report = manifest.evaluations["standard"]
        broken = [
            m.model_copy(update={"divergence": m.divergence.model_copy(update={"mean_kld": None})})
            if m.divergence and m.file.label == "Q2_K" else m
            for m in report.measurements
        ]  # fmt: skip
        manifest.evaluations["standard"] = report.model_copy(update={"measurements": tuple(broken)})

    assert keep(change=break_it).others == {"Q2_K": "has no mean KLD in the suite standard"}


def test_of_several_evaluations_the_one_that_holds_most_files_counts(keep: Keep) -> None:
    def add_larger(manifest: Manifest) -> None:
        report = manifest.evaluations["standard"]
        few = {"measurements": report.measurements[:2], "n_questions": 10**6,
               "suite": report.suite.model_copy(update={"name": "full"})}  # fmt: skip
        manifest.evaluations["full"] = EvalReport.model_validate(report.model_copy(update=few).model_dump())

    assert keep(change=add_larger).report.suite.name == "standard"
    assert keep(change=add_larger, suite="full").report.suite.name == "full"
    with pytest.raises(BadRequest, match="suite quick was not run for the model's commit 7ae557604adf"):
        keep(change=add_larger, suite="quick")


def test_a_quant_that_was_never_built_is_named(tmp_path: Path) -> None:
    with pytest.raises(BadRequest) as error:
        candidate_paths(manifest_of(), tmp_path, None, ["Q4_K_M", "Q3_K_M"])
    assert "Q3_K_M is not built; built: Q8_0, Q4_K_M" in error.value.message
    assert "QUANT=Q8_0,Q4_K_M,Q3_K_M" in error.value.hint


# ---- nothing fits ------------------------------------------------------------------------------------


def test_where_nothing_fits_the_nearest_is_named_with_what_it_misses(keep: Keep) -> None:
    choices, budget = keep(), ChoiceBudget(512 * MIB, "")
    assert choose_candidate(choices.candidates, budget) is None
    closest = nearest_candidate(choices.candidates, budget)
    error = no_candidate_fits(choices, budget, closest, [])
    assert closest.quant == "Q2_K" and isinstance(error, BadRequest) and error.code == 2
    assert "the nearest, Q2_K, takes 730 MiB, more than the 512 MiB of RAM" in error.message
    assert error.hint == "Relax the limits: RAM=730MiB allows Q2_K."


def test_the_budget_that_would_take_the_nearest_does_take_it(keep: Keep) -> None:
    choices, budget = keep(only=["Q5_K_M"]), ChoiceBudget(8 * GIB, "", min_tokens_per_s=100, max_kld=0.001)
    closest = nearest_candidate(choices.candidates, budget)
    # 2.1e10 / 782,375,000 bytes = 26.84 tokens/s
    error = no_candidate_fits(choices, budget, closest, [])
    assert error.hint == "Relax the limits: MIN_TPS=26.8 MAX_KLD=0.0098 allows Q5_K_M."
    choice = choose_candidate(choices.candidates, ChoiceBudget(8 * GIB, "", min_tokens_per_s=26.8, max_kld=0.0098))
    assert choice is not None and choice.best is closest


def test_less_context_is_named_to_the_step_that_still_fits(keep: Keep) -> None:
    choices, budget = keep(), ChoiceBudget(640 * MIB, "")
    found = _by_name(choices)["Q2_K"]
    context = largest_candidate_context(found, choices, budget)
    uses = [ContextUse(tokens, 4, unified=False) for tokens in (context, context + 256)]
    fits, over = (candidate_memory_bytes(found, use) for use in uses)
    assert fits is not None and over is not None and fits <= budget.memory_bytes < over
    assert f"Less context: Q2_K fits with CONTEXT_SIZE={context}." in choice_remedies(choices, budget, "m")


def test_no_context_helps_where_the_weights_alone_are_too_much(keep: Keep) -> None:
    choices, budget = keep(), ChoiceBudget(100 * MIB, "")
    assert largest_candidate_context(_by_name(choices)["Q2_K"], choices, budget) == 0
    assert not any("context" in text for text in choice_remedies(choices, budget, "m"))


# 256 MiB of cache in f16 are 136 MiB in q8_0, 120 MiB less, and 72 MiB in q4_0, 184 MiB less.
EVERY = [label for label, *_ in LARGE[1:]]


def _with_caches(klds: Mapping[str, float], **more: Any) -> Callable[[Manifest], None]:
    return lambda manifest: add_caches(manifest, {name: cache_measurement(name, klds, **more) for name in EVERY})


def _told_of_cache(choices: ChoiceSet, less_bytes: int) -> list[str]:
    """What is said of the cache where RAM is so much less than the smallest file takes with f16."""
    needed = _by_name(choices)["Q2_K"].memory_bytes
    assert needed is not None
    texts = choice_remedies(choices, ChoiceBudget(needed - less_bytes, ""), "m")
    return [text for text in texts if "KV cache" in text]


def test_a_smaller_cache_that_nobody_measured_is_not_recommended_but_how_to_measure_it_is(keep: Keep) -> None:
    (text,) = _told_of_cache(keep(), 120 * MIB)
    assert text.startswith("CACHE_NOT_MEASURED: Q2_K would take ") and "with a q8_0 KV cache" in text
    assert "Measure it: make eval MODEL=m QUANT=" in text and text.endswith("SUITE=cache")
    (text,) = _told_of_cache(keep(), 121 * MIB)
    assert "with a q4_0 KV cache" in text
    assert _told_of_cache(keep(), 185 * MIB) == []


def test_the_measured_type_with_the_least_divergence_that_fits_is_recommended(keep: Keep) -> None:
    choices = keep(change=_with_caches({"q4_0": 0.03, "q8_0": 0.002}))
    (text,) = _told_of_cache(choices, 120 * MIB)
    assert "with CACHE_TYPE=q8_0; KLD from f16 0.00200 (" in text and "0.00200 from 256 tokens of context on" in text
    (text,) = _told_of_cache(choices, 121 * MIB)
    assert "with CACHE_TYPE=q4_0; KLD from f16 0.0300" in text


def test_a_measured_cache_that_costs_too_much_or_is_too_large_is_not_recommended_and_none_is_asked_for(
    keep: Keep,
) -> None:
    choices = keep(change=_with_caches({"q8_0": 0.002}))
    assert _told_of_cache(choices, 121 * MIB) == []
    found, needed = _by_name(choices)["Q2_K"], _by_name(choices)["Q2_K"].memory_bytes
    assert needed is not None
    budgets = [ChoiceBudget(needed, "", max_kld=0.04 + 0.002 + more) for more in (-1e-6, 1e-6)]
    assert [len(smaller_measured_caches(found, choices, budget)) for budget in budgets] == [0, 1]


def test_with_a_type_of_the_cache_only_files_on_which_it_was_measured_can_be_chosen(keep: Keep) -> None:
    def some(manifest: Manifest) -> None:
        add_caches(manifest, {
            "Q5_K_M": cache_measurement("Q5_K_M", {"q8_0": 0.002}),
            "Q4_K_M": cache_measurement("Q4_K_M", {}, {"q8_0": "HEAD_SIZE"}),
        })  # fmt: skip

    choices, plain = keep(change=some, cache_type="q8_0"), keep(change=some)
    assert [c.quant for c in choices.candidates] == ["Q5_K_M"]
    assert "(CACHE_NOT_MEASURED)" in choices.others["Q2_K"] and "(HEAD_SIZE)" in choices.others["Q4_K_M"]
    found, f16 = choices.candidates[0], _by_name(plain)["Q5_K_M"]
    assert found.memory_bytes is not None and f16.memory_bytes is not None
    assert f16.memory_bytes - found.memory_bytes == 120 * MIB
    assert found.served_kld == pytest.approx(0.042) and f16.served_kld == f16.quality.value


def test_a_type_that_was_measured_on_no_file_is_refused_with_the_command_that_measures_it(keep: Keep) -> None:
    with pytest.raises(BadRequest, match="CACHE_NOT_MEASURED") as refused:
        keep(cache_type="q8_0/f16")
    assert refused.value.hint.endswith("SUITE=cache CACHE_TYPE=q8_0/f16")


def test_what_was_measured_of_another_build_of_the_file_does_not_count(keep: Keep) -> None:
    def other(manifest: Manifest) -> None:
        _with_caches({"q8_0": 0.002})(manifest)
        manifest.quants["Q2_K"] = manifest.quants["Q2_K"].model_copy(update={"sha256": "0" * 64})

    assert "Q2_K" in keep(change=other, cache_type="q8_0").others


@pytest.mark.parametrize(
    ("typed", "taken"), [("", "f16"), ("Q8_0", "q8_0"), ("q8_0/q8_0", "q8_0"), ("f16/q4_0", "f16/q4_0")]
)
def test_the_type_of_the_cache_is_read_in_its_one_spelling(typed: str, taken: str) -> None:
    assert _asked(CACHE_TYPE=typed).cache_type == taken


@pytest.mark.parametrize("typed", ["q8", "q8_0/", "q4_k", "q8_0,q4_0"])
def test_what_is_not_one_type_of_the_cache_is_refused(typed: str) -> None:
    with pytest.raises(BadRequest, match="CACHE_TYPE="):
        _asked(CACHE_TYPE=typed)


def test_a_smaller_quant_that_was_never_measured_is_named(keep: Keep) -> None:
    choices = keep(only=["Q8_0", "Q6_K"])
    texts = choice_remedies(choices, ChoiceBudget(1120 * MIB, ""), "org/name")
    # Q6_K is 903 MB and takes 99 MiB too much; 903 x 5.7036 / 6.5633 = 785
    assert any("Q5_K_M is not measured yet (about 785 MB): make eval MODEL=org/name QUANT=Q8_0,Q6_K,Q5_K_M" in text
               for text in texts), texts  # fmt: skip


def test_a_larger_quant_is_named_where_quality_is_missed_and_a_smaller_one_where_speed_is(keep: Keep) -> None:
    choices = keep(only=["Q5_K_M", "Q4_K_M"])
    assert [
        text.split(" is not")[0] for text in choice_remedies(choices, ChoiceBudget(8 * GIB, "", max_kld=0.005), "m")
    ] == ["A larger quant: Q6_K"]
    assert [
        text.split(" is not")[0]
        for text in choice_remedies(choices, ChoiceBudget(8 * GIB, "", min_tokens_per_s=38), "m")
    ] == ["A smaller quant may be fast enough: Q3_K_M"]
    assert choice_remedies(choices, ChoiceBudget(8 * GIB, "", min_tokens_per_s=1000), "m")[0].startswith(
        "No quant of this model"
    )


# ---- words -------------------------------------------------------------------------------------------


def test_the_table_names_what_beats_a_file_and_what_it_misses(keep: Keep) -> None:
    choices, budget = keep(), ChoiceBudget(8 * GIB, "", min_tokens_per_s=20)
    text = _text(choices, budget, choose_candidate(choices.candidates, budget))
    rows = {line.split()[0]: line for line in text.splitlines()[:9]}
    assert rows["Q4_0"].rstrip().endswith("beaten by IQ4_XS")
    assert rows["Q8_0"].rstrip().endswith("below MIN_TPS")
    assert rows["Q6_K"].rstrip().endswith("the choice") and rows["Q5_K_M"].rstrip().endswith("runner-up")
    assert rows["Q2_K"].rstrip().endswith("on the front")


def test_it_is_said_on_which_machine_the_speed_was_measured(keep: Keep) -> None:
    choices, budget = keep(), ChoiceBudget(8 * GIB, "")
    text = _text(choices, budget, choose_candidate(choices.candidates, budget))
    assert "suite standard on AMD EPYC 9B14, 2 threads; other machines have other speeds" in text


def test_a_context_beyond_the_models_training_and_an_interval_beyond_the_limit_are_said(keep: Keep) -> None:
    choices, budget = keep(context=32768, only=["Q4_K_M"]), ChoiceBudget(8 * GIB, "", max_kld=0.0315)
    text = _text(choices, budget, choose_candidate(choices.candidates, budget))
    assert "the model was trained on 16,384 tokens" in text
    assert "the interval of Q4_K_M reaches beyond MAX_KLD=0.0315" in text


# ---- the command -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Said:
    code: int
    out: str
    err: str


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Said]:
    """`choose` on a store that holds one model, made from a GGUF of this machine."""
    for name in ("QUANT", "SUITE", "RAM", "MIN_TPS", "MAX_KLD", "PARALLEL", "CONTEXT_SIZE", "JSON", "EXTRA_CA",
                 "SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT"):  # fmt: skip
        monkeypatch.delenv(name, raising=False)
    gguf_path, artifacts = tmp_path / "lagoon.gguf", tmp_path / "artifacts"
    _write(gguf_path, 10**6)
    source = find_source(str(gguf_path), HubAccess(), HashCache(artifacts / ".hashes.json"), allow_pickle=False,
                         gguf_file=None)  # fmt: skip
    folder, manifest = artifacts / source.model.folder, manifest_of()
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(manifest.model_dump_json())
    for record in manifest.quants.values():
        _write(folder / record.file, record.size_bytes)

    def command(*argv: str) -> Said:
        out, err = io.StringIO(), io.StringIO()
        with pytest.raises(SystemExit) as ended, redirect_stdout(out), redirect_stderr(err):
            cli.main(["choose", f"--model={gguf_path}", f"--artifacts={artifacts}", *argv])
        return Said(int(ended.value.code or 0), out.getvalue(), err.getvalue())

    return command


def test_the_command_names_the_file_the_reason_and_the_runner_up(run: Callable[..., Said]) -> None:
    said = run("--ram=8GiB")
    assert said.code == 0, said.err
    lines = {line[:13].strip(): line[13:] for line in said.out.splitlines()}
    take = "Q8_0: the best of 2 files that meet the limits; mean KLD 0.00120 (0.00113 to 0.00127)"
    assert lines["Take"].startswith(take)
    assert lines["Runner-up"].startswith("Q4_K_M: 27 % smaller; 38 % faster; mean KLD 0.0310 (0.0292 to 0.0328)")
    assert lines["RAM"] == "8.00 GiB, as asked"


def test_for_programs_there_is_one_object(run: Callable[..., Said]) -> None:
    found = json.loads(run("--ram=8GiB", "--json", "--context-size=2048").out)
    assert (found["choice"], found["runner_up"], found["left_out"]) == ("Q8_0", "Q4_K_M", {})
    assert found["budget"]["context_tokens"] == 2048
    assert Path(found["path"]).is_file()
    assert [file["on_front"] for file in found["files"]] == [True, True]


def test_where_nothing_fits_the_command_ends_with_2_and_says_what_would_help(run: Callable[..., Said]) -> None:
    said = run("--ram=1100MiB")
    assert said.code == 2 and not said.out
    assert "above RAM" in said.err and "the nearest, Q4_K_M" in said.err and "CONTEXT_SIZE=" in said.err


def test_only_the_quants_asked_for_are_chosen_from(run: Callable[..., Said]) -> None:
    assert json.loads(run("--quant=Q4_K_M", "--json").out)["choice"] == "Q4_K_M"


def test_without_ram_it_is_this_machines(run: Callable[..., Said]) -> None:
    assert "all of this machine's" in run().out


def test_a_model_that_was_never_built_is_refused_with_what_to_type(
    run: Callable[..., Said], tmp_path: Path
) -> None:
    said = run(f"--artifacts={tmp_path / 'elsewhere'}")
    assert said.code == 2 and "nothing is built in" in said.err and "make eval MODEL=… QUANT=" in said.err


def _asked(**environment: str) -> ChooseRequest:
    parser = argparse.ArgumentParser()
    add_command_options(parser)
    found = read_command_request(parser.parse_args([]), environment).choose
    assert found is not None
    return found


def test_what_was_asked_is_read_as_people_write_it() -> None:
    assert _asked() == ChooseRequest(), "the defaults"
    asked = _asked(RAM="8GiB", MIN_TPS="20", MAX_KLD="0.05", CONTEXT_SIZE="4096", PARALLEL="1", QUANT="q8_0,Q4_K_M")
    assert asked == ChooseRequest(("Q8_0", "Q4_K_M"), 8 * GIB, 20.0, 0.05, 4096, 1)


@pytest.mark.parametrize(("name", "value"), [
    ("RAM", "much"), ("RAM", "10"), ("MIN_TPS", "-1"), ("MIN_TPS", "fast"), ("MAX_KLD", "nan"), ("MAX_KLD", "1e9"),
    ("PARALLEL", "0"), ("CONTEXT_SIZE", "8k"),
])  # fmt: skip
def test_what_is_no_number_is_refused(name: str, value: str) -> None:
    with pytest.raises(BadRequest, match=f"{name}={value}"):
        _asked(**{name: value})
