"""The models of a stage that compares files with a baseline: opened together, and refused if their tokens differ."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import llama_cpp

from eval.llama.model import GgufModel
from quantyard.formats.gguf_values import GgufArray
from quantyard.protocol.base import ExitCode
from quantyard.protocol.evaluation import SharedBaselineRequest
from quantyard.protocol.runner import Stage, StageFailure


@contextmanager
def compared_models(stage: Stage, request: SharedBaselineRequest) -> Iterator[list[GgufModel]]:
    """The baseline, if there is one, and the models in the order of the request."""
    paths = [stage.in_dir / "model" / request.model_file]
    paths += [stage.in_dir / f"model-{member.label}" / member.model_file for member in request.others]
    if request.baseline_file is not None:
        paths.insert(0, stage.in_dir / "baseline" / request.baseline_file)
    with ExitStack() as stack:
        yield [stack.enter_context(GgufModel.load(path, request.runtime.n_gpu_layers)) for path in paths]


def labelled_models(request: SharedBaselineRequest, models: Sequence[GgufModel]) -> list[tuple[str, GgufModel]]:
    """The requested models with their labels; a baseline without a label is only compared with."""
    labels = [request.label, *(member.label for member in request.others)]
    if request.baseline_file is not None:
        labels.insert(0, request.baseline_label)
    return [(label, model) for label, model in zip(labels, models, strict=True) if label]


def refuse_other_vocabulary(baseline: GgufModel, model: GgufModel) -> None:
    """Refuse a model whose tokens are not the baseline's.

    Raises:
        StageFailure: `vocabulary` (2).
    """
    if model.n_vocab != baseline.n_vocab:
        raise other_tokens_than_baseline(
            model, f"it has {model.n_vocab:,} tokens and the baseline {baseline.n_vocab:,}"
        )
    if _vocabulary_digest(model) == _vocabulary_digest(baseline) is not None:
        return
    for token in range(baseline.n_vocab):
        ours, theirs = (llama_cpp.llama_vocab_get_text(m.vocab, token) for m in (model, baseline))
        if ours != theirs:
            what = f"token {token} is {ours.decode(errors='replace')!r}, in the baseline"
            raise other_tokens_than_baseline(model, f"{what} {theirs.decode(errors='replace')!r}")


def _vocabulary_digest(model: GgufModel) -> str | None:
    """Of the file's list of tokens; None if it has none."""
    tokens = model.header.metadata.get("tokenizer.ggml.tokens")
    return tokens.sha256 if isinstance(tokens, GgufArray) else None


def other_tokens_than_baseline(model: GgufModel, why: str) -> StageFailure:
    """The failure for a model that reads other tokens than the baseline."""
    message = f"{model.path.name} cannot be compared with the baseline: {why}."
    hint = "Choose the baseline that the file was quantized from."
    return StageFailure(ExitCode.BAD_REQUEST, "vocabulary", message, hint)
