"""The worst domain and the limits of domains: held against hand calculations and the gate's own outcomes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from quantyard.card.render import render_card
from quantyard.gate.budgets import BadBudgets, load_gate_budgets
from quantyard.gate.domain_limits import judged_domains, kld_limit_p
from quantyard.gate.judge import judge_gate_budgets
from quantyard.metrics.domain_figures import domain_left_out_sentences, domain_rows, worst_domain
from quantyard.metrics.intervals import estimate_interval, t_quantile
from quantyard.protocol.divergence_results import DomainDivergence, DomainLeftOut, Domains
from quantyard.protocol.estimates import Estimate
from quantyard.protocol.gate import BudgetResult
from quantyard.report_page.render import render_report_page
from quantyard.store.manifest import Manifest
from tests.cards import CONTEXT
from tests.manifests import manifest_of

QUANT = "Q4_K_M"


def domain(name: str, value: float, stderr: float = 0.001, df: float = 9) -> DomainDivergence:
    return DomainDivergence(
        domain=name, form="text", n_documents=10, n_tokens=4000, n_read=4000, n_bytes=16_000,
        perplexity=Estimate(value=12.0, stderr=0.1), mean_kld=Estimate(value=value, stderr=stderr, df=df), kld_p99=0.4,
        top1_agreement=Estimate(value=0.9, stderr=0.01, df=9),
    )  # fmt: skip


def domains(**values: float) -> Domains:
    return Domains(label=QUANT, domains=tuple(domain(name, value) for name, value in values.items()))


def manifest(found: Domains | None) -> Manifest:
    plain = manifest_of()
    report = plain.evaluations["standard"]
    measured = [
        m.model_copy(update={"domains": found}) if m.file.label == QUANT else m for m in report.measurements
    ]
    changed = report.model_copy(update={"measurements": tuple(measured)})
    return plain.model_copy(update={"evaluations": {"standard": changed}})


def judged(folder: Path, limits: str, found: Domains | None) -> tuple[BudgetResult, ...]:
    (folder / "gate.yaml").write_text(f"defaults: {{max_mean_kld: {limits}}}")
    budgets = load_gate_budgets(folder / "gate.yaml")
    return judge_gate_budgets(manifest(found), [QUANT], "standard", budgets).results


# ---- the worst ---------------------------------------------------------------------------------------


def test_the_worst_domain_has_the_interval_of_the_largest_true_mean() -> None:
    found = Domains(label=QUANT, domains=(domain("code", 0.05, 0.004), domain("prose", 0.02), domain("chat", 0.048)))
    worst = worst_domain(found)
    assert worst is not None and (worst.domain, worst.n_domains, worst.mean_kld.value) == ("code", 3, 0.05)
    corrected = t_quantile(9, 1 - 0.05 / 3)  # each lower end at 5 % / 3
    assert worst.mean_kld.low == pytest.approx(max(0.05 - corrected * 0.004, 0.048 - corrected * 0.001))
    assert worst.mean_kld.high == pytest.approx(0.05 + t_quantile(9) * 0.004)


def test_of_one_domain_the_interval_is_its_own() -> None:
    worst = worst_domain(domains(code=0.05))
    assert worst is not None and worst.mean_kld == estimate_interval(Estimate(value=0.05, stderr=0.001, df=9))


def test_the_baseline_has_no_worst_domain() -> None:
    bare = domain("code", 0.0).model_copy(update={"mean_kld": None, "top1_agreement": None})
    assert worst_domain(Domains(label="BF16", domains=(bare,))) is None and worst_domain(None) is None


@pytest.mark.parametrize("means", [(0.05,) * 14, (0.05, *(0.02,) * 13), (0.05, 0.049, 0.048, *(0.03,) * 11)])
def test_the_interval_of_the_worst_of_fourteen_covers_the_largest_mean(means: tuple[float, ...]) -> None:
    """The value alone is too large by up to 1.7 standard errors; the interval is right in 95 % of cases or more."""
    random, n, inside, above = np.random.default_rng(1), 400, 0, 0.0
    for _ in range(n):
        clusters = np.array(means)[:, None] + 0.01 * random.standard_normal((len(means), 10))
        stderrs = clusters.std(axis=1, ddof=1) / np.sqrt(10)
        rows = zip(clusters.mean(axis=1), stderrs, strict=True)
        drawn = tuple(domain(str(i), float(mean), float(stderr)) for i, (mean, stderr) in enumerate(rows))
        worst = worst_domain(Domains(label=QUANT, domains=drawn))
        assert worst is not None
        inside += worst.mean_kld.low <= max(means) <= worst.mean_kld.high
        above += worst.mean_kld.value - max(means)
    assert inside / n >= 0.935, "95 % but for the noise of 400 draws"
    assert above / n > 0, "the largest of several is too large on average"


# ---- limits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "outcome"), [(0.06, "passed"), (0.05, "too few questions"), (0.04, "failed")])
def test_the_worst_domain_is_judged_by_its_interval(tmp_path: Path, limit: float, outcome: str) -> None:
    (result,) = judged(tmp_path, f"{{worst: {limit}}}", domains(code=0.05, prose=0.01))
    assert (result.task, result.outcome, result.value) == ("worst", outcome, 0.05)
    assert "mean KLD on the worst of 2 domains, code, 0.0500" in result.finding


def test_a_domain_is_judged_by_the_most_specific_limit(tmp_path: Path) -> None:
    found = domains(code=0.05, language_de=0.05, language_zh=0.05, prose=0.05)
    results = judged(tmp_path, '{code: 0.02, "language_*": 0.1, language_zh: 0.01}', found)
    assert {r.task: (r.limit, r.outcome) for r in results} == {
        "code": (0.02, "failed"), "language_de": (0.1, "passed"), "language_zh": (0.01, "failed"),
    }  # fmt: skip


def test_a_number_is_the_limit_of_the_suites_text_and_stands_beside_those_of_domains(tmp_path: Path) -> None:
    (alone,) = judged(tmp_path, "5", domains(code=9.0))
    text, worst = judged(tmp_path, "{text: 5, worst: 5}", domains(code=9.0))
    assert alone == text and text.outcome == "passed" and worst.outcome == "failed"


def test_a_domain_without_a_result_is_not_measured_never_passed(tmp_path: Path) -> None:
    for found in (None, domains(prose=0.01)):
        results = judged(tmp_path, "{code: 0.02}", found)
        assert [(r.task, r.outcome) for r in results] == [("code", "not measured")]
        assert results[0].finding.endswith(f"QUANT={QUANT} SUITE=domains")
    assert [r.outcome for r in judged(tmp_path, "{worst: 1}", None)] == ["not measured"]


def test_limits_of_many_domains_are_corrected_together() -> None:
    """Each is above its limit with p = 0.03 alone: one such limit fails, twenty together do not."""
    kld = Estimate(value=0.05, stderr=0.001, df=None)
    limit = 0.05 - 2.17 * 0.001
    assert kld_limit_p(kld, limit) == pytest.approx(0.03, abs=0.001)
    one = [domain("d0", 0.05).model_copy(update={"mean_kld": kld})]
    many = [one[0].model_copy(update={"domain": f"d{n}"}) for n in range(20)]
    outcomes = [
        {j.outcome for j in judged_domains(Domains(label=QUANT, domains=tuple(found)), {"d*": limit}, 0.95)}
        for found in (one, many)
    ]
    assert outcomes == [{"failed"}, {"too few questions"}]


@pytest.mark.parametrize(("text", "words"), [
    ("{worst: -1}", "max_mean_kld: worst is -1"), ("{code: yes}", "max_mean_kld: code is True"),
    ("{}", "sets no budget"), ("[0.1]", "max_mean_kld is [0.1]"),
])  # fmt: skip
def test_a_wrong_limit_of_a_domain_is_named(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(BadBudgets) as caught:
        judged(tmp_path, text, None)
    assert words in caught.value.message


# ---- rows --------------------------------------------------------------------------------------------


def test_rows_have_every_domain_and_the_worst_at_the_end() -> None:
    report = manifest(domains(code=0.05, language_de=0.03)).evaluations["standard"]
    rows = domain_rows(report.measurements)
    assert [row[:3] for row in rows] == [
        ("code", "4,000", "0.0500"), ("language de", "4,000", "0.0300"), ("worst", "", rows[-1][2]),
    ]  # fmt: skip
    assert rows[-1][2].startswith("code 0.0500 (")
    assert domain_rows(manifest(None).evaluations["standard"].measurements) == []


def test_what_is_left_out_is_said_once_for_all_files() -> None:
    left_out = (DomainLeftOut(domain="long", reason="positions from 8,192 on"),)
    found = domains(code=0.05).model_copy(update={"left_out": left_out})
    report = manifest(found).evaluations["standard"]
    assert domain_left_out_sentences(report.measurements) == ["long: positions from 8,192 on"]


def test_card_and_page_show_the_worst_domain_and_every_other() -> None:
    found = domains(code=0.05, language_de=0.03)
    card = render_card(manifest(found), CONTEXT).replace("\N{NO-BREAK SPACE}", " ")
    page = render_report_page(manifest(found), "standard")
    for text in (card, page):
        assert "Divergence by domain" in text and "language de" in text
        assert "0.0500" in text and "0.0300" in text and "90.0 %" in text
    without = manifest(None)
    assert "Divergence by domain" not in render_card(without, CONTEXT) + render_report_page(without, "standard")
