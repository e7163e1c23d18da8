"""The amount of work of a step, in a unit that its time is proportional to. The same functions serve the steps of a
plan and the records of a manifest: both know the request and the number of weights.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from pydantic import JsonValue

from quantyard.protocol.base import json_digest

Request = Mapping[str, Any]  # a stage's request as JSON
Limits = tuple[int | None, ...]  # questions of each task of an evaluation; None: all

_OWN_TEXT_TOKENS: Final = 120_000  # of our calibration text; see docs/explanation/calibration.md
_AGAIN: Final = 2  # chunks that are read again with float32 copies, unless a suite says otherwise
_OWN_PROSE_CHUNKS: Final = 23  # of 512 tokens, in the prose that divergence reads
_OWN_DOMAINS: Final = 14  # texts by domain, but for long documents
_LONG: Final = "long"  # their domain
# An evaluation begins with a self-check of about 1,350 tokens (self_check.py). A question of `smoke` decodes 14, since
# common prefixes are decoded once. With longer questions this constant is too large, but then it matters less.
_SELF_CHECK: Final = 95  # questions
_WARM_UP_TOKENS: Final = 4  # that the stage `speed` generates before the first repeat, after a whole prompt
_GENERATED_COST: Final = 4  # prompt tokens in the time of one generated token: 3 to 6 for small models on a CPU


@dataclass(frozen=True)
class ForecastWork:
    """The work of one step.

    Times are compared only within one `kind` and `variant`. `family` and `dominant_type` change the speed too, but
    where nothing is known of them the others' speed is a fair guess. That of another architecture is a poor one, see
    architecture.py.
    """

    kind: str
    amount: float
    variant: str = ""
    family: str = ""  # the quant
    dominant_type: str = ""  # the tensor type of most of its weights; "": not known
    asked: int = 0  # questions of an evaluation
    limits: Limits = ()  # of questions, by task
    n_together: int = 1  # steps of a shared run: `amount` is the share of one
    architecture: str = ""  # of a stage that decodes; "": not known
    memory: str = ""  # cells, window, states; "": not known


def forecast_work(
    request: Request, n_params: int, n_together: int = 1, *, with_baseline: bool = True, n_questions: int = 0,
    n_ctx_train: int | None = None,
) -> ForecastWork | None:
    """The work of a stage with this request; None where it is not known.

    Args:
        request: as JSON.
        n_params: weights of the model.
        n_together: how many steps are one run, in which the baseline is decoded once for all.
        with_baseline: whether the baseline is decoded in that run and no member itself.
        n_questions: how many an evaluation asks, which its request does not tell; 0: not known.
        n_ctx_train: tokens of the context that the model was trained for; None: not known.
    """
    if request["stage"] == "domains":
        found: ForecastWork | None = _domains_work(request, n_params, n_together, with_baseline, n_ctx_train)
    else:
        found = _work_of_whole(request, n_params, n_together, with_baseline, n_questions)
    shard = request.get("shard")
    if found is None or not found.amount or not shard:
        return found
    checked = n_params * _SELF_CHECK if found.kind == "evaluate" else 0  # by every shard
    return replace(found, amount=(found.amount - checked) / shard["count"] + checked)


MERGE_S: Final = 5.0  # to put shards together, until that is measured


def merge_work(stage: str) -> ForecastWork:
    """The work of putting the shards of a stage together, which hardly depends on the model."""
    return ForecastWork("merge", 1, stage)


def _work_of_whole(
    request: Request, n_params: int, n_together: int, with_baseline: bool, n_questions: int
) -> ForecastWork | None:
    kind = str(request["stage"])
    if kind == "evaluate":
        return _evaluate_work(request, n_params, n_questions)
    if kind == "divergence":
        return _divergence_work(request, n_params, n_together, with_baseline)
    rule = _RULES.get(kind)
    return rule(request, n_params) if rule else None


def _divergence_work(request: Request, n_params: int, n_together: int, with_baseline: bool) -> ForecastWork:
    """Decoded tokens: the model's own, and its share of the baseline's, which reads the chunks alone."""
    settings = request["settings"]
    if n_together == 1:
        with_baseline = request["baseline_file"] is not None
    rolling = bool(settings.get("rolling", True))  # lm-eval's windows; older records lack this setting
    passes = 1 + rolling + with_baseline / n_together
    tokens = (settings["n_chunks"] or _OWN_PROSE_CHUNKS) * settings["n_ctx"]
    again = min(settings.get("weights_chunks", _AGAIN), settings["n_chunks"] or _OWN_PROSE_CHUNKS) * settings["n_ctx"]
    amount = n_params * (tokens * passes + again * (request["baseline_file"] is not None) * (1 + 1 / n_together))
    return ForecastWork("divergence", amount, settings["text"] or "", request["label"], n_together=n_together)


def _domains_work(
    request: Request, n_params: int, n_together: int, with_baseline: bool, n_ctx_train: int | None
) -> ForecastWork:
    """Decoded tokens, as of a divergence; the texts of a user are taken to be as long as the settings ask."""
    from quantyard.protocol.evaluation import last_long_position  # imported late: a build measures nothing

    settings, names = request["settings"], set(request["settings"]["names"])
    if n_together == 1:
        with_baseline = request["baseline_file"] is not None
    tokens = settings["tokens"] * (len(names - {_LONG}) if names else _OWN_DOMAINS)
    if not names or _LONG in names:
        tokens += settings["long_documents"] * last_long_position(settings["positions"], n_ctx_train)
    amount = n_params * tokens * (1 + with_baseline / n_together)
    return ForecastWork("domains", amount, settings["texts"] or "", request["label"], n_together=n_together)


def _evaluate_work(request: Request, n_params: int, n_questions: int) -> ForecastWork:
    """Questions; 0 where their number is not known. Without tasks the model is only loaded."""
    if not request["tasks"]:
        return ForecastWork("evaluate", n_params, "no tasks", request["label"])
    variant, limits = forecast_questions(request)
    amount = n_params * (n_questions + _SELF_CHECK) if n_questions else 0
    return ForecastWork("evaluate", amount, variant, request["label"], asked=n_questions, limits=limits)


def forecast_questions(request: Request) -> tuple[str, Limits]:
    """What an evaluation asks, and its limits: the same tasks with other limits are the same variant."""
    tasks = request["tasks"]
    plain: list[JsonValue] = [{name: value for name, value in task.items() if name != "limit"} for task in tasks]
    variant = json_digest([plain, request["apply_chat_template"], request["include_path"]])[:12]
    return variant, tuple(task["limit"] for task in tasks)


def _speed_work(request: Request, n_params: int) -> ForecastWork:
    settings = request["settings"]
    read = (settings["repeats"] + 1) * settings["prompt_tokens"]
    written = settings["repeats"] * settings["generated_tokens"] + _WARM_UP_TOKENS
    return ForecastWork("speed", n_params * (read + _GENERATED_COST * written), "", request["label"])


def _cache_work(request: Request, n_params: int) -> ForecastWork:
    """Decoded tokens of every context: one for f16 and for each other type, and the baseline's."""
    settings = request["settings"]
    n_types = len({"f16", *settings["types"]})
    chunks = settings["n_chunks"] or _OWN_PROSE_CHUNKS * 512 // settings["n_ctx"] or 1
    timed = settings["repeats"] * (settings["prompt_tokens"] + _GENERATED_COST * settings["generated_tokens"])
    n_read = (n_types + (request["baseline_file"] is not None)) * settings["n_ctx"]
    tokens = chunks * (n_read + n_types * timed)
    return ForecastWork("cache", n_params * tokens, settings["text"] or "", request["label"])


