"""Evaluations and reports that look real, for the tests of measuring: made of simulated answers."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache

import numpy as np

from eval.analysis.columns import evaluation_scores
from eval.analysis.verdicts import compare_evaluations
from quantyard.protocol.divergence_results import Divergence
from quantyard.protocol.estimates import Estimate
from quantyard.protocol.evaluation import SpeedSettings, Suite, TaskEntry
from quantyard.protocol.measurements import EvalReport, Measurement
from quantyard.protocol.speed_results import Speed
from quantyard.protocol.task_results import Evaluation, FileFacts, MetricOutcome, SelfCheck, TaskOutcome

LN2 = float(np.log(2))
# task, entry, chance, questions, what a middling model gets right
TASKS = [
    ("arc_easy", 0.25, 500, 0.61), ("arc_challenge", 0.25, 500, 0.34), ("hellaswag", 0.25, 500, 0.43),
    ("piqa", 0.5, 500, 0.68), ("winogrande", 0.5, 500, 0.53), ("openbookqa", 0.25, 300, 0.31),
    ("boolq", 0.5, 500, 0.60), ("mmlu", 0.25, 570, 0.26), ("commonsense_qa", 0.2, 400, 0.38), ("sciq", 0.25, 400, 0.85),
    ("truthfulqa_mc1_with_a_long_name", 0.23, 400, 0.28), ("gsm8k", None, 250, 0.12),
]  # fmt: skip


def metric(name: str, values: Sequence[float | tuple[float, float]], *, higher: bool = True, filter: str = "none",
           value: float | None = None, stderr: float | None = None) -> MetricOutcome:
    """One metric with lm-eval's aggregate of it."""
    if value is None:
        array = np.asarray(values, dtype=float)
        if array.ndim == 1:
            value = float(np.exp(-array.mean())) if name == "perplexity" else float(array.mean())
        else:
            nats = -array[:, 0].sum() / array[:, 1].sum()
            value = float(nats / LN2) if name == "bits_per_byte" else float(np.exp(nats))
    return MetricOutcome(
        name=name, filter=filter, value=value, stderr=stderr, higher_is_better=higher, per_question=tuple(values)
    )


def outcome(task: str, *metrics: MetricOutcome, entry: str | None = None, chance: float | None = None,
            hashes: Sequence[str] | None = None, shots: int = 0, version: str = "1.0") -> TaskOutcome:
    """One task; its questions are numbered, unless `hashes` says otherwise."""
    n = len(metrics[0].per_question)
    return TaskOutcome(
        task=task, entry=entry or task, version=version, output_type="multiple_choice", num_fewshot=shots, n=n,
        chance=chance, doc_hashes=tuple(hashes if hashes is not None else [f"{task}-{i}" for i in range(n)]),
        metrics=metrics, duration_s=1.0,
    )


def evaluation(label: str, *outcomes: TaskOutcome, size_bytes: int = 271_000_000, bits: float = 16.0,
               versions: dict[str, str] | None = None) -> Evaluation:
    """What `evaluate` would leave."""
    return Evaluation(
        file=FileFacts(
            label=label, size_bytes=size_bytes, bits_per_weight=bits, n_params=134_515_008, architecture="llama"
        ),
        self_check=SelfCheck(known_answers=12, known_answers_right=12, n_tokens=480, packed_difference=0.00031,
                             noise=0.00044, rolling_difference=0.00012),
        outcomes=outcomes, n_requests=9000, n_tokens_decoded=250_000, n_tokens_requested=900_000, duration_s=412.0,
        versions=versions or {"lm_eval": "0.4.13", "llama_cpp_python": "0.3.36"},
        hardware={"cpu": "AMD EPYC 9B14", "threads": 2},
    )


def right_or_wrong(bits: Sequence[int], name: str = "acc") -> MetricOutcome:
    """Accuracy of answers given as ones and zeros."""
    return metric(name, [float(bit) for bit in bits])


def _flipped(rng: np.random.Generator, right: np.ndarray, loss: float) -> np.ndarray:
    """Answers after quantizing: some right ones are lost, fewer wrong ones gained."""
    draw = rng.random(len(right))
    return np.where(right == 1, (draw > loss).astype(float), (draw < 0.35 * loss).astype(float))


def simulated(quants: Sequence[tuple[str, float, float]], *, title: str, n_params: float, n_tasks: int = 12,
              skill: float = 0.0, seed: int = 7, divergence: bool = True, speed: bool = True) -> EvalReport:
    """A report of a model: `quants` are (label, bits per weight, mean KLD), the baseline's first with 0."""
    return _simulated(tuple(quants), title, n_params, n_tasks, skill, seed, divergence, speed)


