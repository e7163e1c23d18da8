"""Estimates the memory that serving a model takes, from its config.json, before a GGUF exists."""

from __future__ import annotations

from typing import Final

from quantyard.memory.kv_cache import UBATCH_TOKENS, ContextUse, kv_bytes
from quantyard.memory.layers import Layer, ModelLayers
from quantyard.protocol.cache_types import DEFAULT_CACHE
from quantyard.quants.model_config import (
    HIDDEN,
    KV_HEADS,
    VOCAB,
    Config,
    model_config_number,
    model_text_config,
    n_kv_heads,
    n_layers,
)

# To support an architecture that mixes sliding-window and full attention without `layer_types`: add a row.
# model_type → n, where every n-th layer attends to the whole context.
_FULL_ATTENTION_EVERY: Final = {"gemma2": 2, "gemma3": 6, "gemma3_text": 6, "cohere2": 4}
_NO_KV_CACHE: Final = ("mamba", "mamba2", "falcon_mamba", "rwkv", "rwkv5", "rwkv6", "rwkv7")
# Keys of architectures whose layers differ in ways that `layer_types` does not describe: their size is unknown.
_UNEVEN_KEYS: Final = (
    "attn_layer_period", "hybrid_override_pattern", "attn_layer_indices", "ssm_cfg", "global_head_dim",
)  # fmt: skip
_PROCESS_BYTES: Final = 80 * 2**20  # llama-server itself: code, libraries, HTTP threads


def kv_cache_bytes(config: Config, context_tokens: int, cache_type: str = DEFAULT_CACHE) -> int | None:
    """Bytes of llama.cpp's KV cache for one context; None if the config does not determine it.

    Exact for standard, grouped, windowed and latent attention. Not included: the states of recurrent layers, tens of MB
    at every context, and the context that each further slot of a server adds.
    """
    text = model_text_config(config)
    if text.get("model_type") in _NO_KV_CACHE:
        return 0
    attention = _attention_cache_layer(text)
    uneven = any(key in text for key in _UNEVEN_KEYS) or any(isinstance(text.get(key), list) for key in KV_HEADS)
    if attention is None or uneven:
        return None
    window = model_config_number(text, "sliding_window", "attention_chunk_size") or 0
    layers = tuple(
        layer for kind in _cache_layer_kinds(text) if (layer := _cache_layer_of_kind(kind, attention, window))
    )
    return kv_bytes(ModelLayers(layers, window), ContextUse(context_tokens), cache_type)


def serve_memory_bytes(file_size: int, kv: int | None, config: Config) -> int:
    """Expected memory in bytes that llama-server needs with one context: the weights, the KV cache, and around them

        512 * 4 * 8 * hidden    activations of one batch
        250 * vocab             the tokenizer's tables
        80 MiB                  the process

    An unknown KV cache counts as 0. Not included: llama-server's cache of earlier prompts, which grows up to
    --cache-ram (default: 8 GiB); the logits of a whole batch, 512 * 4 * vocab, which CPU servers reserve but use only
    if a client asks for them; and file pages that stay in memory after the weights were repacked for the CPU (Q4_0,
    Q8_0 and others), which the kernel reclaims when it needs them.
    """
    text = model_text_config(config)
    activations = UBATCH_TOKENS * 4 * 8 * (model_config_number(text, *HIDDEN) or 0)
    return file_size + (kv or 0) + activations + 250 * (model_config_number(text, *VOCAB) or 0) + _PROCESS_BYTES


def _attention_cache_layer(text: Config) -> Layer | None:
    """The elements that an attention layer caches per token; for latent attention, the latent and the rotary part."""
    latent = model_config_number(text, "kv_lora_rank")
    if latent:
        return Layer(latent + (model_config_number(text, "qk_rope_head_dim") or 0), 0)
    heads, hidden = (
        model_config_number(text, "num_attention_heads", "n_head", "n_heads"),
        model_config_number(text, *HIDDEN),
    )
    head_dim = model_config_number(text, "head_dim") or (hidden // heads if heads and hidden else None)
    if not head_dim or not n_layers(text):
        return None
    return Layer(n_kv_heads(text) * head_dim, n_kv_heads(text) * head_dim)


def _cache_layer_kinds(text: Config) -> list[str]:
    """The kind of attention of each layer with a cache of its own (in some models the last layers share one)."""
    kinds = text.get("layer_types")
    if isinstance(kinds, list | tuple) and kinds:
        return [str(kind) for kind in kinds][: len(kinds) - (model_config_number(text, "num_kv_shared_layers") or 0)]
    every = model_config_number(text, "sliding_window_pattern") or _FULL_ATTENTION_EVERY.get(
        str(text.get("model_type")), 1
    )
    return ["full_attention" if (i + 1) % every == 0 else "sliding_attention" for i in range(n_layers(text))]


def _cache_layer_of_kind(kind: str, attention: Layer, window: int) -> Layer | None:
    """None for a layer without a KV cache: linear attention, mamba, convolution."""
    if kind in ("full_attention", "attention"):
        return attention
    is_windowed = "sliding" in kind or "chunked" in kind
    return Layer(attention.k, attention.v, windowed=window > 0) if is_windowed else None
