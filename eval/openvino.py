"""The stage `openvino`: one GGUF in OpenVINO beside the same file, and the baseline, in llama.cpp.

OpenVINO GenAI does not run a GGUF as it is: it makes a model of its own kinds of weights, and computes with an 8-bit
cache and 8-bit activations unless told otherwise. So what it serves is measured by itself: all three read the same
chunks of the text, and both runtimes generate greedily after the first half of each.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import llama_cpp
import numpy as np
from pydantic import JsonValue

from eval.analysis.chunks import read_divergence_text
from eval.analysis.greedy_texts import share_before_difference
from eval.analysis.kl_divergence import DivergenceRows, TokenValues, mean_estimate
from eval.divergence import decoded_divergence_chunks, divergence_chunks, fitting_divergence_settings
from eval.llama.context import Context, ContextSettings, Ints, Rows
from eval.llama.model import GgufModel
from eval.runtimes.openvino_process import (
    PYTHON_VARIABLE,
    OpenVinoModel,
    OpenVinoRefused,
    openvino_worker_argv,
    refuse_openvino_rows,
)
from quantyard.protocol.evaluation import DivergenceSettings, OpenVinoRequest
from quantyard.protocol.openvino import OpenVinoSettings
from quantyard.protocol.openvino_results import OpenVinoMeasurement
from quantyard.protocol.runner import Stage, StageOutcome, run_stage

_Times = tuple[float, float]  # seconds until the first token, and for each one after it


def openvino(stage: Stage, request: OpenVinoRequest) -> StageOutcome:
    """Measure `/in/model/<model_file>` in both runtimes.

    Raises:
        StageFailure: 2 if the text is unusable or too short, or if the baseline tokenizes it differently; 2 or 3 if
            llama.cpp cannot measure a file (see `GgufModel.load`); 3 if OpenVINO is not installed.
    """
    started, argv = time.monotonic(), openvino_worker_argv(stage.environment.get(PYTHON_VARIABLE))
    paths = [stage.in_dir / "model" / request.model_file]
    if request.baseline_file is not None:
        paths.insert(0, stage.in_dir / "baseline" / request.baseline_file)
    with ExitStack() as stack:
        models = [stack.enter_context(GgufModel.load(path, request.runtime.n_gpu_layers)) for path in paths]
        found = _measure_in_openvino(stage, request, models, argv)
    found = found.model_copy(update={"duration_s": time.monotonic() - started})
    (stage.files_dir / "openvino.json").write_text(found.model_dump_json(indent=2) + "\n")
    kld = found.runtime_kld.value if found.runtime_kld else None
    facts: dict[str, JsonValue] = {"runtime_kld": kld, "refusal": found.refusal}
    tools = {"llama.cpp": f"llama-cpp-python {llama_cpp.__version__}"} | found.versions
    return StageOutcome(facts=facts, tools=tools)


def _measure_in_openvino(
    stage: Stage, request: OpenVinoRequest, models: Sequence[GgufModel], argv: Sequence[str]
) -> OpenVinoMeasurement:
    settings, threads = request.settings, request.runtime.threads
    text = read_divergence_text(stage.in_dir / "suite", settings.text)
    asked = DivergenceSettings(n_ctx=settings.n_ctx, n_chunks=settings.n_chunks)
    cut = divergence_chunks(models, text.whole, fitting_divergence_settings(asked, models))
    common: dict[str, Any] = {
        "label": request.label, "text": text.name, "n_ctx": cut.shape[1], "n_chunks": len(cut), "settings": settings,
        "threads": threads,
    }  # fmt: skip
    try:
        with (
            TemporaryDirectory(dir=stage.scratch_dir) as folder,
            OpenVinoModel(argv, models[-1].path, Path(folder), threads) as other,
        ):
            return OpenVinoMeasurement(**common, **_compared_runtimes(stage, settings, models, other, cut, threads))
    except OpenVinoRefused as why:
        stage.log(f"OpenVINO does not run {request.label}: {why.reason}")
        return OpenVinoMeasurement(**common, n_tokens=0, refusal=why.reason, detail=why.detail)


def _compared_runtimes(
    stage: Stage, settings: OpenVinoSettings, models: Sequence[GgufModel], other: OpenVinoModel, cut: Ints,
    threads: int,
) -> dict[str, Any]:
    """The fields of an `OpenVinoMeasurement` for a file that OpenVINO has loaded; generation comes first, see
    `OpenVinoModel.generate`.
    """
    generated = _greedy_in_both(models[-1], other, cut, settings.generated_tokens, threads)
    of_file, of_baseline = DivergenceRows(models[0].n_vocab, 1), DivergenceRows(models[0].n_vocab, 2)
    computes: dict[str, str] = {}
    for number, chunk in enumerate(cut):
        rows, computes = other.read(chunk.tolist(), cut.shape[1] // 2)
        refuse_openvino_rows(rows, models[0].n_vocab)
        _add_chunk(of_file, of_baseline, models, chunk, rows, threads)
        stage.progress(number + 1, len(cut), "chunks")
    fields = _openvino_divergences(of_file, of_baseline if len(models) > 1 else None, len(cut))
    return fields | generated | {
        "computes": computes, "versions": other.loaded.versions, "weight_bytes": other.loaded.weight_bytes,
    }


# ---- divergence --------------------------------------------------------------------------------------


def _add_chunk(
    of_file: DivergenceRows, of_baseline: DivergenceRows, models: Sequence[GgufModel], chunk: Ints, rows: Rows,
    threads: int,
) -> None:
    """Let llama.cpp read the chunk with every model, and compare its rows with OpenVINO's."""
    at = 0
    decoded = zip(*(decoded_divergence_chunks(model, chunk[None], threads) for model in models), strict=True)
    for parts in decoded:
        (*baseline, own), targets = [part for part, _ in parts], parts[0][1]
        theirs = rows[at : at + len(targets)]
        of_file.add(own, [theirs], targets)
        for one in baseline:
            of_baseline.add(one, [own, theirs], targets)
        at += len(targets)


