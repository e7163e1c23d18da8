"""Means over questions and seeds: several sampled answers to each question, seeds as a random effect.

The value of answer s to question q is y = μ + a(q) + e(q, s): the questions' variance is that of a, the seeds' that of
e. With Q questions and S answers to each, the variance of the mean is (var a + var e / S) / Q, which the spread of the
questions' means estimates without bias, whatever the two are. Q · S answers do not count as independent: where the
questions differ, that interval would be up to √S times too narrow. More seeds shrink only the second part.

Source of the estimators: Searle, Casella and McCulloch, Variance Components (1992), ch. 3 (analysis of variance,
balanced); of their use on models' answers: Miller, arXiv 2411.00640, section 3.1.

This holds for answers that are independent between questions. A sampler that starts with the same seed at each
question draws the same numbers at each of them; `sampled_answer_seed` gives every answer its own.
"""

from __future__ import annotations

import hashlib
import math
from typing import Final

import numpy as np

from eval.analysis.statistics import (
    Groups,
    Numbers,
    mean_interval,
    paired_means_interval,
    paired_means_p,
    proportion_interval,
)
from quantyard.metrics.intervals import wilson_interval
from quantyard.protocol.estimates import Interval
from quantyard.protocol.sampled_answers import SampledMean

_SEED_BYTES: Final = 4  # llama.cpp's seeds have 32 bits
_RANDOM_SEED: Final = 0xFFFFFFFF  # llama.cpp's LLAMA_DEFAULT_SEED asks for one that nobody knows


def sampled_answer_seed(seed: int, question: str, answer: int) -> int:
    """The sampler's seed for one answer, 0 to 2³² - 2: of the suite's seed, the question's name and the answer's
    number, so that it does not depend on what else is asked.
    """
    said = f"{seed}\n{answer}\n{question}".encode(errors="surrogatepass")
    return int.from_bytes(hashlib.sha256(said).digest()[:_SEED_BYTES], "big") % _RANDOM_SEED


def sampled_answers_mean(values: Numbers, groups: Groups | None = None) -> SampledMean:
    """The mean of one file's answers; `values` has shape (questions, seeds), `groups` those of the questions.

    Values that are all 0 or 1 get Wilson's interval, of as many answers as they are worth; where they are all alike,
    of as many as there are questions.
    """
    means = _question_means(values)
    if np.isin(values, (0.0, 1.0)).all():
        result = _sampled_proportion_interval(values, groups)
    else:
        result = mean_interval(means, groups)
    return _sampled_mean(result, means, (values,), None)


def sampled_answers_difference(baseline: Numbers, other: Numbers, groups: Groups | None = None) -> SampledMean:
    """The mean difference of two files' answers to the same questions; each has shape (questions, seeds).

    The files may have different numbers of seeds. Seeds are not paired: with equal ones two files draw the same
    numbers, but from the first token that differs on, they no longer mean the same.
    """
    one, two = _question_means(baseline), _question_means(other)
    result = paired_means_interval(one, two, groups)
    return _sampled_mean(result, two - one, (baseline, other), paired_means_p(one, two, groups))


def _question_means(values: Numbers) -> Numbers:
    if values.ndim != 2 or 0 in values.shape:
        message = f"sampled answers have the shape (questions, seeds), not {values.shape}"
        raise ValueError(message)
    return np.asarray(values.mean(axis=1))


def _sampled_proportion_interval(values: Numbers, groups: Groups | None) -> Interval:
    questions, seeds = values.shape
    if float(np.ptp(values)) == 0:
        n = questions if groups is None else len(set(groups))
        return wilson_interval(float(values.flat[0]) * n, n)
    of = np.arange(questions) if groups is None else np.asarray(groups)
    return proportion_interval(values.ravel(), np.repeat(of, seeds).tolist())


def _sampled_mean(result: Interval, means: Numbers, files: tuple[Numbers, ...], p: float | None) -> SampledMean:
    """`means` are what the interval was made of, one of each question; their variance less the seeds' is the
    questions'.
    """
    n, n_seeds = len(means), min(file.shape[1] for file in files)
    spread = float(means.var(ddof=1)) if n > 1 else 0.0
    within = [float(file.var(axis=1, ddof=1).mean()) for file in files] if n_seeds > 1 else [0.0 for _ in files]
    of_seeds = sum(variance / file.shape[1] for variance, file in zip(within, files, strict=True))
    between, is_known = max(0.0, spread - of_seeds), n_seeds > 1
    return SampledMean(
        result=result, n_questions=n, n_seeds=n_seeds, question_variance=between,
        seed_variance=sum(within) if is_known else None, question_stderr=math.sqrt(between / n),
        seed_stderr=math.sqrt(of_seeds / n) if is_known else None, p=p,
    )  # fmt: skip
