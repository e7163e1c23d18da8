"""The names that configs give to one thing, and the sizes that a twin cuts.

To teach the twin a key: add it to the group of `KEYS` whose rule fits, or to one of the lists.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

Config = dict[str, Any]

# Every name of one thing; the first that a config has counts.
KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads", "num_query_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "multi_query_group_num", "n_head_kv", "kv_n_heads"),
    "head_dim": ("head_dim", "kv_channels", "d_kv", "attention_head_dim", "attention_key_value_channels"),
    "scalar": ("query_pre_attn_scalar",),
    "hidden": ("hidden_size", "n_embd", "n_embed", "d_model", "model_dim"),
    "window": ("sliding_window", "attention_window_size", "local_attention"),
}
INNER: Final = (
    "intermediate_size", "n_inner", "d_ff", "ffn_dim", "ffn_hidden_size", "inner_size", "mlp_hidden_size",
    "block_ff_dim", "intermediate_size_mlp", "shared_intermediate_size", "dense_intermediate_size",
)  # fmt: skip
EXPERT_INNER: Final = (
    "moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size",
    "moe_shared_expert_intermediate_size",
)  # fmt: skip
EXPERTS: Final = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts")
TOP_K: Final = (
    "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "num_selected_experts", "moe_top_k",
    "experts_per_token",
)  # fmt: skip
RANKS: Final[Mapping[str, int]] = {
    "q_lora_rank": 24, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "hidden_size_per_layer_input": 16, "word_embed_proj_dim": 32, "laurel_rank": 8, "embedding_size": 32,
}  # fmt: skip


def config_key(part: Mapping[str, Any], what: str) -> str:
    """The name that this config has for a thing; "" where it has none."""
    return next((name for name in KEYS[what] if part.get(name) is not None), "")


def twin_config_ropes(part: Config) -> list[Config]:
    """The dictionaries that describe ropes: one, or one for each kind of layer."""
    found: list[Config] = []
    for name in ("rope_scaling", "rope_parameters"):
        value = part.get(name)
        if isinstance(value, dict):
            inner = [one for one in value.values() if isinstance(one, dict)]
            found += inner or [value]
    return found
