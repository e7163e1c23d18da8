"""The stage `cache`: what smaller types of the KV cache cost one GGUF, in divergence, memory and speed.

The file with an f16 cache, the same file with each other type, and the baseline with an f16 cache read the same text
side by side, so that each pair of predictions has the same tokens before it. llama.cpp reads keys and values back from
the cache within a batch too, so a prompt shows the same loss as tokens that are generated one by one.

Every row is scored, not the second half of a chunk only: the divergence is also told by the number of tokens in the
cache. After each chunk, prompt and generation are timed in turns, at that depth of context.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import llama_cpp
import numpy as np
from pydantic import JsonValue

from eval.analysis.cache_types import cache_divergence, paired_speed_share
from eval.analysis.chunks import DivergenceText, read_divergence_text
from eval.analysis.domain_texts import LONG
from eval.analysis.kl_divergence import DivergenceRows, TokenValues, chunk_segments, mean_estimate
from eval.analysis.long_documents import read_domains_with_long_documents
from eval.divergence import divergence_chunks
from eval.llama.cache_context import CacheAllocated, CacheRefused, open_cache_context
from eval.llama.context import Context, ContextSettings, Ints, Rows
from eval.llama.model import GgufModel
from quantyard.protocol.base import ExitCode
from quantyard.protocol.cache_results import CacheMeasurement, CacheTypeResult
from quantyard.protocol.cache_types import DEFAULT_CACHE, CacheSettings
from quantyard.protocol.evaluation import CacheRequest, DivergenceSettings, DomainSettings, Runtime
from quantyard.protocol.runner import Stage, StageFailure, StageOutcome, run_stage

_BATCH_TOKENS: Final = 128  # a context for each type is open at once, each with the logits of a batch
_LEAST_CONTEXT: Final = 64  # tokens of a chunk, as a suite may ask for at least
OUR_LONG_TEXT: Final = "Quantyard's long documents"


def cache(stage: Stage, request: CacheRequest) -> StageOutcome:
    """Measure `/in/model/<model_file>` with each type of the cache.

    Raises:
        StageFailure: 2 if the text is unusable or too short, or if the baseline tokenizes it differently; 2 or 3 if a
            file cannot be measured (see `GgufModel.load`).
    """
    started = time.monotonic()
    with ExitStack() as stack:
        paths = [stage.in_dir / "model" / request.model_file]
        if request.baseline_file is not None:
            paths.append(stage.in_dir / "baseline" / request.baseline_file)
        models = [stack.enter_context(GgufModel.load(path, request.runtime.n_gpu_layers)) for path in paths]
        found = _measure_cache_types(stage, request, models)
    found = found.model_copy(update={"duration_s": time.monotonic() - started})
    (stage.files_dir / "cache.json").write_text(found.model_dump_json(indent=2) + "\n")
    klds: dict[str, JsonValue] = {result.type: result.mean_kld.value for result in found.results if result.mean_kld}
    return StageOutcome(facts={"mean_kld": klds}, tools={"llama.cpp": f"llama-cpp-python {llama_cpp.__version__}"})


@dataclass
class _Contender:
    """One type of the cache on the file: its context, and the seconds it took."""

    type: str
    context: Context
    allocated: CacheAllocated
    n_read: int = 0  # tokens in the cache
    prompt_s: list[float] = field(default_factory=list)
    generation_s: list[float] = field(default_factory=list)


def _measure_cache_types(stage: Stage, request: CacheRequest, models: Sequence[GgufModel]) -> CacheMeasurement:
    text = read_cache_text(stage.in_dir / "suite", request.settings)
    settings = _fitting_cache_settings(request.settings, models)
    n_ctx = settings.n_ctx
    cut = divergence_chunks(models, text.whole, DivergenceSettings(text=None, n_ctx=n_ctx, n_chunks=settings.n_chunks))
    with ExitStack() as stack:
        contenders, refused = _open_cache_contenders(stack, models[0], settings, request.runtime, n_ctx)
        baseline = [
            stack.enter_context(Context(model, _cache_context_settings(settings, request.runtime, n_ctx)))
            for model in models[1:]
        ]
        of_file = DivergenceRows(models[0].n_vocab, len(contenders) - 1)
        of_baseline = DivergenceRows(models[0].n_vocab, len(contenders))
        for number, chunk in enumerate(cut) if len(contenders) > 1 else ():
            _read_cache_chunk(contenders, baseline, chunk, of_file, of_baseline)
            _time_cache_types(contenders, settings, number)
            stage.progress(number + 1, len(cut), "chunks")
        results = [*_cache_results(contenders, of_file, of_baseline if baseline else None, len(cut))]
        threads = contenders[0].context.threads
    return CacheMeasurement(
        label=request.label, text=text.name, n_ctx=n_ctx, n_chunks=len(cut), n_tokens=cut.size - len(cut),
        results=(*results, *refused), settings=settings, threads=threads, n_gpu_layers=request.runtime.n_gpu_layers,
    )  # fmt: skip


def read_cache_text(suite_dir: Path, settings: CacheSettings) -> DivergenceText:
    """The user's text beside the suite, or our long documents: what a cache loses shows far from the beginning.

    Raises:
        StageFailure: `bad-text` (2), see `read_divergence_text`.
    """
    if settings.text is not None:
        return read_divergence_text(suite_dir, settings.text)
    (found,) = read_domains_with_long_documents(suite_dir, DomainSettings(names=(LONG,)))
    documents = tuple(document.text for document in found.documents)
    return DivergenceText(OUR_LONG_TEXT, "\n\n".join(documents), documents)


def _fitting_cache_settings(settings: CacheSettings, models: Sequence[GgufModel]) -> CacheSettings:
    """The settings with chunks no longer than the context that the models were trained for, what is timed behind them
    included; where that leaves no room for a chunk, nothing is timed.
    """
    trained = min(model.n_ctx_train for model in models)
    if trained < _LEAST_CONTEXT:
        message = f"The model was trained for {trained} tokens, too few for a chunk."
        raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "context", message, "Leave out `cache` in the suite.")
    repeats = settings.repeats if trained - _timed_cache_tokens(settings) >= _LEAST_CONTEXT else 0
    fitting = settings.model_copy(update={"repeats": repeats})
    return fitting.model_copy(update={"n_ctx": min(settings.n_ctx, trained - _timed_cache_tokens(fitting))})


def _timed_cache_tokens(settings: CacheSettings) -> int:
    return settings.repeats * (settings.prompt_tokens + settings.generated_tokens)


def _cache_context_settings(settings: CacheSettings, runtime: Runtime, n_ctx: int) -> ContextSettings:
    n_cells = n_ctx + _timed_cache_tokens(settings)
    return ContextSettings(n_cells, threads=runtime.threads, batch_tokens=_BATCH_TOKENS)


def _open_cache_contenders(
    stack: ExitStack, model: GgufModel, settings: CacheSettings, runtime: Runtime, n_ctx: int
) -> tuple[list[_Contender], list[CacheTypeResult]]:
    """A context for f16 and for each type that llama.cpp runs, and the results of those that it refuses."""
    contenders: list[_Contender] = []
    refused: list[CacheTypeResult] = []
    for name in dict.fromkeys((DEFAULT_CACHE, *settings.types)):
        try:
            context, allocated = open_cache_context(model, name, _cache_context_settings(settings, runtime, n_ctx))
        except CacheRefused as why:
            refused.append(CacheTypeResult(type=name, refusal=why.reason, detail=why.detail))
        else:
            contenders.append(_Contender(name, stack.enter_context(context), allocated))
    return contenders, refused


def _read_cache_chunk(
    contenders: Sequence[_Contender], baseline: Sequence[Context], chunk: Ints, of_file: DivergenceRows,
    of_baseline: DivergenceRows,
) -> None:
    """Let every context read the chunk from an empty cache, and compare their rows."""
    contexts = [contender.context for contender in contenders]
    for context in (*contexts, *baseline):
        context.clear()
    for part in chunk_segments(len(chunk), _BATCH_TOKENS, _BATCH_TOKENS, 0):
        own = [_decode_cache_rows(context, chunk, part.start, part.end) for context in contexts]
        targets = chunk[part.start + 1 : part.end + 1]
        of_file.add(own[0], own[1:], targets)
        for context in baseline:
            of_baseline.add(_decode_cache_rows(context, chunk, part.start, part.end), own, targets)
        for contender in contenders:
            contender.n_read = part.end


def _decode_cache_rows(context: Context, tokens: Ints, start: int, end: int, *, wanted: bool = True) -> Rows:
    """Decode a part of the tokens of one sequence, for all their rows or for the last alone."""
    positions = np.arange(start, end, dtype=np.int32)
    rows = np.full(len(positions), wanted) | (positions == end - 1)
    return context.decode(
        tokens[start:end], positions, rows, np.zeros_like(positions), np.ones_like(positions)
    )


# ---- speed -------------------------------------------------------------------------------------------


def _time_cache_types(contenders: Sequence[_Contender], settings: CacheSettings, n_before: int) -> None:
    """Time a prompt and generated tokens behind the chunk, by turns; each round begins with another type."""
    for repeat in range(settings.repeats):
        for contender in _taking_turns(contenders, n_before + repeat):
            contender.prompt_s.append(_timed_cache_s(contender, settings.prompt_tokens, _BATCH_TOKENS))
        for contender in _taking_turns(contenders, n_before + repeat):
            contender.generation_s.append(_timed_cache_s(contender, settings.generated_tokens, 1))


def _taking_turns(contenders: Sequence[_Contender], first: int) -> Iterator[_Contender]:
    yield from (contenders[(first + place) % len(contenders)] for place in range(len(contenders)))


def _timed_cache_s(contender: _Contender, n_tokens: int, step: int) -> float:
    """Seconds to decode tokens, `step` at a time, behind those that were read; their values do not matter.

    Those of the next repeat come behind them: the state of a hybrid model cannot be rolled back.
    """
    start, end = contender.n_read, contender.n_read + n_tokens
    tokens = np.zeros(end, np.int32)
    started = time.perf_counter()
    for at in range(start, end, step):
        _decode_cache_rows(contender.context, tokens, at, min(at + step, end), wanted=False)
    contender.n_read = end
    return time.perf_counter() - started


# ---- results -----------------------------------------------------------------------------------------


def _cache_results(
    contenders: Sequence[_Contender], of_file: DivergenceRows, of_baseline: DivergenceRows | None, n_chunks: int
) -> Iterator[CacheTypeResult]:
    """One result for each type, that of f16 first."""
    against_file: list[TokenValues | None] = [None, *of_file.models()]
    against_baseline = of_baseline.models() if of_baseline else [None] * len(contenders)
    first = contenders[0]
    if len(contenders) == 1:
        yield CacheTypeResult(type=first.type, bytes_per_token=first.allocated.k + first.allocated.v)
        return
    for contender, own, other in zip(contenders, against_file, against_baseline, strict=True):
        compared = cache_divergence(own, n_chunks) if own else {}
        yield CacheTypeResult(
            type=contender.type, **compared,
            baseline_kld=mean_estimate(other.kld, n_chunks, keep_clusters=True) if other else None,
            bytes_per_token=contender.allocated.k + contender.allocated.v,
            prompt_speed=paired_speed_share(first.prompt_s, contender.prompt_s) if own else None,
            generation_speed=paired_speed_share(first.generation_s, contender.generation_s) if own else None,
        )  # fmt: skip


def main() -> None:
    """Entry point of the stage."""
    run_stage(CacheRequest, cache)


if __name__ == "__main__":
    main()
