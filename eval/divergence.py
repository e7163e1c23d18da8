"""The stage `divergence`: perplexity of one GGUF, and how far its predictions are from the baseline's.

Both models read the same tokens side by side in one process, chunk by chunk. A row of logits stays in llama.cpp's own
buffer until it is compared, at most `_MAX_ROWS` rows of each model at a time: no file of logits (llama-perplexity
writes 11 to 37 GiB), no buffer of context times vocabulary.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Final

import llama_cpp
import numpy as np

from eval.context import BATCH_TOKENS, Context, ContextSettings, Ints, Rows
from eval.kl_divergence import DivergenceRows, Segment, comparison, perplexity, segments
from eval.model import NO_TOKEN, GgufModel
from eval.perplexity_text import Text, chunks, read_text, windows
from eval.prefix_tree import Request
from eval.scorer import Scorer
from pipeline.contract import ExitCode
from pipeline.evaluation import Divergence, DivergenceRequest, DivergenceSettings
from pipeline.stage import Outcome, Stage, StageFailure, run_stage

_MAX_ROWS: Final = 256  # rows of logits per model at a time
OnProgress = Callable[[int], None]  # chunks or windows read


def divergence(stage: Stage, request: DivergenceRequest) -> Outcome:
    """Measure `/in/model/<model_file>`, against `/in/baseline/<baseline_file>` if there is one.

    Raises:
        StageFailure: 2 if the text is unusable, too short, or read as other tokens by the baseline, or if a chunk is
            longer than the model can read; 2 or 3 if a file cannot be measured (see `GgufModel.load`).
    """
    started = time.monotonic()
    text = read_text(stage.in_dir / "suite", request.settings.text)
    with _models(stage, request) as models:
        found = _measure(stage, request, models, text)
    found = found.model_copy(update={"duration_s": time.monotonic() - started})
    (stage.files_dir / "divergence.json").write_text(found.model_dump_json(indent=2) + "\n")
    facts = {"perplexity": found.perplexity.value, "mean_kld": found.mean_kld.value if found.mean_kld else None}
    return Outcome(facts=facts, tools={"llama.cpp": f"llama-cpp-python {llama_cpp.__version__}"})


@contextmanager
def _models(stage: Stage, request: DivergenceRequest) -> Iterator[list[GgufModel]]:
    """The baseline, if there is one, and the model."""
    paths = [stage.in_dir / "model" / request.model_file]
    if request.baseline_file is not None:
        paths.insert(0, stage.in_dir / "baseline" / request.baseline_file)
    with ExitStack() as stack:
        yield [stack.enter_context(GgufModel.load(path, request.runtime.n_gpu_layers)) for path in paths]


def _measure(stage: Stage, request: DivergenceRequest, models: Sequence[GgufModel], text: Text) -> Divergence:
    settings, model, threads = request.settings, models[-1], request.runtime.threads
    _refuse_long(model, settings)
    cut, rolling = same_chunks(models, text.whole, settings), rolling_windows(model, text, settings)
    n_units = len(cut) + len(rolling)

    def report(done: int) -> None:
        stage.progress(done, n_units, "chunks")

    rows = read_side_by_side(models, cut, threads, report)
    rolling_ppl = rolling_perplexity(model, rolling, threads, lambda done: report(len(cut) + done))
    values, baseline_nll = rows.models(), rows.baseline_nll()
    nll = values[-1].nll if values else baseline_nll
    compared: dict[str, Any] = comparison(values[-1], baseline_nll) if values else {}
    return Divergence(
        label=request.label, text=text.name, n_ctx=settings.n_ctx, n_chunks=len(cut), n_tokens=len(nll),
        perplexity=perplexity(nll), rolling_perplexity=rolling_ppl, **compared,
    )


# ---- chunks: llama-perplexity's definition -----------------------------------------------------------


def same_chunks(models: Sequence[GgufModel], text: str, settings: DivergenceSettings) -> Ints:
    """The chunks that every model reads, shape (chunks, n_ctx).

    Raises:
        StageFailure: `bad-text` (2) if the text is too short, `vocabulary` (2) if the models' tokens differ.
    """
    baseline, *others = models
    tokens = baseline.tokenize(text, add_special=True, parse_special=False)  # as llama-perplexity does
    for model in others:
        _refuse_other_vocabulary(baseline, model)
        if model.tokenize(text, add_special=True, parse_special=False) != tokens:
            raise _other_tokens(model, "they cut the text into different tokens")
    return chunks(tokens, settings.n_ctx, settings.n_chunks, baseline.bos if baseline.adds_bos else None)


def read_side_by_side(models: Sequence[GgufModel], cut: Ints, threads: int, on_chunk: OnProgress) -> DivergenceRows:
    """Let every model read the chunks; `models[0]` is what the others are compared with.

    Args:
        cut: token ids, shape (chunks, n_ctx), see `same_chunks`.
        on_chunk: told how many chunks were read.
    """
    n_ctx = cut.shape[1]
    parts = list(segments(n_ctx, BATCH_TOKENS, _MAX_ROWS))
    rows = DivergenceRows(models[0].n_vocab, len(models) - 1)
    with ExitStack() as stack:
        settings = ContextSettings(n_ctx, threads=threads)
        contexts = [stack.enter_context(Context(model, settings)) for model in models]
        for number, chunk in enumerate(cut):
            for context in contexts:
                context.clear()
            for part in parts:
                baseline, *others = [_decode(context, chunk, part) for context in contexts]
                rows.add(baseline, others, chunk[part.first + 1 : part.end + 1])
            on_chunk(number + 1)
    return rows


def _decode(context: Context, chunk: Ints, part: Segment) -> Rows:
    """The scored rows of a segment; they stay valid until the same context decodes again."""
    positions = np.arange(part.start, part.end, dtype=np.int32)
    sequence, one = np.zeros_like(positions), np.ones_like(positions)
    return context.decode(chunk[part.start : part.end], positions, positions >= part.first, sequence, one)


def _refuse_other_vocabulary(baseline: GgufModel, model: GgufModel) -> None:
    if model.n_vocab != baseline.n_vocab:
        raise _other_tokens(model, f"it has {model.n_vocab:,} tokens and the baseline {baseline.n_vocab:,}")
    for token in range(baseline.n_vocab):
        ours, theirs = (llama_cpp.llama_vocab_get_text(m.vocab, token) for m in (model, baseline))
        if ours != theirs:
            what = f"token {token} is {ours.decode(errors='replace')!r} in it and {theirs.decode(errors='replace')!r}"
            raise _other_tokens(model, f"{what} in the baseline")


def _other_tokens(model: GgufModel, why: str) -> StageFailure:
    message = f"{model.path.name} cannot be compared with the baseline: {why}."
    hint = "Choose the baseline that the file was quantized from."
    return StageFailure(ExitCode.BAD_REQUEST, "vocabulary", message, hint)


def _refuse_long(model: GgufModel, settings: DivergenceSettings) -> None:
    if settings.n_ctx > model.n_ctx_train:
        longest = f"{model.path.name} can read ({model.n_ctx_train:,})"
        message = f"Chunks of {settings.n_ctx:,} tokens are longer than {longest}."
        hint = f"Set `divergence: n_ctx: {model.n_ctx_train}` in the suite, or less."
        raise StageFailure(ExitCode.BAD_REQUEST, "context", message, hint)


# ---- windows: lm-eval's rolling definition -----------------------------------------------------------


def rolling_windows(model: GgufModel, text: Text, settings: DivergenceSettings) -> list[Request]:
    """lm-eval's windows of `n_ctx` over the documents; as many at most as `n_chunks`, where that is not 0.

    Raises:
        StageFailure: `no-prefix` (3): the vocabulary has neither BOS nor EOS to begin with.
    """
    prefix = model.bos if model.bos != NO_TOKEN else model.eos
    if prefix == NO_TOKEN:
        message = f"{model.path.name} has neither BOS nor EOS, so the first token of a text has no probability."
        raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "no-prefix", message, "Leave out `divergence` in the suite.")
    documents = [model.tokenize(document, add_special=False) for document in text.documents]
    return windows(documents, settings.n_ctx, settings.n_chunks, prefix)


def rolling_perplexity(model: GgufModel, requests: Sequence[Request], threads: int, on_window: OnProgress) -> float:
    """The exponential of the mean negative log-probability per token over the windows."""
    scorer = Scorer(model, threads)  # it opens a context as long as the windows
    scores = scorer.score(requests, lambda done, _total: on_window(done))
    return perplexity(-scores.logprobs).value


def main() -> None:
    """Entry point of the stage."""
    run_stage(DivergenceRequest, divergence)


if __name__ == "__main__":
    main()
