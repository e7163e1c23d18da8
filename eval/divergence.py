"""The stage `divergence`: perplexity of GGUFs, and KL divergence of their predictions from the baseline's.

All models read the same tokens side by side in one process, chunk by chunk. Logits are compared in llama.cpp's own
buffers, at most `_MAX_ROWS` rows of each model at a time. So this needs neither a file of logits (llama-perplexity
writes 11 to 37 GiB) nor a buffer of context times vocabulary.

Of an encoder-decoder the encoder reads the first half of a chunk (and the EOS that ends its texts), and the decoder
scores the second half after its start token: the same half of the chunk as of a decoder, given the same half, and its
first token too.

A shard measures some of the chunks (eval/analysis/divergence_shards.py); a run with the shards as inputs sums them up.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import llama_cpp
import numpy as np
from pydantic import JsonValue

from eval.analysis.chunks import DivergenceText, divergence_text_chunks, divergence_text_windows, read_divergence_text
from eval.analysis.divergence_shards import (
    DivergenceShard,
    packed_doubles,
    packed_token_values,
    read_divergence_shards,
    summed_divergence,
)
from eval.analysis.kl_divergence import ChunkSegment, DivergenceRows, chunk_segments, perplexity_value
from eval.llama.backend import backend_name
from eval.llama.compared_models import (
    compared_models,
    labelled_models,
    other_tokens_than_baseline,
    refuse_other_vocabulary,
)
from eval.llama.context import BATCH_TOKENS, Context, ContextSettings, Ints, Rows
from eval.llama.model import NO_TOKEN, GgufModel
from eval.llama.prefix_tree import Request
from eval.llama.scorer import Scorer
from eval.weights_divergence import WeightsKld, WeightsPass, weights_divergences
from quantyard.protocol.base import ExitCode, Frozen
from quantyard.protocol.divergence_results import Divergence, DivergencePartsMissing
from quantyard.protocol.evaluation import DivergenceRequest, DivergenceSettings
from quantyard.protocol.runner import Stage, StageFailure, StageOutcome, run_stage
from quantyard.protocol.shard import shard_folders, shard_range

_LEAST_CONTEXT: Final = 8  # tokens of a chunk
_MAX_ROWS: Final = 256  # rows of logits per model at a time
_AGAIN_COST: Final = 2.0  # of a chunk that is read again as float32, whose copies are made first, in chunks
OnProgress = Callable[[int], None]  # chunks or windows read


def divergence(stage: Stage, request: DivergenceRequest) -> StageOutcome:
    """Measure `/in/model/<model_file>` and the files beside it, against `/in/baseline/<baseline_file>` if there is one.

    Raises:
        StageFailure: 2 if the text is unusable or too short, if the baseline tokenizes it differently, or if a chunk is
            longer than the model's context; 2 or 3 if a file cannot be measured (see `GgufModel.load`).
    """
    if folders := shard_folders(stage.in_dir):
        found = summed_divergence(read_divergence_shards(folders))
        _write_divergence(stage, request, found.label, found)
        return StageOutcome(facts=divergence_facts(found), tools=_divergence_tools())
    started = time.monotonic()
    text = read_divergence_text(stage.in_dir / "suite", request.settings.text)
    with compared_models(stage, request) as models:
        measured = _measure_divergence(stage, request, models, text)
    took_s, facts = (time.monotonic() - started) / len(measured), dict[str, dict[str, JsonValue]]()
    for part in measured:
        timed = part.model_copy(update={"duration_s": took_s})
        whole = None if request.shard else summed_divergence([timed])
        facts[part.label] = divergence_facts(whole) if whole else {}
        _write_divergence(stage, request, part.label, whole or timed)
    return StageOutcome(facts=facts if request.is_joined else facts[request.label], tools=_divergence_tools())


def _write_divergence(stage: Stage, request: DivergenceRequest, label: str, found: Frozen) -> None:
    """Leave what was found of one file."""
    folder = stage.files_dir / label if request.is_joined else stage.files_dir
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "divergence.json").write_text(found.model_dump_json(indent=2) + "\n")


def _divergence_tools() -> dict[str, str]:
    return {"llama.cpp": f"llama-cpp-python {llama_cpp.__version__}"}


def divergence_facts(found: Divergence) -> dict[str, JsonValue]:
    """The stage's facts about one file; `mean_kld` is None for the baseline."""
    return {"perplexity": found.perplexity.value, "mean_kld": found.mean_kld.value if found.mean_kld else None}


@dataclass(frozen=True)
class _DivergenceWork:
    """What one run reads: all, or a shard's part of it."""

    n_chunks: int  # of the whole text
    cut: Ints  # the chunks, shape (chunks, n_ctx)
    again: Ints  # those that are read again as float32
    windows_of: Sequence[list[Request]]  # of each requested file; () without `rolling`

    def n_units(self, n_models: int) -> int:
        """Chunks and windows, for the progress."""
        return len(self.cut) + sum(map(len, self.windows_of)) + len(self.again) * n_models


