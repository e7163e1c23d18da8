"""Differences between Transformers and llama.cpp whose cause is known, so that a twin that differs can say why.

Each names the change of config.json that makes both sides equal. If the twin of the changed config is equal, that is
the cause, and nothing else differs. An accepted one is a small difference that is recorded; the others stop a build.
One without a change is of the class itself: both sides were equal once Transformers' code was changed as it says.

To add one: add a row, with a test that the twin of such a model finds it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final

Config = dict[str, Any]


@dataclass(frozen=True)
class KnownDifference:
    """One cause. `sentence` is whole; `hint` says what to type next."""

    applies: Callable[[Config], bool]
    change: Callable[[Config], None] | None
    sentence: str
    hint: str = ""
    accepted: bool = False

    def neutral(self, config: Config) -> Config | None:
        """The config without the cause; None: no config is without it."""
        if self.change is None:
            return None
        changed = copy.deepcopy(config)
        self.change(changed)
        return changed


def known_differences(config: Config) -> Iterator[KnownDifference]:
    """Those that this config may meet."""
    yield from (known for known in _KNOWN if known.applies(config))


def ignores_window(config: Config) -> bool:
    """Whether llama.cpp is known to read no sliding window of this kind of model: it attends to all that came before.
    A twin that is wrong from the window on needs no second look then.
    """
    return _twin_class(config) in _NO_WINDOW


def _twin_class(config: Config) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, list) and names else ""


def _twin_rope_config(config: Config) -> Config:
    for name in ("rope_scaling", "rope_parameters"):
        value = config.get(name)
        if isinstance(value, dict):
            return value
    return {}


_NO_WINDOW: Final = frozenset({"MistralForCausalLM", "Starcoder2ForCausalLM", "Phi3ForCausalLM", "Qwen2ForCausalLM"})
_KNOWN: Final = (
    KnownDifference(
        applies=lambda config: _twin_class(config) == "DeepseekV3ForCausalLM" and "scoring_func" not in config,
        change=lambda config: config.update(scoring_func="sigmoid"),
        sentence="config.json says no scoring_func, and llama.cpp takes softmax where the model has sigmoid.",
        hint='Write "scoring_func": "sigmoid" into config.json of a local copy, and build that folder.',
    ),
    KnownDifference(
        applies=lambda config: _twin_class(config) == "T5ForConditionalGeneration"
        and config.get("tie_word_embeddings", True) is not False,
        change=lambda config: config.update(tie_word_embeddings=False),
        sentence="the embeddings are tied, as in T5 1.0, and llama.cpp leaves out the scale of the logits: they are "
        "too large by the square root of d_model.",
        hint="Take T5 1.1 or FLAN-T5, whose embeddings are not tied.",
    ),
    KnownDifference(
        applies=lambda config: _twin_rope_config(config).get("truncate") is False,
        change=lambda config: _twin_rope_config(config).update(truncate=True),
        sentence="llama.cpp rounds the limits of YaRN's ramp to whole dimensions, the model does not.",
        accepted=True,
    ),
    KnownDifference(
        applies=lambda config: _twin_class(config) == "DbrxForCausalLM" and isinstance(config.get("attn_config"), dict),
        change=lambda config: config["attn_config"].update(rope_theta=10_000.0),
        sentence="Transformers 5 does not read rope_theta in attn_config; llama.cpp does.",
        accepted=True,
    ),
    KnownDifference(
        applies=lambda config: _twin_class(config) == "PhiMoEForCausalLM",
        change=None,
        sentence="llama.cpp takes RMSNorm where the model has LayerNorm, weighs the two experts by softmax where it "
        "has SparseMixer (each weighs about 1), and scales the rope by a formula of its own where config.json says "
        "long_mscale and short_mscale. Transformers 5, for its part, never takes the model's long_factor.",
        hint="No llama.cpp that is known computes it. Phi-4-mini is computed right.",
    ),
)  # fmt: skip