def _openvino_work(request: Request, n_params: int) -> ForecastWork:
    """Decoded tokens of the file in both runtimes, and the baseline's."""
    settings = request["settings"]
    n_read = (2 + (request["baseline_file"] is not None)) * settings["n_ctx"]
    written = 2 * _GENERATED_COST * settings["generated_tokens"]
    amount = n_params * settings["n_chunks"] * (n_read + written)
    return ForecastWork("openvino", amount, settings["text"] or "", request["label"])


def _behaviour_work(request: Request, n_params: int) -> ForecastWork:
    """The same scenarios are the same variant: how long answers are, only a run shows."""
    return ForecastWork("behaviour", n_params, json_digest(request["settings"])[:12], request["label"])


def _calibrate_work(request: Request, n_params: int) -> ForecastWork | None:
    if request["n_chunks"]:
        return ForecastWork("calibrate", n_params * request["n_chunks"] * request["n_ctx"])
    return None if request["text_files"] else ForecastWork("calibrate", n_params * _OWN_TEXT_TOKENS)


def _quantize_work(request: Request, n_params: int) -> ForecastWork:
    given = "+imatrix" if request.get("imatrix_file") else ""
    return ForecastWork("quantize", n_params, "", request["quant"] + given)


def _fetch_work(request: Request, _n_params: int) -> ForecastWork:
    return ForecastWork("fetch", sum(file["size_bytes"] for file in request["files"]))


