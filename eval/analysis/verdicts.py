"""The verdict on each difference of a report, corrected for how many there are, and how many questions would settle it.

Verdicts, in this order:

1. "no signal": the baseline's interval contains chance or lies below it, so any difference is noise.
2. "same": the whole interval of the difference lies within ± margin, so any difference is too small to matter.
3. "worse", "better": the test of no difference (McNemar's exact one for right-or-wrong answers, else Student's) has
   p < 0.05 after Holm's correction, and the interval excludes 0.
4. "too few questions": none of these; `questions_needed` says how many would settle it.

If each of 24 comparisons were tested at 5 %, up to 1 - 0.95^24 = 71 % of reports on files that do not differ would hold
a false "worse" or "better". Holm's correction over all comparisons with a signal, of every file, task and metric, keeps
that chance at 5 % for the whole report, however they depend on each other. Source: Scandinavian Journal of Statistics 6
(1979) 65.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np

from eval.analysis.behaviour import with_asked_behaviours
from eval.analysis.paired import PairedDifference, paired_differences
from eval.analysis.statistics import Numbers
from quantyard.metrics.holm import holm_adjusted
from quantyard.metrics.intervals import Z, normal_quantile, normal_share_below
from quantyard.metrics.power import POWER
from quantyard.protocol.estimates import CONFIDENCE
from quantyard.protocol.measurements import Comparison, Verdict
from quantyard.protocol.task_results import Evaluation

_ALPHA: Final = 1 - CONFIDENCE
_MOST_QUESTIONS: Final = 1 << 40
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(15)


def compare_evaluations(
    baseline: Evaluation, others: Sequence[Evaluation], margin: float
) -> list[tuple[Comparison, ...]]:
    """Every file of a report against the baseline, in the order of `others`; see `paired_differences` for `margin`.

    Raises:
        NotComparable: the evaluations did not ask the same questions.
    """
    found = [paired_differences(with_asked_behaviours(baseline, other), other, margin) for other in others]
    tested = [difference for of_file in found for difference in of_file if difference.has_signal]
    adjusted = dict(zip(map(id, tested), holm_adjusted([d.p for d in tested]), strict=True))
    return [tuple(_judged_comparison(d, adjusted.get(id(d)), len(tested)) for d in of_file) for of_file in found]


def _judged_comparison(found: PairedDifference, adjusted: float | None, n_tested: int) -> Comparison:
    one, two = found.baseline, found.file
    lost, gained = found.flips or (0, 0)
    verdict = _comparison_verdict(found, adjusted)
    return Comparison(
        task=one.key[0], metric=one.key[1], n=one.n, baseline=one.value, value=two.value, delta=found.delta,
        lost=lost, gained=gained, mcnemar_p=found.p if found.flips else None, adjusted_p=adjusted, verdict=verdict,
        questions_needed=questions_needed(found, n_tested) if verdict == "too few questions" else None,
    )  # fmt: skip


def _comparison_verdict(found: PairedDifference, adjusted: float | None) -> Verdict:
    delta = found.delta
    if adjusted is None:
        return "no signal"
    if delta.low >= -found.margin and delta.high <= found.margin:
        return "same"  # even if the interval excludes 0: a difference within the margin does not matter
    if (delta.low > 0 or delta.high < 0) and adjusted < _ALPHA:
        return "better" if (delta.value > 0) == found.baseline.higher_is_better else "worse"
    return "too few questions"


# ---- how many questions are needed -------------------------------------------------------------------


def questions_needed(found: PairedDifference, n_tested: int) -> int:
    """The number of questions (more than were asked) that settles the verdict with a chance of 80 %.

    The true difference is not known. So the chance is the mean over what the answers so far allow for it: assurance
    (O'Hagan, Stevens and Campbell, Pharmaceutical Statistics 4 (2005) 187); and where they allow that there is no
    difference, it must be 80 % in that case too. Flips are taken to occur at the observed rates. A difference is found
    at the level 5 % / `n_tested`, the first step of Holm's correction; without one, the interval must lie within the
    margin.
    """
    z = normal_quantile(1 - _ALPHA / max(1, n_tested))
    error = _standard_error_of_n_questions(found)
    differences = found.delta.value + _NODES * error(found.n)
    may_be_none = found.delta.low <= 0 <= found.delta.high

    def enough(n: int) -> bool:
        chances = _chance_settled(differences, error(n), found.margin, z)
        if may_be_none and _chance_settled(np.zeros(1), error(n), found.margin, z)[0] < POWER:
            return False
        return float(_WEIGHTS @ chances / _WEIGHTS.sum()) >= POWER

    return _first_sample_size(enough, found.n + 1)


def _standard_error_of_n_questions(found: PairedDifference) -> Callable[[int], float]:
    """The standard error of the difference as a function of the number of questions.

    That of right-or-wrong answers is half of Tango's interval in z: near √(v/m + z²/m²) / (1 + z²/m) for m questions
    with the flips' variance v, as with few flips its width is not proportional to 1 / √m. Two flips more than seen are
    counted, as few flips say little about their rate (Agresti and Min, Biometrics 61 (2005) 515).
    """
    if found.flips is None:
        half = (found.delta.high - found.delta.low) / 2 / Z
        return lambda n: half * math.sqrt(found.n / n)
    variance = (sum(found.flips) + 2) / found.n - found.delta.value**2

    def of_flips(n: int) -> float:
        m = n / found.effect
        return math.sqrt(variance / m + (Z / m) ** 2) / (1 + Z * Z / m)

    return of_flips


def _chance_settled(differences: Numbers, error: float, margin: float, z: float) -> Numbers:
    """The chance, for each true difference, that the observed one is beyond z standard errors or its interval lies
    within ± margin.
    """
    beyond, within = z * error, max(0.0, margin - Z * error)
    if within >= beyond or error == 0:
        return np.ones_like(differences)
    ends = np.array([-beyond, -within, within, beyond])
    below = np.array([[normal_share_below((end - d) / error) for end in ends] for d in differences])
    return np.asarray(below[:, 0] + below[:, 2] - below[:, 1] + 1 - below[:, 3])


def _first_sample_size(enough: Callable[[int], bool], start: int) -> int:
    """The smallest number from `start` on for which `enough` holds, where a larger one is enough too."""
    low, high = start - 1, start
    while not enough(high) and high < _MOST_QUESTIONS:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
