"""Shrinks a model's config.json to one of the same kind that is built and run in a second.

`shrink(config, defaults, full_depth=False) -> Shrunken`. Standard library alone: the converter's Python runs it too.

What stays is what decides the function: every kind of layer, biases, norms, soft-caps, scales, activations, rope bases
and scalings, tied embeddings, the vocabulary. What gets smaller are numbers of alike things: layers of a kind, experts,
heads (their ratio to the keys' heads stays, and whether they are a power of two), widths, and two lengths: a sliding
window, and the original context of a scaled rope, so that a prompt of some hundred tokens goes beyond both.

Only keys that the file has are changed, and widths that Transformers would give by default are written out
(`defaults`): a key that is absent stays absent, for that is what the converter meets in the real file.

To teach it a key: add it to the group of `_KEYS` whose rule fits.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

Config = dict[str, Any]

# Every name of one thing; the first that a config has counts.
_KEYS: Final[Mapping[str, tuple[str, ...]]] = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads", "num_query_heads"),
    "kv_heads": ("num_key_value_heads", "num_kv_heads", "multi_query_group_num", "n_head_kv", "kv_n_heads"),
    "head_dim": ("head_dim", "kv_channels", "d_kv", "attention_head_dim", "attention_key_value_channels"),
    "scalar": ("query_pre_attn_scalar",),
    "hidden": ("hidden_size", "n_embd", "n_embed", "d_model", "model_dim"),
    "window": ("sliding_window", "attention_window_size", "local_attention"),
}
_INNER: Final = (
    "intermediate_size", "n_inner", "d_ff", "ffn_dim", "ffn_hidden_size", "inner_size", "mlp_hidden_size",
    "block_ff_dim", "intermediate_size_mlp", "shared_intermediate_size", "dense_intermediate_size",
)  # fmt: skip
_EXPERT_INNER: Final = (
    "moe_intermediate_size", "expert_ffn_hidden_size", "shared_expert_intermediate_size",
    "moe_shared_expert_intermediate_size",
)  # fmt: skip
_EXPERTS: Final = ("num_experts", "num_local_experts", "n_routed_experts", "moe_num_experts", "num_moe_experts")
_TOP_K: Final = (
    "num_experts_per_tok", "num_experts_per_token", "moe_topk", "moe_k", "num_selected_experts", "moe_top_k",
    "experts_per_token",
)  # fmt: skip
_RANKS: Final[Mapping[str, int]] = {
    "q_lora_rank": 24, "kv_lora_rank": 32, "qk_nope_head_dim": 16, "qk_rope_head_dim": 8, "v_head_dim": 16,
    "hidden_size_per_layer_input": 16, "word_embed_proj_dim": 32, "laurel_rank": 8, "embedding_size": 32,
}  # fmt: skip
_DEPTH_KEYS: Final = (
    "full_attention_interval", "sliding_window_pattern", "_sliding_window_pattern", "attn_layer_period",
    "expert_layer_period", "no_rope_layer_interval", "interleave_moe_layer_step", "global_attn_every_n_layers",
    "decoder_sparse_step", "moe_layer_freq",
)  # fmt: skip
_PARTS: Final = ("text_config", "llm_config", "language_config", "thinker_config")
# llama.cpp decides by the depth what these compute (a scale, a window, a rope): their twin is as deep as they are.
DEPTH_MATTERS: Final = frozenset({
    "Exaone4ForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration",
    "BaichuanForCausalLM", "BaiChuanForCausalLM", "DeepseekV2ForCausalLM",
})  # fmt: skip

_MAX_DEPTH: Final = 64  # a mixture that has to stay deeper than this is cut
_WINDOW: Final = 32  # tokens, in place of the model's
_ROPE_CONTEXT: Final = 256  # the least context that llama.cpp opens; a shorter prompt than this is within it
_HIDDEN: Final = 64


@dataclass
class Shrunken:
    """A small config, and what its lengths stand for."""

    config: Config
    depth: int  # layers of the twin
    real_depth: int
    window: tuple[int, int] | None = None  # tokens: of the twin, of the model
    rope_context: tuple[int, int] | None = None  # the same of the original context of a scaled rope
    notes: list[str] = field(default_factory=list)

    @property
    def prompt_tokens(self) -> int:
        """Length of the long prompt: beyond the window, and beyond the rope's original context."""
        return max(96, *(3 * self.window[0] if self.window else 0, _ROPE_CONTEXT + 64 if self.rope_context else 0))


