"""One shard of a divergence: the values of every token that it scored, and putting those of all shards together.

Chunks are decoded each in an empty context, so their values are the same bits wherever they are computed. A shard has
a run of chunks; the last one also has what cannot be divided: the rolling perplexity, and the chunks that are read
again as float32.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from eval.analysis.kl_divergence import (
    Doubles,
    TokenValues,
    divergence_comparison,
    divergence_parts,
    perplexity_estimate,
    perplexity_parts,
)
from quantyard.protocol.base import Frozen
from quantyard.protocol.divergence_results import Divergence, DivergencePartsMissing

_BASE64 = Annotated[str, Field(pattern=r"^[A-Za-z0-9+/=]*$")]


class TokenArrays(Frozen):
    """The values of one file at some tokens, little-endian in base64: float64, and a byte for each truth value."""

    nll: _BASE64 = ""
    kld: _BASE64 = ""
    delta_p: _BASE64 = ""
    same_top: _BASE64 = ""


class DivergenceShard(Frozen):
    """What is known of one file's divergence before it is summed up: of all chunks, or of one shard's."""

    label: str
    text: str
    n_ctx: int
    n_chunks: int  # of the whole text
    backend: str
    baseline_nll: _BASE64  # of the file itself if it is the baseline
    values: TokenArrays | None = None  # None: this file is the baseline
    rolling_perplexity: float | None = None
    weights_kld: _BASE64 | None = None  # of the chunks that are read again as float32; None: not read by this shard
    weights_nll_change: _BASE64 | None = None  # of the same tokens
    n_weights_chunks: int = 0
    parts_missing: DivergencePartsMissing | None = None
    duration_s: float = 0.0


def packed_doubles(values: Doubles) -> str:
    """The bits of an array as text."""
    return base64.b64encode(np.ascontiguousarray(values, "<f8").tobytes()).decode()


def packed_token_values(values: TokenValues) -> TokenArrays:
    """The bits of one file's values."""
    return TokenArrays(
        nll=packed_doubles(values.nll), kld=packed_doubles(values.kld), delta_p=packed_doubles(values.delta_p),
        same_top=base64.b64encode(values.same_top.tobytes()).decode(),
    )


def _unpacked_doubles(texts: Sequence[str]) -> Doubles:
    return np.frombuffer(b"".join(base64.b64decode(text) for text in texts), "<f8").astype(np.float64)


def _unpacked_values(parts: Sequence[TokenArrays]) -> TokenValues:
    truths = b"".join(base64.b64decode(part.same_top) for part in parts)
    return TokenValues(
        nll=_unpacked_doubles([part.nll for part in parts]), kld=_unpacked_doubles([part.kld for part in parts]),
        delta_p=_unpacked_doubles([part.delta_p for part in parts]), same_top=np.frombuffer(truths, np.bool_),
    )


def summed_divergence(shards: Sequence[DivergenceShard]) -> Divergence:
    """The divergence of one file, from its shards in the order of the text."""
    first, baseline_nll = shards[0], _unpacked_doubles([shard.baseline_nll for shard in shards])
    arrays = [shard.values for shard in shards if shard.values is not None]
    values = _unpacked_values(arrays) if arrays else None
    compared: dict[str, Any] = divergence_comparison(values, baseline_nll, first.n_chunks) if values else {}
    return Divergence(
        label=first.label, text=first.text, n_ctx=first.n_ctx, n_chunks=first.n_chunks, n_tokens=len(baseline_nll),
        backend=first.backend, perplexity=perplexity_estimate(values.nll if values else baseline_nll, first.n_chunks),
        rolling_perplexity=next((s.rolling_perplexity for s in shards if s.rolling_perplexity is not None), None),
        duration_s=sum(shard.duration_s for shard in shards), **compared,
        **_parts_of_shards(shards, values, baseline_nll),
    )


def _parts_of_shards(
    shards: Sequence[DivergenceShard], values: TokenValues | None, baseline_nll: Doubles
) -> dict[str, Any]:
    for shard in shards:
        if shard.parts_missing:
            return {"parts_missing": shard.parts_missing}
        if shard.weights_kld is not None and values is not None:
            of_weights, n_chunks = _unpacked_doubles([shard.weights_kld]), shard.n_weights_chunks
            n, perplexity = len(of_weights), None
            if shard.weights_nll_change is not None:
                change = values.nll[:n] - baseline_nll[:n]
                perplexity = perplexity_parts(_unpacked_doubles([shard.weights_nll_change]), change, n_chunks)
            return {"parts": divergence_parts(of_weights, values.kld[:n], n_chunks, perplexity)}
    return {}


def read_divergence_shards(folders: Sequence[Path]) -> list[DivergenceShard]:
    """What the shards left of one file."""
    return [DivergenceShard.model_validate_json((folder / "divergence.json").read_bytes()) for folder in folders]
