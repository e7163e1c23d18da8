"""What of a file's divergence is its weights', and what the backend adds: the last part of the stage `divergence`.

    lost by the file        KL(baseline || file), both with the same weights as float32 and float32 activations
    added by this backend   KL(baseline || file) as this backend computes both files, less that

and the same of ln(PPL / baseline PPL), over the same tokens: the first chunks of the text. One float32 copy exists at a
time, in the stage's scratch folder; the baseline's rows of logits are kept in memory meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from eval.analysis.kl_divergence import DivergenceRows, Doubles
from eval.llama.context import Ints, Rows
from eval.llama.float_copy import float32_copy, why_no_float_copies
from eval.llama.model import GgufModel
from quantyard.formats.gguf import GgufHeader
from quantyard.protocol.divergence_results import DivergencePartsMissing
from quantyard.protocol.runner import Stage, StageFailure

_FLOAT_BYTES: Final = 4


@dataclass(frozen=True)
class WeightsValues:
    """What a file's weights lose at every scored token, both files as float32."""

    kld: Doubles  # nats
    nll_change: Doubles  # of the token that follows, nats


WeightsKld = WeightsValues | DivergencePartsMissing
# Decodes chunks with one model, and yields the scored rows and the tokens that follow them.
DecodeChunks = Callable[[GgufModel, Ints], Iterator[tuple[Rows, Ints]]]


@dataclass(frozen=True)
class WeightsPass:
    """The chunks to read, shape (chunks, n_ctx), how they are decoded, and who is told how many were, of all files."""

    chunks: Ints
    decode: DecodeChunks
    threads: int
    on_chunk: Callable[[int], None]


def weights_divergences(
    stage: Stage, baseline: GgufModel, files: Mapping[str, GgufModel], how: WeightsPass
) -> dict[str, WeightsKld]:
    """Label → the KL divergence of the weights at every scored token, in nats, or why it is not known."""
    n_rows = how.chunks.size  # at most
    missing = why_no_float_copies(
        [model.header for model in (baseline, *files.values())], stage.scratch_dir,
        n_rows * baseline.n_vocab * _FLOAT_BYTES,
    )  # fmt: skip
    if missing:
        return dict.fromkeys(files, missing)
    try:
        kept = [(rows.copy(), targets) for rows, targets in _decoded_float32(stage, baseline.header, how)]
        how.on_chunk(len(how.chunks))
    except StageFailure as failure:
        return dict.fromkeys(files, _not_converted(failure))
    found = dict[str, WeightsKld]()
    for number, (label, model) in enumerate(files.items(), 2):
        found[label] = _weights_kld_of_file(stage, model, kept, how)
        how.on_chunk(number * len(how.chunks))
    return found


def _weights_kld_of_file(
    stage: Stage, model: GgufModel, baseline: Sequence[tuple[Rows, Ints]], how: WeightsPass
) -> WeightsKld:
    found = DivergenceRows(model.n_vocab, 1)
    try:
        for (theirs, targets), (rows, _) in zip(baseline, _decoded_float32(stage, model.header, how), strict=True):
            found.add(theirs, [rows], targets)
    except StageFailure as failure:
        return _not_converted(failure)
    (values,) = found.models()
    return WeightsValues(values.kld, values.nll - found.baseline_nll())


def _decoded_float32(stage: Stage, header: GgufHeader, how: WeightsPass) -> Iterator[tuple[Rows, Ints]]:
    with float32_copy(header, stage.scratch_dir, how.threads) as model:
        yield from how.decode(model, how.chunks)


def _not_converted(failure: StageFailure) -> DivergencePartsMissing:
    return DivergencePartsMissing(reason="NOT_CONVERTED", finding=failure.error.message.rstrip("."))
