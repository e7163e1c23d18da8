"""Which models decode alike: a time of one architecture says little about another.

Weights are converted and quantized alike whatever they are of, so only stages that decode are told apart.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Final

from quantyard.forecast.work import ForecastWork
from quantyard.quants.model_config import model_config_number, model_text_config
from quantyard.sources.architectures import source_architecture
from quantyard.sources.source import Source

_DECODES: Final = frozenset({
    "calibrate", "evaluate", "divergence", "domains", "behaviour", "speed", "cache", "openvino", "contract",
})  # fmt: skip
# What a class of Transformers adds to the name: LlamaForCausalLM is llama.
_CLASS_ENDS: Final = re.compile(r"(text)?(for\w+|lmheadmodel|model)$")
# Keys of config.json, or their beginnings, of recurrent and hybrid models.
_STATE_KEYS: Final = ("mamba_", "ssm_", "state_size", "attn_layer_", "hybrid_override_pattern", "conv_L_cache", "rwkv_",
                      "linear_num_", "lru_width")  # fmt: skip
WINDOW, STATES, CELLS = "window", "states", "cells"
SAME_MEMORY: Final = 2.0  # how much longer a stage may take than a time of another architecture says
# … with another memory: Gemma 3's suite `smoke` took five times what those of models without a window said.
OTHER_MEMORY: Final = 5.0


def work_of_source(work: ForecastWork, source: Source) -> ForecastWork:
    """The work with the architecture that decodes, where it decodes."""
    if work.kind not in _DECODES:
        return work
    if source.gguf is not None:
        layers = source.cache_layers
        memory = "" if layers is None else STATES if any(layer.recurrent for layer in layers.layers) else (
            WINDOW if any(layer.windowed for layer in layers.layers) else CELLS
        )
        return replace(work, architecture=plain_architecture(source.gguf.architecture), memory=memory)
    name = source_architecture(source.config)
    return replace(work, architecture=plain_architecture(name), memory=_memory_by_config(source.config) if name else "")


def work_of_architectures(work: ForecastWork, names: Sequence[str]) -> ForecastWork:
    """The work with the first of these names of its architecture, where it decodes; what memory it has is not known."""
    known = next(filter(None, map(plain_architecture, names)), "")
    return replace(work, architecture=known) if work.kind in _DECODES else work


def plain_architecture(name: str) -> str:
    """One name for a class of Transformers and for what its GGUF says: LlamaForCausalLM and llama are llama."""
    return re.sub(r"[^a-z0-9]", "", _CLASS_ENDS.sub("", name.lower()))


def most_over_forecast(work: ForecastWork, of: Sequence[ForecastWork]) -> float:
    """How many times as long the work may take as these say, which others took; 1: they are of its architecture, or
    nobody knows of which they are.
    """
    if not work.architecture:
        return 1.0
    strange = [one for one in of if one.architecture and one.architecture != work.architecture]
    same = all(one.memory == work.memory != "" for one in strange)
    return 1.0 if not strange else SAME_MEMORY if same else OTHER_MEMORY


def _memory_by_config(config: Mapping[str, object]) -> str:
    """What a sequence leaves in memory: a state, the cells of a window, or the cells of all its tokens."""
    text = model_text_config(config)
    if any(key.startswith(_STATE_KEYS) for key in text):
        return STATES
    window = model_config_number(text, "sliding_window", "attention_chunk_size")
    return WINDOW if window and text.get("use_sliding_window") is not False else CELLS