def shrink(config: Mapping[str, Any], defaults: Mapping[str, Any] | None = None, full_depth: bool = False) -> Shrunken:
    """A small model of the same kind.

    Args:
        config: config.json as it came.
        defaults: the same as Transformers completes it (`PretrainedConfig.to_dict()`), for what the file leaves out.
        full_depth: keep every layer.
    """
    small: Config = copy.deepcopy(dict(config))
    for stale in ("quantization_config", "auto_map", "torch_dtype", "dtype", "_name_or_path"):
        small.pop(stale, None)
    part, given = _text_part(small, defaults or {})
    for stale in ("dtype", "torch_dtype"):
        part.pop(stale, None)
    _complete(part, given)
    deep = full_depth or bool(DEPTH_MATTERS & set(config.get("architectures") or ()))
    found = Shrunken(small, 0, 0)
    _shrink_towers(small)
    _shrink_depth(part, found, deep)
    _shrink_widths(part)
    _shrink_experts(part)
    _shrink_window(part, found)
    _shrink_rope_context(part, found)
    return found


def _text_part(config: Config, defaults: Mapping[str, Any]) -> tuple[Config, Mapping[str, Any]]:
    """The language model inside a config of several parts, and its defaults."""
    for name in _PARTS:
        inner = config.get(name)
        if isinstance(inner, dict):
            given = defaults.get(name)
            return _text_part(inner, given if isinstance(given, Mapping) else {})
    return config, defaults


def _key(part: Mapping[str, Any], what: str) -> str:
    """The name that this config has for a thing; "" where it has none."""
    return next((name for name in _KEYS[what] if part.get(name) is not None), "")


def _complete(part: Config, defaults: Mapping[str, Any]) -> None:
    """Write out the widths that the file leaves to Transformers' defaults."""
    for what in ("layers", "heads", "kv_heads", "head_dim", "hidden", "scalar", "window"):
        name = _key(defaults, what)
        if what == "kv_heads" and defaults.get(name) == defaults.get(_key(defaults, "heads")):
            continue  # as many as heads, however many those are
        if what == "head_dim" and "qk_rope_head_dim" in (*part, *defaults):
            continue  # of latent attention, whose heads have widths of their own
        if name and not _key(part, what) and isinstance(defaults[name], int):
            part[name] = defaults[name]
    for name in (*_INNER, *_EXPERT_INNER, *_EXPERTS, *_TOP_K, *_RANKS):
        if name not in part and isinstance(defaults.get(name), int) and not isinstance(defaults[name], bool):
            part[name] = defaults[name]


def _shrink_towers(config: Config) -> None:
    """Encoders of pictures and sounds, which a text does not pass: one layer of each."""
    for part, tower in config.items():
        if not (isinstance(tower, dict) and part.endswith("_config")):
            continue
        if part in _PARTS or "vocab_size" in tower:
            _shrink_towers(tower)
            continue
        for name in ("num_hidden_layers", "depth", "num_layers", "encoder_layers", "n_layer", "layers"):
            if isinstance(tower.get(name), int):
                tower[name] = 1
        for name, value in tower.items():
            if name.endswith("_indexes") and isinstance(value, list):
                tower[name] = [0 for _ in value]


# ---- depth -------------------------------------------------------------------------------------------


