"""The record of sampled answers: several answers, each with a seed of its own, to every question."""

from quantyard.protocol.base import Frozen
from quantyard.protocol.estimates import Interval


class SampledMean(Frozen):
    """The mean of a value over questions and seeds, or of its difference from the baseline's.

    The questions are a sample and so are the answers to each of them: the interval holds for other questions and other
    seeds. The two standard errors say what each contributes: their squares add up to the variance of the mean.
    """

    result: Interval
    n_questions: int
    n_seeds: int  # answers to each question; of a difference, the fewer of the two files'
    question_variance: float  # of the questions' expected values; 0 at least
    seed_variance: float | None  # of the answers to one question, mean over questions; None: one answer each
    question_stderr: float
    seed_stderr: float | None
    p: float | None = None  # of the test that there is no difference; None for the mean of one file
