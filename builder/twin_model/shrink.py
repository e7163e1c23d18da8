"""Shrinks a model's config.json to one of the same kind that is built and run in a second.

`shrink_to_twin(config, defaults, full_depth=False) -> Shrunken`. Standard library alone, for the converter's Python
runs it too.

What stays is what decides the function: every kind of layer, biases, norms, soft-caps, scales, activations, rope bases
and scalings, tied embeddings, the vocabulary. What gets smaller are numbers of alike things: layers of a kind, experts,
heads (their ratio to the keys' heads stays, and whether they are a power of two), widths, and two lengths: a sliding
window, and the original context of a scaled rope, so that a prompt of some hundred tokens goes beyond both.

Only keys that the file has are changed, and widths that Transformers would give by default are written out
(`defaults`): a key that is absent stays absent, for that is what the converter meets in the real file.

To teach it a key: config_keys.py.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from builder.twin_model.config_keys import (
    EXPERT_INNER,
    EXPERTS,
    INNER,
    RANKS,
    TOP_K,
    Config,
    config_key,
    twin_config_ropes,
)
from builder.twin_model.shrink_depth import shrink_depth
from builder.twin_model.shrink_widths import shrink_inner_widths, shrink_widths

_PARTS: Final = ("text_config", "llm_config", "language_config", "thinker_config")
# llama.cpp decides by the depth what these compute (a scale, a window, a rope): their twin is as deep as they are.
DEPTH_MATTERS: Final = frozenset({
    "Exaone4ForCausalLM", "Gemma2ForCausalLM", "Gemma3ForCausalLM", "Gemma3ForConditionalGeneration",
    "BaichuanForCausalLM", "BaiChuanForCausalLM", "DeepseekV2ForCausalLM",
})  # fmt: skip

_WINDOW: Final = 32  # tokens, in place of the model's
_ROPE_CONTEXT: Final = 256  # the least context that llama.cpp opens; a shorter prompt than this is within it


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


def shrink_to_twin(
    config: Mapping[str, Any], defaults: Mapping[str, Any] | None = None, full_depth: bool = False
) -> Shrunken:
    """A small model of the same kind.

    Args:
        config: config.json as it came.
        defaults: the same as Transformers completes it (`PretrainedConfig.to_dict()`), for what the file leaves out.
        full_depth: keep every layer.
    """
    small: Config = copy.deepcopy(dict(config))
    for stale in ("quantization_config", "auto_map", "torch_dtype", "dtype", "_name_or_path"):
        small.pop(stale, None)
    part, given = _text_part_of_twin(small, defaults or {})
    for stale in ("dtype", "torch_dtype"):
        part.pop(stale, None)
    _complete_twin_widths(part, given)
    deep = full_depth or bool(DEPTH_MATTERS & set(config.get("architectures") or ()))
    found = Shrunken(small, 0, 0)
    _shrink_towers(small)
    found.depth, found.real_depth = shrink_depth(part, deep)
    shrink_widths(part)
    _shrink_experts(part)
    _shrink_window(part, found)
    _shrink_rope_context(part, found)
    return found


def _text_part_of_twin(config: Config, defaults: Mapping[str, Any]) -> tuple[Config, Mapping[str, Any]]:
    """The language model inside a config of several parts, and its defaults."""
    for name in _PARTS:
        inner = config.get(name)
        if isinstance(inner, dict):
            given = defaults.get(name)
            return _text_part_of_twin(inner, given if isinstance(given, Mapping) else {})
    return config, defaults


def _complete_twin_widths(part: Config, defaults: Mapping[str, Any]) -> None:
    """Write out the widths that the file leaves to Transformers' defaults."""
    for what in ("layers", "heads", "kv_heads", "head_dim", "hidden", "scalar", "window"):
        name = config_key(defaults, what)
        if what == "kv_heads" and defaults.get(name) == defaults.get(config_key(defaults, "heads")):
            continue  # as many as heads, however many those are
        if what == "head_dim" and "qk_rope_head_dim" in (*part, *defaults):
            continue  # of latent attention, whose heads have widths of their own
        if name and not config_key(part, what) and isinstance(defaults[name], int):
            part[name] = defaults[name]
    for name in (*INNER, *EXPERT_INNER, *EXPERTS, *TOP_K, *RANKS):
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


# ---- experts and lengths -----------------------------------------------------------------------------


def _shrink_experts(part: Config) -> None:
    """Few experts, of which some are chosen, in the config or a part of it."""
    inner = part.get("ffn_config")
    if isinstance(inner, dict):
        _fewer_experts(inner)
        shrink_inner_widths(inner, 1, 64)
    _fewer_experts(part)
    if "Ernie4_5_MoeForCausalLM" in str(part.get("architectures")):  # the converter takes the one from the others
        part["intermediate_size"] = (
            part["num_key_value_heads"] * part["moe_num_shared_experts"] * part["moe_intermediate_size"]
        )


def _fewer_experts(part: Config) -> None:
    top = next((name for name in TOP_K if isinstance(part.get(name), int)), "")
    for name in EXPERTS:
        if isinstance(part.get(name), int) and part[name] > 1:
            part[name] = min(part[name], 8)
    if top:
        part[top] = min(part[top], 3)
    if isinstance(part.get("n_group"), int) and part["n_group"] > 1:
        part["n_group"] = min(part["n_group"], 4)
        part["topk_group"] = min(part.get("topk_group") or 1, 2)


def _shrink_window(part: Config, found: Shrunken) -> None:
    name = config_key(part, "window")
    size, longest = part.get(name), part.get("max_position_embeddings")
    if not isinstance(size, int) or size <= _WINDOW or part.get("use_sliding_window") is False:
        return
    if isinstance(longest, int) and size >= longest:
        return  # no text is as long
    found.window = (_WINDOW, size)
    part[name] = _WINDOW


def _shrink_rope_context(part: Config, found: Shrunken) -> None:
    key = "original_max_position_embeddings"
    places = [place for place in (*twin_config_ropes(part), part) if isinstance(place.get(key), int)]
    if not places or places[0][key] <= _ROPE_CONTEXT:
        return
    size = int(places[0][key])
    found.rope_context = (_ROPE_CONTEXT, size)
    for place in places:
        place[key] = max(1, round(place[key] * _ROPE_CONTEXT / size))
    longest = part.get("max_position_embeddings")
    if isinstance(longest, int):
        part["max_position_embeddings"] = max(_ROPE_CONTEXT, round(longest * _ROPE_CONTEXT / size))