def _openvino_divergences(
    of_file: DivergenceRows, of_baseline: DivergenceRows | None, n_chunks: int
) -> dict[str, Any]:
    (between,) = of_file.models()
    fields: dict[str, Any] = {
        "n_tokens": len(between.kld), "runtime_kld": mean_estimate(between.kld, n_chunks),
        "p99_runtime_kld": _p99_of_tokens(between), "runtime_top1": mean_estimate(between.same_top, n_chunks),
    }  # fmt: skip
    if of_baseline is None:
        return fields
    llama, other = of_baseline.models()
    return fields | {
        "llama_kld": mean_estimate(llama.kld, n_chunks), "baseline_kld": mean_estimate(other.kld, n_chunks),
        "p99_baseline_kld": _p99_of_tokens(other), "baseline_top1": mean_estimate(other.same_top, n_chunks),
    }  # fmt: skip


def _p99_of_tokens(values: TokenValues) -> float:
    return float(np.percentile(values.kld, 99))


# ---- generation --------------------------------------------------------------------------------------


def _greedy_in_both(model: GgufModel, other: OpenVinoModel, cut: Ints, n: int, threads: int) -> dict[str, Any]:
    """Generate after the first half of each chunk in both runtimes, one after the other.

    Speeds are medians over the prompts: they are timed alone, but on a machine that may do other things.
    """
    n_prompt = cut.shape[1] // 2
    ours: list[_Times] = []
    theirs: list[_Times] = []
    same: list[float] = []
    with Context(model, ContextSettings(n_prompt + n, threads=threads)) as context:
        context.decode_one(cut[0][:n_prompt])  # as warm as the other
        for prompt in cut[:, :n_prompt]:
            answer = other.generate(prompt.tolist(), n)
            tokens, times = _greedy_in_llama(context, prompt, n)
            ours.append(times)
            theirs.append((answer.prompt_s, answer.token_s))
            same.append(share_before_difference(tokens, answer.tokens))
    return {
        "greedy_same": sum(same) / len(same), "n_prompts": len(same),
        "prompt_tokens_per_s": _median_pace(theirs, 0, n_prompt),
        "generated_tokens_per_s": _median_pace(theirs, 1, 1),
        "llama_prompt_tokens_per_s": _median_pace(ours, 0, n_prompt),
        "llama_generated_tokens_per_s": _median_pace(ours, 1, 1),
    }


def _median_pace(times: Sequence[_Times], which: int, n_tokens: int) -> float | None:
    seconds = median(pair[which] for pair in times)
    return n_tokens / seconds if seconds > 0 else None


def _greedy_in_llama(context: Context, prompt: Ints, n: int) -> tuple[list[int], _Times]:
    """The `n` likeliest tokens after the prompt; as in OpenVINO, no token ends the text."""
    context.clear()
    started = time.perf_counter()
    found = [*_likeliest_tokens(context.decode_one(prompt))]
    first_s = time.perf_counter() - started
    for place in range(len(prompt), len(prompt) + n - 1):
        found += _likeliest_tokens(context.decode_one(np.array(found[-1:], np.int32), place))
    return found, (first_s, (time.perf_counter() - started - first_s) / (n - 1))


def _likeliest_tokens(rows: Sequence[Rows]) -> Iterator[int]:
    yield int(rows[-1][-1].argmax())


def main() -> None:
    """Entry point of the stage."""
    run_stage(OpenVinoRequest, openvino)


if __name__ == "__main__":
    main()
