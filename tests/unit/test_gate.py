"""The gate: budgets read and held against real-looking measurements."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

import pytest

from eval.analysis.statistics import paired_proportions_interval
from quantyard.errors import BadRequest
from quantyard.gate.budgets import DEFAULT, BadBudgets, GateBudget
from quantyard.gate.findings import NAMES
from quantyard.gate.judge import _JUDGES, judge_gate_budgets, load_gate_budgets
from quantyard.gate.sample_size import gate_accuracy_loss, gate_answer_sample_size, gate_question_sample_size
from quantyard.metrics.headline_metrics import headline_scores
from quantyard.metrics.intervals import normal_quantile, ppl_change_interval, wilson_interval
from quantyard.protocol.api_tests import SCHEMA_LIMIT
from quantyard.protocol.estimates import Estimate, Interval
from quantyard.protocol.gate import BudgetResult, GateReport
from quantyard.protocol.measurements import Comparison, EvalReport, Measurement
from quantyard.quants.catalog import FAMILIES, QUANTS, quant_family
from quantyard.store.manifest import Manifest
from tests.caches import cache_measurement
from tests.manifests import contract_report, manifest_of, sha256_of, with_twin

QUANT = "Q4_K_M"
MANIFEST = manifest_of()
Z95 = normal_quantile(0.95)


@pytest.fixture
def gate(tmp_path: Path):  # what a YAML text says of a manifest
    def held(text: str, manifest: Manifest | None = None, quant: str = QUANT, suite: str = "standard") -> GateReport:
        path = tmp_path / "gate.yaml"
        path.write_text(text)
        return judge_gate_budgets(manifest or MANIFEST, [quant], suite, load_gate_budgets(path))

    return held


def only(report: GateReport) -> BudgetResult:
    (result,) = report.results
    return result


def changed(quant: str = QUANT, **updates: Any) -> Manifest:
    """The manifest with another measurement of one file."""
    report = MANIFEST.evaluations["standard"]
    measurements = [m.model_copy(update=updates) if m.file.label == quant else m for m in report.measurements]
    return with_report(MANIFEST, measurements=tuple(measurements))


def with_report(manifest: Manifest, **updates: Any) -> Manifest:
    report = manifest.evaluations["standard"].model_copy(update=updates)
    return manifest.model_copy(update={"evaluations": {"standard": report}})


def measurement(quant: str = QUANT) -> Measurement:
    return next(m for m in MANIFEST.evaluations["standard"].measurements if m.file.label == quant)


def comparison(lost: int, gained: int, n: int, *, baseline: float = 0.6, **more: Any) -> Comparison:
    delta = paired_proportions_interval(lost, gained, n)
    return Comparison(**{
        "task": "arc_easy", "metric": "acc", "n": n, "baseline": baseline, "value": baseline + delta.value,
        "delta": delta, "lost": lost, "gained": gained, "mcnemar_p": 0.5, "verdict": "too few questions", **more,
    })  # fmt: skip


# ---- intervals ---------------------------------------------------------------------------------------


def kld(value: float, stderr: float) -> Manifest:
    divergence = measurement().divergence
    assert divergence is not None
    return changed(divergence=divergence.model_copy(update={"mean_kld": Estimate(value=value, stderr=stderr)}))


def cached(**more: Any) -> Manifest:
    return changed(cache=cache_measurement(QUANT, {"q8_0": 0.002, "q8_0/f16": 0.001, "q4_0": 0.03}, **more))


@pytest.mark.parametrize(("limits", "outcomes"), [
    ("{q8_0: 0.003}", {"q8_0": "passed"}),
    ("{q8_0: 0.001, 'q*': 0.05}", {"q8_0": "failed", "q8_0/f16": "passed", "q4_0": "passed"}),
    ("0.01", {"q8_0": "passed", "q8_0/f16": "passed", "q4_0": "failed"}),
    ("{q8_0: 0.00202}", {"q8_0": "too few questions"}),
    ("{q5_1: 0.01}", {"q5_1": "not measured"}),
])  # fmt: skip
def test_each_type_of_the_kv_cache_has_its_limit(gate, limits: str, outcomes: dict[str, str]) -> None:
    report = gate(f"defaults: {{max_cache_kld: {limits}}}", cached())
    assert {result.task: result.outcome for result in report.results} == outcomes


def test_a_cache_that_was_not_measured_does_not_keep_its_limit(gate) -> None:
    result = only(gate("defaults: {max_cache_kld: 0.01}"))
    assert result.outcome == "not measured" and "KLD from an f16 KV cache was not measured" in result.finding


def test_the_finding_on_a_cache_names_its_type(gate) -> None:
    result = only(gate("defaults: {max_cache_kld: {q8_0: 0.001}}", cached()))
    assert result.finding == "KLD from an f16 KV cache on q8_0 0.00200 (0.00176 to 0.00224) is above 0.001"


TOKENS = "about 56,000 tokens of text would decide; there were 6,120 (the suite's divergence.text may be longer)"


@pytest.mark.parametrize(("limit", "outcome", "finding"), [
    ("0.05", "passed", "mean KLD 0.0464 (0.0446 to 0.0482) is within 0.05"),
    ("0.04", "failed", "mean KLD 0.0464 (0.0446 to 0.0482) is above 0.04"),
    ("0.047", "too few questions", "mean KLD 0.0464 (0.0446 to 0.0482) may or may not be within 0.047: " + TOKENS),
])  # fmt: skip
def test_the_whole_interval_decides(gate, limit: str, outcome: str, finding: str) -> None:
    result = only(gate(f"defaults: {{max_mean_kld: {limit}}}", kld(0.0464, 0.00092)))
    assert (result.outcome, result.finding) == (outcome, finding)
    assert result.interval is not None and result.confidence == 0.95


def test_a_value_on_the_limit_cannot_be_told_by_any_length_of_text(gate) -> None:
    assert "more tokens of text cannot decide" in only(gate("defaults: {max_mean_kld: 0.04}", kld(0.04, 0.001))).finding


def test_a_higher_confidence_asks_for_more(gate) -> None:
    text = "defaults: {{max_mean_kld: 0.05, confidence: {}}}"
    outcomes = [only(gate(text.format(c), kld(0.0464, 0.0015))).outcome for c in (0.9, 0.95, 0.99)]
    assert outcomes == ["passed", "passed", "too few questions"]


def test_the_change_of_perplexity_is_the_reports_own_interval(gate) -> None:
    divergence = measurement().divergence
    change = ppl_change_interval(divergence)
    assert change is not None
    result = only(gate("defaults: {max_ppl_change: 5}"))
    assert result.interval is not None and result.value is not None
    assert result.value == pytest.approx(100 * change.value)
    assert result.interval.high == pytest.approx(100 * change.high)
    assert re.fullmatch(r"the change of perplexity \+2\.51 % \(\+1\.46 to \+3\.58\) is within 5 %", result.finding)


@pytest.mark.parametrize("value", [1e3, 1e4, 1e99])
def test_a_model_so_broken_that_no_number_describes_it_fails(gate, value: float) -> None:
    divergence = measurement().divergence
    assert divergence is not None
    broken = divergence.model_copy(update={"ln_perplexity_ratio": Estimate(value=value, stderr=1.0)})
    report = gate("defaults: {max_ppl_change: 50}", changed(divergence=broken))
    assert only(report).outcome == "failed"
    assert GateReport.model_validate_json(report.model_dump_json()) == report  # infinities would not come back


@pytest.mark.parametrize("confidence", [0.9, 0.99])
def test_a_scaled_interval_is_near_tangos_own(confidence: float) -> None:
    scaled = gate_accuracy_loss(comparison(60, 40, 1000), normal_quantile(confidence))
    exact = paired_proportions_interval(60, 40, 1000, z=normal_quantile(confidence))
    assert (scaled.low, scaled.high) == pytest.approx((-100 * exact.high, -100 * exact.low), abs=0.2)


@pytest.mark.parametrize(("lost", "gained", "n", "limit"), [
    (0, 0, 32, 2), (2, 2, 160, 3), (3, 2, 160, 5), (40, 30, 500, 4), (4, 0, 32, 5), (1, 0, 50, 3),
])  # fmt: skip
def test_as_many_questions_as_are_said_would_tell(lost: int, gained: int, n: int, limit: int) -> None:
    found = comparison(lost, gained, n)
    distance = abs(limit / 100 + found.delta.value)
    m = gate_question_sample_size(found, distance, 1.0, Z95)
    assert m is not None

    def clearance(questions: float) -> float:
        interval = paired_proportions_interval(lost * questions / n, gained * questions / n, questions)
        low, high = -100 * interval.high, -100 * interval.low
        return (limit - high) if -100 * found.delta.value < limit else (low - limit)

    assert clearance(1.3 * m) > 0
    assert clearance(0.5 * m) < 0


def test_as_many_answers_as_are_said_would_tell() -> None:
    n = gate_answer_sample_size(60, 1.0, 0.95, Z95)
    assert n is not None
    assert wilson_interval(n, n, Z95).low >= 0.95 > wilson_interval(n - 1, n - 1, Z95).low


# ---- accuracy ----------------------------------------------------------------------------------------


def with_comparisons(*comparisons: Comparison) -> Manifest:
    return changed(comparisons=comparisons)


def test_an_accuracy_that_rises_is_no_loss(gate) -> None:
    result = only(gate("defaults: {max_accuracy_loss: {arc_easy: 1}}", with_comparisons(comparison(0, 40, 500))))
    assert (result.outcome, result.value) == ("passed", pytest.approx(-8.0))
    assert result.task == "arc_easy"


@pytest.mark.parametrize(("lost", "outcome"), [(2, "passed"), (20, "too few questions"), (90, "failed")])
def test_a_loss_of_accuracy_is_judged_by_its_interval(gate, lost: int, outcome: str) -> None:
    manifest = with_comparisons(comparison(lost, 0, 500))
    assert only(gate("defaults: {max_accuracy_loss: {arc_easy: 5}}", manifest)).outcome == outcome


def test_the_tasks_judged_are_the_reports_headlines() -> None:
    manifest = MANIFEST
    report = manifest.evaluations["standard"]
    found = judge_gate_budgets(manifest, [QUANT], "standard", load_gate_budgets(None)).results
    judged = [r.task for r in found if r.budget == "max_accuracy_loss"]
    shown = headline_scores(report.suite, report.measurements[0].scores)
    assert judged == [s.task for s in shown if s.metric not in ("word_perplexity", "bits_per_byte")] != []


def test_no_budget_judges_the_perplexity_of_a_task(gate) -> None:
    assert not {"wikitext"} & {r.task for r in gate("defaults: {max_accuracy_loss: 5}").results}
    result = only(gate("defaults: {max_accuracy_loss: {wikitext: 5}}"))
    assert (result.outcome, result.task) == ("not measured", "wikitext")


def test_the_most_specific_limit_of_a_task_counts(gate) -> None:
    report = gate('defaults: {max_accuracy_loss: {"*": 90, arc_easy: 3, "arc*": 80}}')
    limits = {r.task: r.limit for r in report.results}
    assert (limits["arc_easy"], limits["arc_challenge"], limits["piqa"]) == (3, 80, 90)


def test_a_task_at_chance_is_not_judged_and_says_so(gate) -> None:
    report = gate("defaults: {max_accuracy_loss: 5}")
    guessed = next(r for r in report.results if r.task == "winogrande")
    assert guessed.outcome == "not judged"
    assert "BF16 is not better than guessing (50.2 %)" in guessed.finding
    assert report.outcome == "passed"


def test_a_budget_of_which_no_task_could_be_judged_is_not_measured(gate) -> None:
    manifest = with_comparisons(comparison(0, 0, 500, verdict="no signal"))
    report = gate("defaults: {max_accuracy_loss: 5}", manifest)
    assert [r.outcome for r in report.results] == ["not judged", "not measured"]
    assert report.outcome == "not measured"


@pytest.mark.parametrize(("limit", "suite"), [
    ("max_accuracy_loss: {mmlu: 2}", "standard"), ("max_mean_kld: {code: 0.02}", "domains"),
    ("max_mean_kld: {worst: 0.1}", "domains"), ("max_cache_kld: {q8_0: 0.01}", "cache"),
    ("max_behaviour_loss: {tool_calls: 2}", "behaviour"), ("max_length_increase: 10", "behaviour"),
])  # fmt: skip
def test_what_the_suite_does_not_measure_is_not_measured_and_the_finding_names_a_suite_that_does(
    gate, limit: str, suite: str
) -> None:
    result = only(gate(f"defaults: {{{limit}}}"))
    assert result.outcome == "not measured"
    assert result.finding.endswith(f"Type: make eval MODEL=lagoon/Lagoon-1B-Instruct QUANT=Q4_K_M SUITE={suite}")


# ---- single values -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("text", "outcome"), [
    ("max_size: 1GB", "passed"), ("max_size: 848375000", "passed"), ("max_size: 848374999", "failed"),
    ("max_size: 0.5 GiB", "failed"), ("min_generated_tokens_per_s: 10", "passed"),
    ("min_generated_tokens_per_s: 1000", "failed"), ("min_prompt_tokens_per_s: 1000000", "failed"),
])  # fmt: skip
def test_size_and_speed_pass_or_fail(gate, text: str, outcome: str) -> None:
    result = only(gate(f"defaults: {{{text}}}"))
    assert (result.outcome, result.interval, result.confidence) == (outcome, None, None)


def test_a_size_is_judged_to_the_byte(gate) -> None:
    finding = only(gate("defaults: {max_size: 848374999}")).finding
    assert finding == "the size 848 MB (848,375,000 bytes) is above 848 MB (848,374,999 bytes)"


# ---- structured output -------------------------------------------------------------------------------


@pytest.mark.parametrize(("n_valid", "outcome"), [(60, "passed"), (57, "too few questions"), (30, "failed")])
def test_schema_conformance_is_judged_by_its_interval(gate, n_valid: int, outcome: str) -> None:
    contracts = {QUANT: contract_report(QUANT, n_valid=n_valid)}
    manifest = MANIFEST.model_copy(update={"contracts": contracts})
    assert only(gate("defaults: {min_schema_conformance: 0.9}", manifest)).outcome == outcome


def test_a_file_never_served_has_no_schema_conformance(gate) -> None:
    manifest = MANIFEST.model_copy(update={"contracts": {}})
    result = only(gate("defaults: {min_schema_conformance: 0}", manifest))
    assert result.outcome == "not measured"
    assert result.finding.endswith("Type: make contract MODEL=lagoon/Lagoon-1B-Instruct QUANT=Q4_K_M")


# ---- the twin ----------------------------------------------------------------------------------------

PROVED = "Computes what Transformers computes: max |Δ logit| 0.000023, on a random twin."


@pytest.mark.parametrize(("facts", "limit", "outcome", "said"), [
    ({"status": "proved", "finding": PROVED}, 1_000_000, "passed", PROVED.rstrip(".")),
    ({"status": "known", "finding": "Computes what Transformers computes but for one thing."}, 1, "passed", "but for"),
    ({"status": "limited", "finding": "", "right_up_to_tokens": 4096}, 1, "passed", "4,096 tokens is at least 1 token"),
    ({"status": "limited", "finding": "", "right_up_to_tokens": 4096}, 8192, "failed", "4,096 tokens is below 8,192"),
    ({"status": "differs", "finding": "", "allowed": True}, 1, "failed", "0 tokens is below 1 token"),
    ({"status": "unproved", "finding": "Not proved: no class."}, 1, "not judged", "Not proved: no class"),
])  # fmt: skip
def test_the_length_up_to_which_a_model_computes_the_same_is_a_budget(
    gate, facts: dict[str, Any], limit: int, outcome: str, said: str
) -> None:
    result = only(gate(f"defaults: {{min_same_tokens: {limit}}}", with_twin(MANIFEST, **facts)))
    assert result.outcome == outcome and said in result.finding


def test_a_model_that_was_built_without_its_twin_is_not_judged_by_it(gate) -> None:
    result = only(gate("defaults: {min_same_tokens: 1}"))
    assert result.outcome == "not judged" and result.finding.endswith("PARITY=twin")
    source = MANIFEST.source.model_copy(update={"kind": "gguf"})
    result = only(gate("defaults: {min_same_tokens: 1}", MANIFEST.model_copy(update={"source": source})))
    assert result.outcome == "not judged" and "a GGUF has no twin" in result.finding


def test_a_twin_that_differs_fails_the_default_budgets() -> None:
    manifest = with_twin(MANIFEST, status="differs", finding="…", allowed=True)
    report = judge_gate_budgets(manifest, [QUANT], "standard", load_gate_budgets(None))
    assert [r.budget for r in report.with_outcome("failed")] == ["min_same_tokens"]


# ---- what was not measured ---------------------------------------------------------------------------

EVERYTHING = """defaults: {max_ppl_change: 5, max_mean_kld: 1, max_accuracy_loss: 5, max_cache_kld: 1,
  max_behaviour_loss: 5, max_length_increase: 5, max_unfinished_increase: 5, max_loops_increase: 5,
  min_prompt_tokens_per_s: 1, min_generated_tokens_per_s: 1}"""


@pytest.mark.parametrize("manifest", [
    MANIFEST.model_copy(update={"evaluations": {}}),
    changed(file=measurement().file.model_copy(update={"sha256": sha256_of("another file")})),
    changed(file=measurement().file.model_copy(update={"sha256": None})),
    changed(divergence=None, speed=None, comparisons=()),
], ids=["no evaluation", "of another file", "of an unknown file", "nothing in it"])  # fmt: skip
def test_what_was_not_measured_of_this_very_file_never_passes(gate, manifest: Manifest) -> None:
    report = gate(EVERYTHING, manifest)
    assert {r.outcome for r in report.results} == {"not measured"}
    assert {r.budget for r in report.results} == set(NAMES) - {"max_size", "min_schema_conformance", "min_same_tokens"}
    assert all("Type: make eval" in r.finding for r in report.results)


def test_no_finding_names_a_folder_of_this_machine(gate) -> None:
    manifest = MANIFEST.model_copy(update={"evaluations": {}, "contracts": {}})
    at_home = manifest.source.model_copy(update={"repo_id": "", "title": "/home/me/model"})
    report = judge_gate_budgets(
        manifest.model_copy(update={"source": at_home}), [QUANT], "mine", load_gate_budgets(None)
    )
    assert not [r for r in report.results if "/home" in r.finding]


def test_a_quant_that_is_not_built_is_refused() -> None:
    with pytest.raises(BadRequest, match="Q5_K_M is not built; built: Q8_0, Q4_K_M"):
        judge_gate_budgets(MANIFEST, ["Q5_K_M"], "standard", load_gate_budgets(None))


def as_baseline(quant: str) -> Manifest:
    baseline = measurement().divergence
    assert baseline is not None
    bare = baseline.model_copy(update={"mean_kld": None, "ln_perplexity_ratio": None})
    return with_report(changed(divergence=bare, comparisons=()), baseline=quant)


def test_a_quantized_baseline_measured_against_itself_proves_nothing(gate) -> None:
    result = only(gate("defaults: {max_mean_kld: 1}", as_baseline(QUANT)))
    assert result.outcome == "not measured"
    assert result.finding.startswith("mean KLD is not known: Q4_K_M was the baseline. Type: make eval")


def test_the_unquantized_baseline_has_lost_nothing(gate) -> None:
    manifest = MANIFEST
    report: EvalReport = manifest.evaluations["standard"]
    facts = report.measurements[0].file
    record = manifest.quants[QUANT].model_copy(update={"sha256": facts.sha256})
    manifest = manifest.model_copy(update={"quants": {"BF16": record}})
    held = gate("defaults: {max_mean_kld: 0, max_ppl_change: 0, max_accuracy_loss: 0}", manifest, "BF16")
    assert [(r.outcome, r.value) for r in held.results] == [("passed", 0.0)] * 3


def test_a_loss_against_a_quantized_baseline_says_so(gate) -> None:
    finding = only(gate("defaults: {max_mean_kld: 1}", with_report(MANIFEST, baseline="Q8_0"))).finding
    assert finding.endswith("against the baseline Q8_0, which is quantized itself")


# ---- the gate as a whole -----------------------------------------------------------------------------


def test_the_worst_result_is_the_gates_and_files_keep_their_order() -> None:
    manifest = MANIFEST
    report = judge_gate_budgets(manifest, ["Q4_K_M", "Q8_0", "Q4_K_M"], "standard", load_gate_budgets(None))
    assert list(dict.fromkeys(r.quant for r in report.results)) == ["Q4_K_M", "Q8_0"]
    assert len({(r.quant, r.budget, r.task) for r in report.results}) == len(report.results)
    assert (report.budgets, report.suite, report.outcome) == ("default", "standard", "too few questions")
    assert report.sha256 == hashlib.sha256(DEFAULT.read_bytes()).hexdigest()


def test_every_budget_has_a_judge_and_a_name() -> None:
    assert set(GateBudget.model_fields) - {"confidence", "only_if_measured"} == set(_JUDGES) == set(NAMES)


# ---- budgets -----------------------------------------------------------------------------------------


def load(tmp_path: Path, text: str | bytes):
    path = tmp_path / "gate.yaml"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return load_gate_budgets(path)


def test_the_more_specific_entry_wins_budget_by_budget(tmp_path: Path) -> None:
    budgets = load(tmp_path, """
        defaults: {max_mean_kld: 1, max_ppl_change: 100, max_size: 5GB, confidence: 0.9}
        quants:
          q4_k_m: {max_mean_kld: 0.04}
          "Q4*": {max_mean_kld: 0.2, max_ppl_change: 20}
          "Q4_K*": {max_mean_kld: 0.1}
          4-bit: {max_mean_kld: 0.3, max_size: null, confidence: 0.99}
    """)
    klds = {q: budgets.of(q).max_mean_kld for q in ("Q4_K_M", "Q4_K_S", "Q4_0", "IQ4_XS", "Q8_0")}
    assert klds == {"Q4_K_M": 0.04, "Q4_K_S": 0.1, "Q4_0": 0.2, "IQ4_XS": 0.3, "Q8_0": 1.0}
    found = budgets.of("Q4_K_M")
    assert (found.max_ppl_change, found.max_size, found.confidence) == (20, None, 0.99)
    assert (budgets.of("Q8_0").max_size, budgets.of("Q8_0").confidence) == (5_000_000_000, 0.9)


def test_a_file_stands_alone_and_is_known_by_its_name_and_hash(tmp_path: Path) -> None:
    text = "defaults: {max_size: 4GiB}\n"
    budgets = load(tmp_path, text)
    assert (budgets.name, budgets.sha256) == ("gate.yaml", hashlib.sha256(text.encode()).hexdigest())
    assert budgets.of("Q4_K_M") == GateBudget.model_validate({"max_size": 4 * 2**30})


@pytest.mark.parametrize(("text", "words"), [
    ("defaults: {max_kld: 1}", "unknown key 'max_kld'. Did you mean 'max_mean_kld'?"),
    ("default: {max_mean_kld: 1}", "unknown key 'default'. Did you mean 'defaults'?"),
    ("quants: {Q4_KM: {max_mean_kld: 1}}", "unknown quant 'Q4_KM'. Did you mean 'Q4_K_M'?"),
    ("quants: {4bits: {max_mean_kld: 1}}", "unknown quant '4bits'. Did you mean '4-bit'?"),
    ('quants: {"Z4*": {max_mean_kld: 1}}', "no quant matches 'Z4*'"),
    ("quants: {Q4_K: {max_mean_kld: 1}, q4_k_m: {max_mean_kld: 2}}", "repeats Q4_K_M"),
    ("defaults: {max_mean_kld: 1, max_mean_kld: 2}", "the key 'max_mean_kld' is repeated"),
    ("defaults: {max_mean_kld: -1}", "defaults: max_mean_kld is -1"),
    ("defaults: {max_mean_kld: .nan}", ".nan is not a finite number"),
    ("defaults: {max_ppl_change: .inf}", ".inf is not a finite number"),
    ("defaults: {min_schema_conformance: .nan}", ".nan is not a finite number"),
    ("defaults: {max_mean_kld: yes}", "max_mean_kld is True"),
    ("defaults: {max_accuracy_loss: yes}", "max_accuracy_loss is True"),
    ("defaults: {max_accuracy_loss: {arc: 200}}", "max_accuracy_loss: arc is 200"),
    ('defaults: {max_mean_kld: "0.1"}', "max_mean_kld is '0.1'"),
    ("defaults: {max_mean_kld: 2026-01-01}", "max_mean_kld is '2026-01-01'"),
    ("defaults: {max_size: 5 lightyears}", "write it like 5GB"),
    ('defaults: {max_size: "5,000"}', "write it like 5GB"),
    ("defaults: {max_size: 0}", "max_size is 0"),
    ("defaults: {max_size: 1}\nquants: []", "quants is []"),
    ("defaults: {max_mean_kld: 1, confidence: 1}", "confidence is 1"),
    ("defaults: 5", "defaults is 5"), ("5", "holds no budgets"), ("", "holds no budgets"), ("[]", "holds no budgets"),
    ("defaults: {}", "sets no budget"), ("defaults: {confidence: 0.9}", "sets no budget"),
    ("defaults:", "sets no budget"), ("defaults: {max_accuracy_loss: {}}", "sets no budget"),
    ("defaults: {max_mean_kld: null}", "sets no budget"), ("5: {}", "a key that is not a text"),
    ("a: &a [x]\nb: *a", "the alias *a"), ("!!python/object/apply:os.system [ls]", "line 1: the tag"),
    ("defaults: {max_size: " + "9" * 5000 + "}", "cannot be used"), ("[" * 50_000, "nested deeper than 40 levels"),
    (b"\xff\xfe\x00", "cannot be used"), (b"\x00", "cannot be used"), ("#" * 70_000, "larger than 64 KiB"),
])  # fmt: skip
def test_what_is_wrong_with_a_file_is_said(tmp_path: Path, text: str | bytes, words: str) -> None:
    with pytest.raises(BadBudgets) as caught:
        load(tmp_path, text)
    assert words in caught.value.message
    assert caught.value.message.startswith("gate.yaml") and len(caught.value.message) < 300
    assert caught.value.hint


def test_a_file_that_is_not_there_is_said(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.yaml", tmp_path):
        with pytest.raises(BadBudgets, match="does not exist"):
            load_gate_budgets(path)


# ---- our own budgets ---------------------------------------------------------------------------------

# llama.cpp, tools/perplexity/README.md, Llama 3 8B at f364eb6f without importance matrix where there is such a row:
# mean KLD, ΔPPL in per cent of 6.2316, -mean Δp in points.
TABLE = {
    "Q8_0": (0.001355, 0.0425, 0.019), "Q6_K": (0.005452, 0.349, 0.007), "Q5_K_M": (0.010762, 0.914, 0.114),
    "Q5_K_S": (0.016595, 1.684, 0.223), "Q5_1": (0.018045, 1.705, 0.287), "Q5_0": (0.022239, 2.112, 0.416),
    "Q4_K_M": (0.031273, 2.816, 0.596), "Q4_K_S": (0.043136, 4.315, 0.927), "IQ4_NL": (0.035742, 3.594, 0.590),
    "IQ4_XS": (0.036334, 3.660, 0.668), "Q4_1": (0.071683, 7.239, 0.927), "Q4_0": (0.071940, 7.518, 1.588),
    "Q3_K_L": (0.087176, 8.926, 1.532), "Q3_K_M": (0.101913, 10.541, 1.990), "IQ3_M": (0.102534, 10.699, 3.178),
    "IQ3_S": (0.111278, 11.777, 3.066), "IQ3_XS": (0.138693, 14.946, 3.667), "IQ3_XXS": (0.183625, 19.687, 3.918),
    "Q3_K_S": (0.228217, 26.191, 5.604), "IQ2_M": (0.325989, 38.018, 6.463), "Q2_K": (0.445132, 56.485, 9.123),
}  # fmt: skip
LOST = {"IQ2_XS": (0.546290, 72.69), "IQ2_XXS": (0.812022, 126.1), "IQ1_M": (1.393084, 309.1)}


def loss(budget: GateBudget) -> float:
    assert budget.max_accuracy_loss is not None
    return budget.max_accuracy_loss["*"]


def test_every_quant_has_a_family_with_budgets_of_its_own() -> None:
    assert {quant_family(quant.name) for quant in QUANTS} == set(FAMILIES) == set(load_gate_budgets(None).quants)


@pytest.mark.parametrize("quant", TABLE)
def test_what_llama_cpp_measured_of_llama_3_passes_our_budgets(quant: str) -> None:
    budget = load_gate_budgets(None).of(quant)
    kld_, ppl, points = TABLE[quant]
    assert kld_ <= (budget.max_mean_kld or 0) and ppl <= (budget.max_ppl_change or 0) and points <= loss(budget)


@pytest.mark.parametrize(("quant", "smaller"), [
    ("BF16", "Q8_0"), ("Q8_0", "Q6_K"), ("Q6_K", "Q5_K_M"), ("Q5_K_M", "Q4_K_M"), ("Q4_K_M", "Q3_K_M"),
    ("Q3_K_M", "Q2_K"),
])  # fmt: skip
def test_a_file_no_better_than_the_next_smaller_family_fails_our_budgets(quant: str, smaller: str) -> None:
    budget = load_gate_budgets(None).of(quant)
    assert TABLE[smaller][0] > (budget.max_mean_kld or 9)


@pytest.mark.parametrize("quant", LOST)
def test_what_is_lost_at_8b_fails_our_budgets(quant: str) -> None:
    budget = load_gate_budgets(None).of(quant)
    assert LOST[quant][0] > (budget.max_mean_kld or 9) and LOST[quant][1] > (budget.max_ppl_change or 999)


def test_the_budgets_grow_as_bits_shrink() -> None:
    found = [load_gate_budgets(None).quants[family] for family in FAMILIES]
    for name in ("max_mean_kld", "max_ppl_change"):
        values = [getattr(budget, name) for budget in found]
        assert values == sorted(values)
    assert [loss(b) for b in found] == sorted(loss(b) for b in found)


def test_the_documentation_states_our_budgets() -> None:
    docs = DEFAULT.parents[2] / "docs"
    text = (docs / "explanation" / "gate.md").read_text() + (docs / "how-to" / "gate.md").read_text()
    for family, budget in load_gate_budgets(None).quants.items():
        row = f"| {family} | {budget.max_ppl_change:g} % | {budget.max_mean_kld:g} | {loss(budget):g} |"
        assert row in text
    for name in NAMES:
        assert f"`{name}`" in text


def test_the_examples_in_the_documentation_load(tmp_path: Path) -> None:
    text = (DEFAULT.parents[2] / "docs" / "how-to" / "gate.md").read_text()
    examples = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    assert [load(tmp_path, example).of("Q8_0").max_mean_kld for example in examples] == [0.005, 0.01]


def test_few_questions_of_a_short_suite_say_which_asks_more(gate) -> None:
    manifest = with_comparisons(comparison(4, 0, 32))
    report = manifest.evaluations["standard"]
    quick = manifest.model_copy(update={"evaluations": {"quick": report}})
    result = only(gate("defaults: {max_accuracy_loss: 5}", quick, suite="quick"))
    assert result.finding.endswith("questions would decide; there were 32 (SUITE=standard asks more)")


def test_an_interval_of_a_result_holds_its_value(gate) -> None:
    for result in gate(EVERYTHING).results:
        if isinstance(result.interval, Interval) and result.value is not None:
            assert result.interval.low <= result.value <= result.interval.high


def test_the_api_test_and_the_default_budgets_have_one_limit_for_schemas() -> None:
    assert load_gate_budgets(None).of("Q4_K_M").min_schema_conformance == SCHEMA_LIMIT
