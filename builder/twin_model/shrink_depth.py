"""How few layers a twin has: as many as show every kind of layer, in the order of the model."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, Final

from builder.twin_model.config_keys import Config, config_key

_DEPTH_KEYS: Final = (
    "full_attention_interval", "sliding_window_pattern", "_sliding_window_pattern", "attn_layer_period",
    "expert_layer_period", "no_rope_layer_interval", "interleave_moe_layer_step", "global_attn_every_n_layers",
    "decoder_sparse_step", "moe_layer_freq",
)  # fmt: skip
_MAX_DEPTH: Final = 64  # a mixture that has to stay deeper than this is cut


def shrink_depth(part: Config, full: bool) -> tuple[int, int]:
    """Cut the layers of a config, all but the first ones; with `full` only those beyond the most that a twin has.

    Returns:
        The layers of the twin, and those of the model; 0 where the config does not say.
    """
    name = config_key(part, "layers")
    if not name:
        return 0, 0
    depth = int(part[name])
    if isinstance(part.get("first_k_dense_replace"), int) and not full:
        part["first_k_dense_replace"] = min(1, part["first_k_dense_replace"])
    new = min(depth, _MAX_DEPTH) if full else min(depth, max(_kinds_depth(part, depth), _interval_depth(part), 2))
    _cut_twin_layer_lists(part, depth, new)
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
    return new, depth


def _twin_layer_lists(part: Config, depth: int) -> Iterator[Sequence[Any]]:
    """The lists, and the strings, that say something of each layer."""
    for name, value in part.items():
        if isinstance(value, list | str) and len(value) == depth and (isinstance(value, list) or "pattern" in name):
            yield value


def _kinds_depth(part: Config, depth: int) -> int:
    """The fewest first layers among which every kind is, and whose pattern the others repeat."""
    lists = [*_twin_layer_lists(part, depth)]
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
    named = [indices[0] + 2 for _, indices in _twin_layer_index_lists(part) if indices]
    return max(min(math.lcm(*steps), 24) if steps else 0, dense, *(named or [0]))


def _twin_layer_index_lists(part: Config) -> list[tuple[str, list[int]]]:
    """Lists of the layers that are of one kind, by name: [2, 5, 8]."""
    names = [name for name in part if name in ("mlp_only_layers", "full_attn_idxs", "attn_layer_indices")]
    return [(name, sorted(part[name])) for name in names if isinstance(part[name], list)]


def _cut_twin_layer_lists(part: Config, depth: int, new: int) -> None:
    for name, indices in _twin_layer_index_lists(part):
        part[name] = [index for index in indices if index < new]
    for name, value in part.items():
        told = isinstance(value, list) or (isinstance(value, str) and "pattern" in name)
        if told and len(value) == depth and name not in dict(_twin_layer_index_lists(part)):
            part[name] = value[:new]