@cache
def _simulated(quants: tuple[tuple[str, float, float], ...], title: str, n_params: float, n_tasks: int, skill: float,
               seed: int, divergence: bool, speed: bool) -> EvalReport:
    """Once for each: hundreds of tests ask for the same few, and the intervals of one take a quarter of a second."""
    rng = np.random.default_rng(seed)
    base = {task: (rng.random(n) < min(0.97, p + skill)).astype(float) for task, _, n, p in TASKS[:n_tasks]}
    docs = np.stack([-rng.uniform(900, 4000, 62), rng.uniform(300, 1400, 62).round()], axis=1)
    evaluations, measurements = [], []
    for label, bits, kld in quants:
        loss = float(np.sqrt(kld)) * 0.28
        outcomes = [
            outcome(task, right_or_wrong(_flipped(rng, right, loss), "acc" if chance else "exact_match"), chance=chance)
            for (task, chance, _, _), right in zip(TASKS, base.values(), strict=False)
        ]
        if n_tasks > 3:
            lls = docs[:, 0] * (1 + kld * rng.normal(0.12, 0.05, len(docs)))
            pairs = [(float(a), float(b)) for a, b in zip(lls, docs[:, 1], strict=True)]
            names = ("word_perplexity", "bits_per_byte")
            outcomes.append(outcome("wikitext", *(metric(name, pairs, higher=False) for name in names)))
        evaluations.append(evaluation(label, *outcomes, size_bytes=int(n_params * bits / 8), bits=bits))
        measurements.append(Measurement(
            file=evaluations[-1].file, self_check=evaluations[-1].self_check, scores=evaluation_scores(evaluations[-1]),
            divergence=_divergence(label, kld) if divergence else None,
            speed=_speed(label, n_params * bits / 8) if speed else None,
        ))  # fmt: skip
    compared = [(), *compare_evaluations(evaluations[0], evaluations[1:], 0.01)]
    measurements = [
        found.model_copy(update={"comparisons": of_file}) for found, of_file in zip(measurements, compared, strict=True)
    ]
    entries = tuple(TaskEntry(task=o.task) for o in evaluations[0].outcomes)
    return EvalReport(
        title=title, suite=Suite(name="standard", tasks=entries), baseline=quants[0][0],
        measurements=tuple(measurements),
        versions=evaluations[0].versions, hardware=evaluations[0].hardware, duration_s=5200.0,
        n_questions=sum(o.n for o in evaluations[0].outcomes),
    )


def _divergence(label: str, kld: float) -> Divergence:
    ppl = 12.3456
    if not kld:
        return Divergence(label=label, text="the prose of Quantyard", n_ctx=512, n_chunks=24, n_tokens=6120,
                          perplexity=Estimate(value=ppl, stderr=0.21), rolling_perplexity=11.9, duration_s=30.0)
    shares = {"50": 0.35, "90": 2.2, "95": 3.6, "99": 9.5, "99.9": 31.0, "100": 120.0}
    return Divergence(
        label=label, text="the prose of Quantyard", n_ctx=512, n_chunks=24, n_tokens=6120,
        perplexity=Estimate(value=ppl * float(np.exp(0.8 * kld)), stderr=0.21), rolling_perplexity=12.0,
        baseline_perplexity=Estimate(value=ppl, stderr=0.21),
        ln_perplexity_ratio=Estimate(value=0.8 * kld, stderr=0.03 * kld**0.5),
        mean_kld=Estimate(value=kld, stderr=0.03 * kld), kld_percentiles={k: v * kld for k, v in shares.items()},
        top1_agreement=Estimate(value=1 - 0.35 * kld**0.5, stderr=0.004),
        mean_delta_p=Estimate(value=-kld / 20, stderr=0.001),
        rms_delta_p=Estimate(value=kld**0.5 / 4, stderr=0.001), duration_s=40.0,
    )


def _speed(label: str, size_bytes: float) -> Speed:
    return Speed(
        label=label, prompt_tokens_per_s=8.2e10 / size_bytes**0.95, generated_tokens_per_s=2.1e10 / size_bytes,
        prompt_spread=0.04, generated_spread=0.09, load_s=0.2, peak_memory_bytes=int(size_bytes * 1.08 + 6e7),
        threads=2, n_ctx=1024, n_gpu_layers=0, settings=SpeedSettings(),
    )


SMALL = [("BF16", 16.0, 0.0), ("Q8_0", 8.51, 0.0012), ("Q4_K_M", 6.17, 0.031)]
LARGE = [
    ("BF16", 16.0, 0.0), ("Q8_0", 8.5, 0.0009), ("Q6_K", 6.57, 0.0041), ("Q5_K_M", 5.69, 0.0098),
    ("Q4_K_M", 4.85, 0.031), ("Q4_0", 4.67, 0.058), ("IQ4_XS", 4.46, 0.041), ("Q3_K_M", 3.91, 0.11),
    ("Q2_K", 3.16, 0.42),
]  # fmt: skip