def _shrink_depth(part: Config, found: Shrunken, full: bool) -> None:
    name = _key(part, "layers")
    if not name:
        return
    depth = int(part[name])
    found.real_depth = depth
    if isinstance(part.get("first_k_dense_replace"), int) and not full:
        part["first_k_dense_replace"] = min(1, part["first_k_dense_replace"])
    new = min(depth, _MAX_DEPTH) if full else min(depth, max(_kinds_depth(part, depth), _interval_depth(part), 2))
    found.depth = new
    _cut_lists(part, depth, new)
    for other in (name, "num_decoder_layers", "num_encoder_layers", "encoder_layers", "decoder_layers"):
        if isinstance(part.get(other), int):
            part[other] = min(part[other], new)
    if part.get("use_sliding_window") and isinstance(part.get("max_window_layers"), int):
        part["max_window_layers"] = min(part["max_window_layers"], new // 2)
    if isinstance(part.get("num_kv_shared_layers"), int) and new < depth:
        part["num_kv_shared_layers"] = min(part["num_kv_shared_layers"], new // 3)
    for step in ("num_nextn_predict_layers", "mtp_num_hidden_layers"):  # drafts, of which the logits know nothing
        if isinstance(part.get(step), int):
            part[step] = 0


def _layer_lists(part: Config, depth: int) -> Iterator[Sequence[Any]]:
    """The lists, and the strings, that say something of each layer."""
    for name, value in part.items():
        if isinstance(value, list | str) and len(value) == depth and (isinstance(value, list) or "pattern" in name):
            yield value


def _kinds_depth(part: Config, depth: int) -> int:
    """The fewest first layers among which every kind is, and whose pattern the others repeat."""
    lists = [*_layer_lists(part, depth)]
    kinds = [tuple(str(one[i]) for one in lists) for i in range(depth)]
    if not lists or len(set(kinds)) == depth:  # such as a width for each layer: not kinds
        return depth if lists and depth > 1 else 0
    least = max(kinds.index(kind) for kind in set(kinds)) + 1
    periods = (p for p in range(1, depth // 2 + 1) if all(kinds[i] == kinds[i % p] for i in range(depth)))
    period = next(periods, 0)
    return max(least, period)


def _interval_depth(part: Config) -> int:
    steps = [part[name] for name in _DEPTH_KEYS if isinstance(part.get(name), int) and part[name] > 1]
    dense = 3 if part.get("first_k_dense_replace") else 0
    named = [indices[0] + 2 for _, indices in _index_lists(part) if indices]
    return max(min(math.lcm(*steps), 24) if steps else 0, dense, *(named or [0]))


def _index_lists(part: Config) -> list[tuple[str, list[int]]]:
    """Lists of the layers that are of one kind, by name: [2, 5, 8]."""
    names = [name for name in part if name in ("mlp_only_layers", "full_attn_idxs", "attn_layer_indices")]
    return [(name, sorted(part[name])) for name in names if isinstance(part[name], list)]


def _cut_lists(part: Config, depth: int, new: int) -> None:
    for name, indices in _index_lists(part):
        part[name] = [index for index in indices if index < new]
    for name, value in part.items():
        told = isinstance(value, list) or (isinstance(value, str) and "pattern" in name)
        if told and len(value) == depth and name not in dict(_index_lists(part)):
            part[name] = value[:new]


# ---- widths ------------------------------------------------------------------------------------------


def _shrink_widths(part: Config) -> None:
    heads_name, hidden_name = _key(part, "heads"), _key(part, "hidden")
    if not hidden_name:
        return
    hidden = int(part[hidden_name])
    if "state_size" in part or not heads_name or not isinstance(part[heads_name], int):
        part[hidden_name] = _HIDDEN
        _shrink_inner(part, hidden, _HIDDEN)
        _shrink_states(part, _HIDDEN)
        return
    heads = int(part[heads_name])
    dim = _head_dim(part, hidden, heads)
    new_heads, new_kv = _fewer_heads(part, heads)
    factor = _dim_factor(part, dim)
    new_dim = dim // factor
    tied = hidden == heads * dim
    new_hidden = new_heads * new_dim
    if not tied:
        new_hidden = min(max(_HIDDEN, 8 * math.ceil(hidden / (heads * dim) * new_hidden / 8)), 3 * _HIDDEN)
    _scale_attention_scalar(part, dim, new_dim, hidden // heads, new_hidden // new_heads)
    part[heads_name], part[hidden_name] = new_heads, new_hidden
    place = _kv_place(part)
    if kv_name := _key(place, "kv_heads"):
        place[kv_name] = new_kv
    if (name := _key(part, "head_dim")) and isinstance(part[name], int):
        part[name] = new_dim
    _scale_rope_widths(part, factor)
    _shrink_inner(part, hidden, new_hidden)
    if isinstance(part.get("global_head_dim"), int):
        part["global_head_dim"] //= factor
    _shrink_ranks(part, hidden, new_hidden)
    _shrink_states(part, new_hidden)


def _shrink_ranks(part: Config, hidden: int, new_hidden: int) -> None:
    """Further widths: some are the model's."""
    for name in ("conv_dim", "conv_dim_out", "block_dim"):
        if part.get(name) == hidden:
            part[name] = new_hidden
    for name, rank in _RANKS.items():
        if isinstance(part.get(name), int) and part[name]:
            part[name] = new_hidden if part[name] == hidden else min(part[name], rank)


def _head_dim(part: Config, hidden: int, heads: int) -> int:
    name = _key(part, "head_dim")
    return part[name] if name and isinstance(part[name], int) else hidden // heads


def _kv_place(part: Config) -> Config:
    """Where the heads of keys are counted: a few configs have a part for attention."""
    inner = part.get("attn_config")
    return inner if isinstance(inner, dict) and _key(inner, "kv_heads") else part


def _fewer_heads(part: Config, heads: int) -> tuple[int, int]:
    """Heads, and heads of keys: some of both, in about their ratio; no power of two where it was none."""
    place = _kv_place(part)
    name = _key(place, "kv_heads")
    kv = place[name] if name and isinstance(place[name], int) else heads
    odd = heads & (heads - 1) != 0
    if kv == heads:
        return (6, 6) if odd else (4, 4)
    ratio = max(heads // kv, 1)
    ratio = ratio if ratio <= 4 else (3 if odd else 4)
    new_kv = min(kv, 2)
    return (2 * ratio if new_kv == 1 and ratio < 4 else new_kv * ratio), new_kv


def _dim_factor(part: Config, dim: int) -> int:
    """By how much a head gets narrower, so that what its rope turns stays whole and even."""
    for factor in (8, 4, 2):
        if dim % factor == 0 and dim // factor >= 16 and dim // factor % 2 == 0 and _rope_divides(part, dim, factor):
            return factor
    return 1


def _rope_divides(part: Config, dim: int, factor: int) -> bool:
    turned = [dim * share for share in _partial_shares(part)]
    turned += [part[name] for name in ("rotary_dim", "n_rot") if isinstance(part.get(name), int)]
    sections = [n for rope in _ropes(part) for n in rope.get("mrope_section") or []]
    factors = [len(v) for rope in _ropes(part) for v in rope.values() if isinstance(v, list) and len(v) > 4]
    whole = all(float(size / factor).is_integer() and int(size / factor) % 2 == 0 for size in turned)
    return whole and all(size % factor == 0 for size in (*sections, *factors))


def _partial_shares(part: Config) -> list[float]:
    names = ("partial_rotary_factor", "rotary_pct", "rope_pct", "rope_percent", "rotary_percent")
    found = [part[name] for name in names if isinstance(part.get(name), int | float)]
    return found + [r["partial_rotary_factor"] for r in _ropes(part) if r.get("partial_rotary_factor")]


def _ropes(part: Config) -> list[Config]:
    """The dictionaries that describe ropes: one, or one for each kind of layer."""
    found: list[Config] = []
    for name in ("rope_scaling", "rope_parameters"):
        value = part.get(name)
        if isinstance(value, dict):
            inner = [one for one in value.values() if isinstance(one, dict)]
            found += inner or [value]
    return found


def _scale_rope_widths(part: Config, factor: int) -> None:
    for name in ("rotary_dim", "n_rot"):
        if isinstance(part.get(name), int):
            part[name] //= factor
    for rope in _ropes(part):
        if sections := rope.get("mrope_section"):
            rope["mrope_section"] = [n // factor for n in sections]
        for name, value in rope.items():
            if isinstance(value, list) and len(value) > 4:  # a factor for each frequency
                rope[name] = value[::factor]


def _scale_attention_scalar(part: Config, dim: int, new_dim: int, share: int, new_share: int) -> None:
    """A scale of attention scores that is the width of a head, or the model's share of it, stays so."""
    value = part.get("query_pre_attn_scalar")
    if value == dim:
        part["query_pre_attn_scalar"] = new_dim
    elif value == share:
        part["query_pre_attn_scalar"] = new_share


def _shrink_inner(part: Config, hidden: int, new_hidden: int) -> None:
    for name in _INNER:
        if isinstance(part.get(name), int) and part[name]:
            exact = part[name] % hidden == 0 and part[name] // hidden <= 8
            part[name] = part[name] // hidden * new_hidden if exact else 32 * max(3, round(1.5 * new_hidden / 32))
        elif isinstance(part.get(name), list):
            part[name] = [32 * max(3, round(1.5 * new_hidden / 32))] * len(part[name])
    for name in _EXPERT_INNER:
        if isinstance(part.get(name), int) and part[name]:
            part[name] = 48 if "shared" not in name else 64


def _shrink_states(part: Config, hidden: int) -> None:
    """Of state spaces and linear attention: few heads; the states keep their size."""
    if isinstance(part.get("linear_num_key_heads"), int):
        ratio = max(1, (part.get("linear_num_value_heads") or 1) // part["linear_num_key_heads"])
        part |= {"linear_num_key_heads": 2, "linear_num_value_heads": 2 * ratio}
    expand = float(part.get("mamba_expand") or part.get("expand") or 2)
    for heads, dim, inner in (
        ("mamba_n_heads", "mamba_d_head", "mamba_d_ssm"), ("mamba_num_heads", "mamba_head_dim", ""),
        ("n_mamba_heads", "mamba_headdim", ""), ("num_heads", "head_dim", "intermediate_size"),
    ):
        if (heads != "num_heads" or "state_size" in part) and isinstance(part.get(heads), int):
            width = int(expand * hidden)
            part[dim] = 16
            part[heads] = width // 16
            if inner and isinstance(part.get(inner), int):
                part[inner] = width
    for groups in ("mamba_n_groups", "n_groups", "mamba_ngroups"):
        if isinstance(part.get(groups), int):
            part[groups] = min(part[groups], 2)
    if isinstance(part.get("time_step_rank"), int):
        part["time_step_rank"] = max(1, math.ceil(hidden / 16))
    if isinstance(part.get("mamba_dt_rank"), int):
        part["mamba_dt_rank"] = max(1, math.ceil(hidden / 16))
    if isinstance(part.get("lru_width"), int):
        part["lru_width"] = hidden


# ---- experts and lengths -----------------------------------------------------------------------------


def _shrink_experts(part: Config) -> None:
    """Few experts, of which some are chosen, in the config or a part of it."""
    inner = part.get("ffn_config")
    if isinstance(inner, dict):
        _fewer_experts(inner)
        _shrink_inner(inner, 1, 64)
    _fewer_experts(part)
    if "Ernie4_5_MoeForCausalLM" in str(part.get("architectures")):  # the converter takes the one from the others
        part["intermediate_size"] = (
            part["num_key_value_heads"] * part["moe_num_shared_experts"] * part["moe_intermediate_size"]
        )


def _fewer_experts(part: Config) -> None:
    top = next((name for name in _TOP_K if isinstance(part.get(name), int)), "")
    for name in _EXPERTS:
        if isinstance(part.get(name), int) and part[name] > 1:
            part[name] = min(part[name], 8)
    if top:
        part[top] = min(part[top], 3)
    if isinstance(part.get("n_group"), int) and part["n_group"] > 1:
        part["n_group"] = min(part["n_group"], 4)
        part["topk_group"] = min(part.get("topk_group") or 1, 2)


def _shrink_window(part: Config, found: Shrunken) -> None:
    name = _key(part, "window")
    size, longest = part.get(name), part.get("max_position_embeddings")
    if not isinstance(size, int) or size <= _WINDOW or part.get("use_sliding_window") is False:
        return
    if isinstance(longest, int) and size >= longest:
        return  # no text is as long
    found.window = (_WINDOW, size)
    part[name] = _WINDOW


def _shrink_rope_context(part: Config, found: Shrunken) -> None:
    key = "original_max_position_embeddings"
    places = [place for place in (*_ropes(part), part) if isinstance(place.get(key), int)]
    if not places or places[0][key] <= _ROPE_CONTEXT:
        return
    size = int(places[0][key])
    found.rope_context = (_ROPE_CONTEXT, size)
    for place in places:
        place[key] = max(1, round(place[key] * _ROPE_CONTEXT / size))
    longest = part.get("max_position_embeddings")
    if isinstance(longest, int):
        part["max_position_embeddings"] = max(_ROPE_CONTEXT, round(longest * _ROPE_CONTEXT / size))
