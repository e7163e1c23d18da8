"""Tiny GGUFs with random weights and the demo model's vocabulary, or one of bytes: a llama, one with a sliding window,
recurrent and hybrid ones, a mixture of experts.

They load in milliseconds, so that memory and architectures can be tested which no demo model has.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gguf
import numpy as np

HIDDEN, WIDE, HEADS, CONTEXT = 64, 128, 2, 2048
EXPERTS, USED = 5, 2  # the last is never used
_INNER, _STATE, _RANK, _KERNEL = 2 * HIDDEN, 8, 4, 4  # of mamba


def write_tiny(
    demo: Path | None, path: Path, architecture: str = "llama", n_layers: int = 2, window: int = 0,
    context: int = CONTEXT,
) -> Path:
    """Write one; `architecture` is llama, gemma2 (it has a sliding window), mamba, lfm2 and jamba (hybrids; lfm2 may
    have a window too), or experts (a llama with them). Without a demo model its tokens are the 256 bytes.
    """
    writer = gguf.GGUFWriter(path, "llama" if architecture == "experts" else architecture)
    writer.add_name(f"tiny {architecture}")
    writer.add_context_length(context)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(n_layers)
    n_vocab = _add_bytes(writer) if demo is None else _copy_vocabulary(gguf.GGUFReader(demo), writer)
    kinds = {
        "llama": _llama, "gemma2": _gemma2, "mamba": _mamba, "lfm2": _lfm2, "jamba": _jamba, "experts": _experts,
    }
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

    def __init__(self, writer: Any, n_vocab: int, norm: str = "output_norm.weight") -> None:
        self._writer, self._rng = writer, np.random.default_rng(11)
        self.add("token_embd.weight", n_vocab, HIDDEN)
        self.ones(norm, HIDDEN)

    def add(self, name: str, *shape: int, scale: float = 0.3) -> None:
        """A random matrix, rows first as numpy has it."""
        self._writer.add_tensor(name, (self._rng.standard_normal(shape) * scale).astype(np.float32))

    def plain(self, name: str, values: Any) -> None:
        """These weights."""
        self._writer.add_tensor(name, values)

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
        weights.ones(name + "ffn_norm.weight", HIDDEN)
        # Of v, -v, w, -w and nothing, two are always above nothing.
        v, w = np.random.default_rng(layer).standard_normal((2, HIDDEN)).astype(np.float32)
        writer.add_tensor(name + "ffn_gate_inp.weight", np.stack([v, -v, w, -w, np.zeros_like(v)]))
        for part in ("ffn_gate_exps", "ffn_up_exps"):
            weights.add(f"{name}{part}.weight", EXPERTS, WIDE, HIDDEN)
        weights.add(name + "ffn_down_exps.weight", EXPERTS, HIDDEN, WIDE)


def _block(weights: _Weights, name: str) -> None:
    _attention_block(weights, name)
    _feed_forward(weights, name)


def _feed_forward(weights: _Weights, name: str) -> None:
    weights.ones(name + "ffn_norm.weight", HIDDEN)
    for part in ("ffn_gate", "ffn_up"):
        weights.add(f"{name}{part}.weight", WIDE, HIDDEN)
    weights.add(name + "ffn_down.weight", HIDDEN, WIDE)


def _attention_block(weights: _Weights, name: str) -> None:
    weights.ones(name + "attn_norm.weight", HIDDEN)
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
    writer.add_feed_forward_length(0)
    writer.add_head_count(0)
    writer.add_layer_norm_rms_eps(1e-5)
    _state_space(writer)
    weights = _Weights(writer, n_vocab)
    for layer in range(n_layers):
        _mamba_block(weights, f"blk.{layer}.")


def _lfm2(writer: Any, n_layers: int, n_vocab: int, window: int) -> None:
    """Layers with short convolutions and layers with attention, in turns."""
    _attention_in_turns(writer, n_layers)
    writer.add_rope_dimension_count(HIDDEN // HEADS)
    writer.add_shortconv_l_cache(3)
    if window:
        writer.add_sliding_window(window)
    weights = _Weights(writer, n_vocab, "token_embd_norm.weight")
    for layer in range(n_layers):
        name = f"blk.{layer}."
        if layer % 2:
            _block(weights, name)
            for part in ("attn_q_norm", "attn_k_norm"):
                weights.ones(f"{name}{part}.weight", HIDDEN // HEADS)
            continue
        weights.add(name + "shortconv.conv.weight", HIDDEN, 3)
        weights.add(name + "shortconv.in_proj.weight", 3 * HIDDEN, HIDDEN)
        weights.add(name + "shortconv.out_proj.weight", HIDDEN, HIDDEN)
        weights.ones(name + "attn_norm.weight", HIDDEN)
        _feed_forward(weights, name)


def _jamba(writer: Any, n_layers: int, n_vocab: int, _window: int) -> None:
    """Layers of mamba and layers with attention, in turns."""
    _attention_in_turns(writer, n_layers)
    _state_space(writer)
    weights = _Weights(writer, n_vocab)
    for layer in range(n_layers):
        name = f"blk.{layer}."
        if layer % 2:
            _block(weights, name)
            continue
        _mamba_block(weights, name)
        for part, size in (("ssm_dt_norm", _RANK), ("ssm_b_norm", _STATE), ("ssm_c_norm", _STATE)):
            weights.ones(f"{name}{part}.weight", size)
        _feed_forward(weights, name)


def _attention_in_turns(writer: Any, n_layers: int) -> None:
    writer.add_feed_forward_length(WIDE)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv([HEADS if layer % 2 else 0 for layer in range(n_layers)])
    writer.add_layer_norm_rms_eps(1e-5)


def _state_space(writer: Any) -> None:
    writer.add_ssm_conv_kernel(_KERNEL)
    writer.add_ssm_inner_size(_INNER)
    writer.add_ssm_state_size(_STATE)
    writer.add_ssm_time_step_rank(_RANK)


def _mamba_block(weights: _Weights, name: str) -> None:
    weights.ones(name + "attn_norm.weight", HIDDEN)
    weights.add(name + "ssm_in.weight", 2 * _INNER, HIDDEN)
    weights.add(name + "ssm_conv1d.weight", _INNER, _KERNEL)
    weights.ones(name + "ssm_conv1d.bias", _INNER)
    weights.add(name + "ssm_x.weight", _RANK + 2 * _STATE, _INNER)
    weights.add(name + "ssm_dt.weight", _INNER, _RANK)
    weights.ones(name + "ssm_dt.bias", _INNER)
    weights.plain(name + "ssm_a", -np.ones((_INNER, _STATE), np.float32))
    weights.ones(name + "ssm_d", _INNER)
    weights.add(name + "ssm_out.weight", HIDDEN, _INNER)
