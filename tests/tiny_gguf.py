"""Tiny GGUFs with random weights and the demo model's vocabulary, or one of bytes: a llama, one with a sliding window,
a recurrent one, a mixture of experts.

They load in milliseconds, so that memory and architectures can be tested which no demo model has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

HIDDEN, WIDE, HEADS, CONTEXT = 64, 128, 2, 2048
EXPERTS, USED = 5, 2  # the last is never used


def write_tiny(
    demo: Path | None, path: Path, architecture: str = "llama", n_layers: int = 2, window: int = 0,
    context: int = CONTEXT,
) -> Path:
    """Write one; `architecture` is llama, gemma2 (it has a sliding window), mamba, or experts (a llama with them).
    Without a demo model its tokens are the 256 bytes.
    """
    writer = gguf.GGUFWriter(path, "llama" if architecture == "experts" else architecture)
    writer.add_name(f"tiny {architecture}")
    writer.add_context_length(context)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(n_layers)
    n_vocab = _add_bytes(writer) if demo is None else _copy_vocabulary(gguf.GGUFReader(demo), writer)
    kinds = {"llama": _llama, "gemma2": _gemma2, "mamba": _mamba, "experts": _experts}
    kinds[architecture](writer, n_layers, n_vocab, window)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def _add_bytes(writer: Any) -> int:
    """GPT-2's alphabet of bytes, some runs of blanks as real vocabularies have them, and an end; how many."""
    plain = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = (byte for byte in range(256) if byte not in plain)
    tokens = [chr(byte) for byte in plain] + [chr(256 + at) for at, _byte in enumerate(others)]
    tokens += [blank * length for blank in "\u0120-" for length in (2, 4, 8, 16, 32)] + ["<|end|>"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.NORMAL] * (len(tokens) - 1) + [gguf.TokenType.CONTROL])
    writer.add_token_merges([f"{blank * n} {blank * n}" for blank in "\u0120-" for n in (1, 2, 4, 8, 16)])
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_chat_template("{% for message in messages %}{{ message.content }}\n{% endfor %}")
    return len(tokens)


def _copy_vocabulary(reader: Any, writer: Any) -> int:
    for name, field in reader.fields.items():
        if name.startswith("tokenizer."):
            kind = field.types[0]
            inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, inner)
    return len(reader.fields["tokenizer.ggml.tokens"].data)


class _Weights:
    """The weights of one model; each begins with the embeddings."""

    def __init__(self, writer: Any, n_vocab: int) -> None:
        self._writer, self._rng = writer, np.random.default_rng(11)
        self.add("token_embd.weight", n_vocab, HIDDEN)
        self.ones("output_norm.weight", HIDDEN)

    def add(self, name: str, *shape: int, scale: float = 0.3) -> None:
        """A random matrix, rows first as numpy has it."""
        self._writer.add_tensor(name, (self._rng.standard_normal(shape) * scale).astype(np.float32))

    def ones(self, name: str, *shape: int) -> None:
        """A norm that does nothing."""
        self._writer.add_tensor(name, np.ones(shape, np.float32))


def _attention(writer: Any) -> None:
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)


def _llama(writer: Any, n_layers: int, n_vocab: int, _window: int) -> None:
    _attention(writer)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    weights = _Weights(writer, n_vocab)
    for layer in range(n_layers):
        _block(weights, f"blk.{layer}.")


def _experts(writer: Any, n_layers: int, n_vocab: int, _window: int) -> None:
    _attention(writer)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_expert_count(EXPERTS)
    writer.add_expert_used_count(USED)
    weights = _Weights(writer, n_vocab)
    for layer in range(n_layers):
        name = f"blk.{layer}."
        _attention_block(weights, name)
        # Of v, -v, w, -w and nothing, two are always above nothing.
        v, w = np.random.default_rng(layer).standard_normal((2, HIDDEN)).astype(np.float32)
        writer.add_tensor(name + "ffn_gate_inp.weight", np.stack([v, -v, w, -w, np.zeros_like(v)]))
        for part in ("ffn_gate_exps", "ffn_up_exps"):
            weights.add(f"{name}{part}.weight", EXPERTS, WIDE, HIDDEN)
        weights.add(name + "ffn_down_exps.weight", EXPERTS, HIDDEN, WIDE)


def _block(weights: _Weights, name: str) -> None:
    _attention_block(weights, name)
    for part in ("ffn_gate", "ffn_up"):
        weights.add(f"{name}{part}.weight", WIDE, HIDDEN)
    weights.add(name + "ffn_down.weight", HIDDEN, WIDE)


def _attention_block(weights: _Weights, name: str) -> None:
    weights.ones(name + "attn_norm.weight", HIDDEN)
    weights.ones(name + "ffn_norm.weight", HIDDEN)
    for part in ("attn_q", "attn_k", "attn_v", "attn_output"):
        weights.add(f"{name}{part}.weight", HIDDEN, HIDDEN)


def _gemma2(writer: Any, n_layers: int, n_vocab: int, window: int) -> None:
    _attention(writer)
    writer.add_key_length(HIDDEN // HEADS)
    writer.add_value_length(HIDDEN // HEADS)
    writer.add_sliding_window(window)
    writer.add_attn_logit_softcapping(50.0)
    writer.add_final_logit_softcapping(30.0)
    weights = _Weights(writer, n_vocab)
    for layer in range(n_layers):
        _block(weights, f"blk.{layer}.")
        weights.ones(f"blk.{layer}.post_attention_norm.weight", HIDDEN)
        weights.ones(f"blk.{layer}.post_ffw_norm.weight", HIDDEN)


def _mamba(writer: Any, n_layers: int, n_vocab: int, _window: int) -> None:
    inner, state, rank, kernel = 2 * HIDDEN, 8, 4, 4
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_ssm_conv_kernel(kernel)
    writer.add_ssm_inner_size(inner)
    writer.add_ssm_state_size(state)
    writer.add_ssm_time_step_rank(rank)
    weights = _Weights(writer, n_vocab)
    for layer in range(n_layers):
        name = f"blk.{layer}."
        weights.ones(name + "attn_norm.weight", HIDDEN)
        weights.add(name + "ssm_in.weight", 2 * inner, HIDDEN)
        weights.add(name + "ssm_conv1d.weight", inner, kernel)
        weights.ones(name + "ssm_conv1d.bias", inner)
        weights.add(name + "ssm_x.weight", rank + 2 * state, inner)
        weights.add(name + "ssm_dt.weight", inner, rank)
        weights.ones(name + "ssm_dt.bias", inner)
        writer.add_tensor(name + "ssm_a", -np.ones((inner, state), np.float32))
        weights.ones(name + "ssm_d", inner)
        weights.add(name + "ssm_out.weight", HIDDEN, inner)
