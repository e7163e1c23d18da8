"""The shape of a model from its Hugging Face config.json, which is hostile input."""

from __future__ import annotations

from collections.abc import Mapping

Config = Mapping[str, object]  # config.json of the Hugging Face model

KV_HEADS = ("num_key_value_heads", "num_kv_heads", "multi_query_group_num", "n_head_kv")
HIDDEN = ("hidden_size", "n_embd", "n_embed", "d_model")
VOCAB = ("vocab_size", "n_vocab", "padded_vocab_size")
TRAINED = ("max_position_embeddings", "n_positions", "n_ctx", "max_sequence_length", "max_seq_len", "seq_length")
_LARGEST_NUMBER = 1 << 32
_MOST_LAYERS = 10_000  # ten times the deepest model; each is an element of a list here


def model_text_config(config: Config) -> Config:
    """The configuration of the language model, which a multimodal model nests in `text_config`."""
    inner = config.get("text_config")
    return {**config, **inner} if isinstance(inner, Mapping) else config


def model_config_number(config: Config, *keys: str) -> int | None:
    """The value of the first key that holds an integer from 0 to 2^32; None if no key does."""
    values = (config.get(key) for key in keys)
    return next((value for value in values if type(value) is int and 0 <= value <= _LARGEST_NUMBER), None)


def n_layers(config: Config) -> int:
    """The number of layers; 0 if the config has none."""
    return min(model_config_number(config, "num_hidden_layers", "n_layer", "n_layers", "num_layers") or 0, _MOST_LAYERS)


def n_heads(config: Config) -> int:
    """Attention heads of a layer; 1 if the config has no number."""
    return model_config_number(config, "num_attention_heads", "n_head", "n_heads") or 1


def n_kv_heads(config: Config) -> int:
    """Key/value heads of a layer; fewer than query heads with grouped attention."""
    if config.get("multi_query") is True and not config.get("new_decoder_architecture"):
        return 1
    return model_config_number(config, *KV_HEADS) or n_heads(config)