def _divergence_work(
    request: DivergenceRequest, settings: DivergenceSettings, models: Sequence[GgufModel], text: DivergenceText
) -> _DivergenceWork:
    every = divergence_chunks(models, text.whole, settings)
    asked = [model for _, model in labelled_models(request, models)]
    windows = [divergence_rolling_windows(model, text, settings) for model in asked] if settings.rolling else []
    again = every[: settings.weights_chunks] if len(models) > 1 else every[:0]
    if request.shard is None:
        return _DivergenceWork(len(every), every, again, windows)
    own = shard_range(len(every), _AGAIN_COST * len(again) + sum(map(len, windows)) / len(asked), request.shard)
    cut = every[own.start : own.stop]
    if request.shard.is_last:
        return _DivergenceWork(len(every), cut, again, windows)
    return _DivergenceWork(len(every), cut, every[:0], [])


def _measure_divergence(
    stage: Stage, request: DivergenceRequest, models: Sequence[GgufModel], text: DivergenceText
) -> list[DivergenceShard]:
    """Measure every requested model; the baseline decodes the chunks once, however many others there are."""
    settings, threads = fitting_divergence_settings(request.settings, models), request.runtime.threads
    work, asked = _divergence_work(request, settings, models, text), labelled_models(request, models)
    n_units, n_read = work.n_units(len(models)), 0

    def report(done: int) -> None:
        stage.progress(n_read + done, n_units, "chunks")

    rows = divergence_side_by_side(models, work.cut, threads, report)
    n_read, rolled = len(work.cut), dict[str, float]()
    for (label, model), found in zip(asked, work.windows_of, strict=False):  # windows_of may be empty
        rolled[label] = divergence_rolling_perplexity(model, found, threads, report)
        n_read += len(found)
    values = {id(m): packed_token_values(v) for m, v in zip(models[1:], rows.models(), strict=True)}
    how = WeightsPass(work.again, partial(decoded_divergence_chunks, threads=threads), threads, report)
    compared = {label: model for label, model in asked if id(model) in values}
    of_weights = weights_divergences(stage, models[0], compared, how) if len(work.again) and compared else {}
    stage.progress(n_units, n_units, "chunks")
    common: dict[str, Any] = {
        "text": text.name, "n_ctx": settings.n_ctx, "n_chunks": work.n_chunks,
        "backend": backend_name(request.runtime.n_gpu_layers), "baseline_nll": packed_doubles(rows.baseline_nll()),
        "n_weights_chunks": len(work.again),
    }
    return [
        DivergenceShard(
            label=label, values=values.get(id(model)), rolling_perplexity=rolled.get(label),
            **common, **_weights_fields(of_weights.get(label)),
        )
        for label, model in asked
    ]  # fmt: skip


def _weights_fields(found: WeightsKld | None) -> dict[str, Any]:
    """The fields of a `DivergenceShard` that tell the file's part from the backend's; {} where not asked for."""
    if found is None:
        return {}
    if isinstance(found, DivergencePartsMissing):
        return {"parts_missing": found}
    return {"weights_kld": packed_doubles(found.kld), "weights_nll_change": packed_doubles(found.nll_change)}


def decoded_divergence_chunks(model: GgufModel, cut: Ints, threads: int) -> Iterator[tuple[Rows, Ints]]:
    """The scored rows of each segment, valid until the next one, and the tokens that follow them."""
    chunks = [_divergence_chunk(model, chunk) for chunk in cut]
    settings = ContextSettings(cut.shape[1], threads=threads, n_encoded=max(len(chunk.encoded) for chunk in chunks))
    with Context(model, settings) as context:
        for chunk in chunks:
            context.clear()
            if chunk.encoded:
                context.encode(chunk.encoded)
            for part in chunk.parts:
                rows = _decode_divergence_segment(context, chunk.decoded, part)
                yield rows, chunk.decoded[part.first + 1 : part.end + 1]


# ---- chunks: llama-perplexity's definition -----------------------------------------------------------


def divergence_chunks(models: Sequence[GgufModel], text: str, settings: DivergenceSettings) -> Ints:
    """The chunks that every model reads, shape (chunks, n_ctx).

    Raises:
        StageFailure: `bad-text` (2) if the text is too short, `vocabulary` (2) if the models' tokens differ.
    """
    baseline, *others = models
    with_special = not baseline.has_encoder  # as llama-perplexity does
    tokens = baseline.tokenize(text, add_special=with_special, parse_special=False)
    for model in others:
        refuse_other_vocabulary(baseline, model)
        if model.tokenize(text, add_special=with_special, parse_special=False) != tokens:
            raise other_tokens_than_baseline(model, "they tokenize the text differently")
    return divergence_text_chunks(
        tokens, settings.n_ctx, settings.n_chunks, baseline.bos if baseline.adds_bos else None
    )


