"""Figures of the noise of the packing of questions, from scores in two packings.

Only some questions are asked again, and few of them flip. So what flips among all of them is expected from how close
each one's two most likely answers are, and from how far answers move against each other.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from quantyard.protocol.task_results import AccuracyNoise


def score_sd(moved: Sequence[float]) -> float:
    """The standard deviation of a score over packings; the difference of two packings has twice the variance of one.

    Args:
        moved: by how much each score differs between two packings, nats.
    """
    return math.sqrt(float(np.square(moved).mean()) / 2)


def answer_spread(moved: Sequence[Sequence[float]]) -> float:
    """How far an answer's score moves against the others of its question: the standard deviation of the move, in nats.

    Args:
        moved: of each question, by how much the score of each answer differs between two packings. What all answers of
            a question have in common picks no other one, so it is taken off, with its degree of freedom.
    """
    residuals = [float(((of := np.array(one)) - of.mean()) @ (of - of.mean())) for one in moved]
    freedom = sum(len(one) - 1 for one in moved)
    return math.sqrt(sum(residuals) / freedom) if freedom else 0.0


def flip_probability(lead: float, spread: float) -> float:
    """That another answer is the most likely one in a second packing, of a question whose pick leads by `lead` nats.

    Both scores move by normal errors of the standard deviation `spread`, so the lead by one √2 as large.
    """
    return 0.5 * math.erfc(lead / (2 * spread)) if spread else 0.0


def accuracy_noise(right: Sequence[bool], scores: Sequence[Sequence[float]], spread: float) -> AccuracyNoise:
    """The noise of the accuracy of at least two questions with two answers or more each.

    Two packings differ at a question with its probability p of a flip, so one packing has the variance p / 2 there, or
    less: a flip from one wrong answer to another changes no accuracy.

    Args:
        scores: of each question, the log-likelihood of each answer, nats.
        spread: see `answer_spread`.
    """
    n, share = len(right), float(np.mean(right))
    leads = [best - second for *_, second, best in map(sorted, scores)]
    flips = sum(flip_probability(lead, spread) for lead in leads)
    stderr = math.sqrt(share * (1 - share) / (n - 1))
    return AccuracyNoise(
        n_questions=n, expected_flips=flips, layout_sd=math.sqrt(flips / 2) / n, sample_stderr=stderr
    )
