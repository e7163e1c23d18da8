"""How narrow a twin is: few heads, in the model's ratio to the heads of keys, and narrow ones."""

from __future__ import annotations

import math
from typing import Final

from builder.twin_model.config_keys import (
    EXPERT_INNER,
    INNER,
    RANKS,
    Config,
    config_key,
    twin_config_ropes,
)

_HIDDEN: Final = 64


def shrink_widths(part: Config) -> None:
    """Cut the widths of a config, those of attention and of what stands in its place."""
    heads_name, hidden_name = config_key(part, "heads"), config_key(part, "hidden")
    if not hidden_name:
        return
    hidden = int(part[hidden_name])
    if "state_size" in part or not heads_name or not isinstance(part[heads_name], int):
        part[hidden_name] = _HIDDEN
        shrink_inner_widths(part, hidden, _HIDDEN)
        _shrink_states(part, _HIDDEN)
        return
    heads = int(part[heads_name])
    dim = _twin_head_dim(part, hidden, heads)
    new_heads, new_kv = _fewer_twin_heads(part, heads)
    factor = _twin_dim_factor(part, dim)
    new_dim = dim // factor
    tied = hidden == heads * dim
    new_hidden = new_heads * new_dim
    if not tied:
        new_hidden = min(max(_HIDDEN, 8 * math.ceil(hidden / (heads * dim) * new_hidden / 8)), 3 * _HIDDEN)
    _scale_attention_scalar(part, dim, new_dim, hidden // heads, new_hidden // new_heads)
    part[heads_name], part[hidden_name] = new_heads, new_hidden
    place = _twin_kv_heads_place(part)
    if kv_name := config_key(place, "kv_heads"):
        place[kv_name] = new_kv
    if (name := config_key(part, "head_dim")) and isinstance(part[name], int):
        part[name] = new_dim
    _scale_rope_widths(part, factor)
    shrink_inner_widths(part, hidden, new_hidden)
    if isinstance(part.get("global_head_dim"), int):
        part["global_head_dim"] //= factor
    _shrink_ranks(part, hidden, new_hidden)
    _shrink_states(part, new_hidden)


def _shrink_ranks(part: Config, hidden: int, new_hidden: int) -> None:
    """Further widths: some are the model's."""
    for name in ("conv_dim", "conv_dim_out", "block_dim"):
        if part.get(name) == hidden:
            part[name] = new_hidden
    for name, rank in RANKS.items():
        if isinstance(part.get(name), int) and part[name]:
            part[name] = new_hidden if part[name] == hidden else min(part[name], rank)


def _twin_head_dim(part: Config, hidden: int, heads: int) -> int:
    name = config_key(part, "head_dim")
    return part[name] if name and isinstance(part[name], int) else hidden // heads


def _twin_kv_heads_place(part: Config) -> Config:
    """Where the heads of keys are counted: a few configs have a part for attention."""
    inner = part.get("attn_config")
    return inner if isinstance(inner, dict) and config_key(inner, "kv_heads") else part


def _fewer_twin_heads(part: Config, heads: int) -> tuple[int, int]:
    """Heads, and heads of keys: some of both, in about their ratio; no power of two where it was none."""
    place = _twin_kv_heads_place(part)
    name = config_key(place, "kv_heads")
    kv = place[name] if name and isinstance(place[name], int) else heads
    odd = heads & (heads - 1) != 0
    if kv == heads:
        return (6, 6) if odd else (4, 4)
    ratio = max(heads // kv, 1)
    ratio = ratio if ratio <= 4 else (3 if odd else 4)
    new_kv = min(kv, 2)
    return (2 * ratio if new_kv == 1 and ratio < 4 else new_kv * ratio), new_kv


def _twin_dim_factor(part: Config, dim: int) -> int:
    """By how much a head gets narrower, so that what its rope turns stays whole and even."""
    for factor in (8, 4, 2):
        if dim % factor == 0 and dim // factor >= 16 and dim // factor % 2 == 0 and _rope_divides(part, dim, factor):
            return factor
    return 1


def _rope_divides(part: Config, dim: int, factor: int) -> bool:
    turned = [dim * share for share in _twin_partial_rotary_shares(part)]
    turned += [part[name] for name in ("rotary_dim", "n_rot") if isinstance(part.get(name), int)]
    sections = [n for rope in twin_config_ropes(part) for n in rope.get("mrope_section") or []]
    factors = [len(v) for rope in twin_config_ropes(part) for v in rope.values() if isinstance(v, list) and len(v) > 4]
    whole = all(float(size / factor).is_integer() and int(size / factor) % 2 == 0 for size in turned)
    return whole and all(size % factor == 0 for size in (*sections, *factors))


def _twin_partial_rotary_shares(part: Config) -> list[float]:
    names = ("partial_rotary_factor", "rotary_pct", "rope_pct", "rope_percent", "rotary_percent")
    found = [part[name] for name in names if isinstance(part.get(name), int | float)]
    return found + [r["partial_rotary_factor"] for r in twin_config_ropes(part) if r.get("partial_rotary_factor")]


def _scale_rope_widths(part: Config, factor: int) -> None:
    for name in ("rotary_dim", "n_rot"):
        if isinstance(part.get(name), int):
            part[name] //= factor
    for rope in twin_config_ropes(part):
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


def shrink_inner_widths(part: Config, hidden: int, new_hidden: int) -> None:
    """Cut the widths between the two matrices of a feed-forward part."""
    for name in INNER:
        if isinstance(part.get(name), int) and part[name]:
            exact = part[name] % hidden == 0 and part[name] // hidden <= 8
            part[name] = part[name] // hidden * new_hidden if exact else 32 * max(3, round(1.5 * new_hidden / 32))
        elif isinstance(part.get(name), list):
            part[name] = [32 * max(3, round(1.5 * new_hidden / 32))] * len(part[name])
    for name in EXPERT_INNER:
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