def divergence_side_by_side(
    models: Sequence[GgufModel], cut: Ints, threads: int, on_chunk: OnProgress
) -> DivergenceRows:
    """Let every model read the chunks, and compare them with the baseline, `models[0]`.

    Args:
        cut: token ids, shape (chunks, n_ctx), see `divergence_chunks`.
        on_chunk: called with the number of chunks read so far.
    """
    rows = DivergenceRows(models[0].n_vocab, len(models) - 1)
    if not len(cut):  # of a shard that has only the tail
        return rows
    chunks = [_divergence_chunk(models[0], chunk) for chunk in cut]
    with ExitStack() as stack:
        settings = ContextSettings(cut.shape[1], threads=threads, n_encoded=max(len(chunk.encoded) for chunk in chunks))
        contexts = [stack.enter_context(Context(model, settings)) for model in models]
        for number, chunk in enumerate(chunks):
            for context in contexts:
                context.clear()
                if chunk.encoded:
                    context.encode(chunk.encoded)
            for part in chunk.parts:
                baseline, *others = [_decode_divergence_segment(context, chunk.decoded, part) for context in contexts]
                rows.add(baseline, others, chunk.decoded[part.first + 1 : part.end + 1])
            on_chunk(number + 1)
    return rows


@dataclass(frozen=True)
class _Chunk:
    """One chunk: the tokens for the encoder (none of a decoder), those for the decoder, and the batches of these."""

    encoded: tuple[int, ...]
    decoded: Ints
    parts: tuple[ChunkSegment, ...]


def _divergence_chunk(model: GgufModel, tokens: Ints) -> _Chunk:
    if not model.has_encoder:
        return _Chunk((), tokens, tuple(chunk_segments(len(tokens), BATCH_TOKENS, _MAX_ROWS)))
    half = len(tokens) // 2
    encoded = (*tokens[:half].tolist(), *([model.eos] if model.adds_eos else []))
    decoded = np.concatenate([np.array([model.decoder_start], np.int32), tokens[half:]])
    return _Chunk(encoded, decoded, tuple(chunk_segments(len(decoded), BATCH_TOKENS, _MAX_ROWS, 0)))


def _decode_divergence_segment(context: Context, chunk: Ints, part: ChunkSegment) -> Rows:
    """The scored rows of a segment; a view that is valid until the same context decodes again."""
    positions = np.arange(part.start, part.end, dtype=np.int32)
    sequence, one = np.zeros_like(positions), np.ones_like(positions)
    return context.decode(chunk[part.start : part.end], positions, positions >= part.first, sequence, one)


def fitting_divergence_settings(settings: DivergenceSettings, models: Sequence[GgufModel]) -> DivergenceSettings:
    """The settings with chunks no longer than the context that every model was trained for."""
    longest = min(model.n_ctx_train for model in models)
    if longest < _LEAST_CONTEXT:
        message = f"The model was trained for {longest} tokens, too few for a chunk: {_LEAST_CONTEXT} at least."
        hint = "Measure it by tasks alone: a suite with `divergence: null`."
        raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "context", message, hint)
    return settings.model_copy(update={"n_ctx": min(settings.n_ctx, longest)})


# ---- windows: lm-eval's rolling definition -----------------------------------------------------------


def divergence_rolling_windows(model: GgufModel, text: DivergenceText, settings: DivergenceSettings) -> list[Request]:
    """lm-eval's windows of `n_ctx` tokens over the documents; at most `n_chunks` of them, or all if that is 0.

    Raises:
        StageFailure: `no-prefix` (3): the vocabulary has neither BOS nor EOS to begin with.
    """
    prefix = model.bos if model.bos != NO_TOKEN else model.eos
    if prefix == NO_TOKEN:
        message = f"{model.path.name} has neither BOS nor EOS, so the first token of a text has no probability."
        raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "no-prefix", message, "Leave out `divergence` in the suite.")
    documents = [model.tokenize(document, add_special=False) for document in text.documents]
    start = model.decoder_start if model.has_encoder else None
    return divergence_text_windows(documents, settings.n_ctx, settings.n_chunks, prefix, start)


def divergence_rolling_perplexity(
    model: GgufModel, requests: Sequence[Request], threads: int, on_window: OnProgress
) -> float:
    """The exponential of the mean negative log-probability per token over the windows."""
    scorer = Scorer(model, threads)
    scores = scorer.score(requests, lambda done, _total: on_window(done))
    return perplexity_value(-scores.logprobs)


def main() -> None:
    """Entry point of the stage."""
    run_stage(DivergenceRequest, divergence)


if __name__ == "__main__":
    main()