def _datasets_work(request: Request, _n_params: int) -> ForecastWork:
    return ForecastWork("datasets", 1, json_digest(list(request["tasks"]))[:12])


def _weights_work(request: Request, n_params: int) -> ForecastWork:
    return ForecastWork(request["stage"], n_params)


# To add a stage: add a row. The time of other stages is "not known yet".
_RULES: Mapping[str, Callable[[Request, int], ForecastWork | None]] = {
    "fetch": _fetch_work, "twin": lambda _request, _n_params: ForecastWork("twin", 1),
    "parity": _weights_work, "convert": _weights_work, "projector": _weights_work,
    "calibrate": _calibrate_work, "quantize": _quantize_work, "verify": _weights_work,
    "verify_foreign": _weights_work,
    "dequantize": _weights_work, "split": _weights_work, "datasets": _datasets_work, "speed": _speed_work,
    "behaviour": _behaviour_work,
    "cache": _cache_work, "openvino": _openvino_work,
    "contract": lambda request, n_params: ForecastWork("contract", n_params, "", request["label"]),
    "report": lambda request, _n_params: ForecastWork("report", len(request["labels"])),
}  # fmt: skip


# The types that are made and decoded by the same kind of code: the first that is part of the name. IQ types of less
# than 4 bits search a lattice for each block, IQ4 a table of 16 values; Q8_0 rounds, other old types search a scale.
_KINDS: Final = ("IQ4", "IQ", "_K", "Q8", "BF", "F")
_ROUNDING: Final = ("Q8", "BF", "F")  # a matrix does not change how they are made


def forecast_timing_class(work: ForecastWork) -> str:
    """Steps of one class take similar times: the kind of their types, and whether an importance matrix is used."""
    kind = next((name for name in _KINDS if name in (work.dominant_type or work.family)), "old")
    given = "" if kind in _ROUNDING else work.family.partition("+")[2]
    return f"{kind}+{given}" if work.family else ""


def forecast_threads(request: Request) -> int:
    """The threads that were asked for; 0: the stage decides."""
    runtime = request.get("runtime")
    return int(runtime["threads"] if runtime else request.get("threads") or 0)


# Seconds of a stage that do not grow with the model: the container, Python, imports, probes, plots. Used where samples
# have only one size, so that the estimate for a model fifty times as large does not multiply them by fifty.
FIXED_S: Final[Mapping[str, float]] = {
    "fetch": 1.0, "twin": 15.0, "convert": 4.0, "projector": 8.0, "calibrate": 3.0, "quantize": 1.5, "verify": 2.0,
    "evaluate": 6.0,
    "divergence": 2.0, "domains": 3.0, "speed": 2.0, "cache": 2.0, "openvino": 5.0, "report": 4.0, "contract": 5.0,
}  # fmt: skip
_FAR_APART: Final = 3  # times as much work; with less, the start is lost in noise
_MOST_START: Final = 0.95  # of the seconds of the most work: some part always grows with it
Points = Sequence[tuple[float, float]]  # (work, seconds)


def forecast_start_and_slope(points: Points, fixed_s: float, *, is_measured: bool = False) -> tuple[float, float]:
    """Start and slope of seconds over work: the least squares where sizes differ enough, else `fixed_s` and the median
    of what is left.

    Args:
        points: at least one.
        fixed_s: a start that was measured on others may be nearly all that was seen here, one that is a guess half.
        is_measured: which of the two.
    """
    from statistics import fmean, median

    if fitted := forecast_least_squares(points):
        return fitted
    start = min(fixed_s, (_MOST_START if is_measured else 0.5) * fmean(seconds for _, seconds in points))
    return start, median((seconds - start) / work for work, seconds in points if work > 0)


def forecast_least_squares(points: Points) -> tuple[float, float] | None:
    """Start and slope by least squares; None where the sizes do not differ enough. Where a start below nothing or no
    growth comes out, the slope is that of the most work beyond the nearest start there can be.
    """
    from statistics import linear_regression

    works = [work for work, _ in points]
    if max(works) < _FAR_APART * min(works):
        return None
    slope, found = linear_regression(works, [seconds for _, seconds in points])
    most, seconds = max(points)
    start = min(max(found, 0.0), _MOST_START * seconds)
    return start, slope if start == found else (seconds - start) / most
