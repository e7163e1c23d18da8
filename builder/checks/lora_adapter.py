"""What an adapter in PEFT format says of itself, and whether a GGUF can say the same.

llama.cpp knows pairs of matrices with one alpha for all: output += B·A·x · alpha / rank. An adapter that is more than
that is refused, since the converter would leave the rest out or scale it wrongly, mostly without a word.

Sources: PEFT's LoraConfig and save format; convert_lora_to_gguf.py and llama-adapter.cpp of llama.cpp.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NoReturn

from pydantic import BaseModel, ConfigDict, ValidationError

from quantyard.protocol.base import ExitCode, Frozen
from quantyard.protocol.runner import StageFailure

_CONFIG: Final = "adapter_config.json"
_MAX_CONFIG_BYTES: Final = 4 * 1024 * 1024
_MAX_NAMED: Final = 3
MERGE: Final = "Merge it into its base model (PEFT's merge_and_unload) and build that: make build MODEL=folder"

# To refuse one more thing that a GGUF cannot hold: add the key of adapter_config.json, and what it does.
_CANNOT_BE_HELD: Final[Mapping[str, str]] = {
    "use_dora": "DoRA scales every output by a learned magnitude",
    "use_rslora": "rsLoRA divides alpha by the root of the rank, llama.cpp by the rank",
    "use_qalora": "QA-LoRA pools its input before the first matrix",
    "alpha_pattern": "some modules have an alpha of their own, and a GGUF holds one for all",
    "modules_to_save": "whole layers were trained beside the low-rank ones",
    "trainable_token_indices": "rows of the embeddings were trained beside the low-rank matrices",
    "target_parameters": "it adapts bare parameters, not modules",
    "layer_replication": "it repeats layers of the base model",
    "fan_in_fan_out": "its base model stores weights the other way round, and the converter does not turn the pairs",
}
# To let one more start of training pass: add it, if it leaves the weights of the base model as they are.
_STARTS_THAT_KEEP_THE_BASE: Final = (None, True, False, "gaussian", "eva", "orthogonal")
_TENSOR: Final = re.compile(
    r"^(?:base_model\.model\.)?(?P<module>.+)\.lora_(?:(?P<side>[AB])\.weight|embedding_(?P<rows>[AB]))$", re.DOTALL
)
_WRAPPERS: Final = ("model", "language_model")
_UNTRAINED: Final = ".base_layer.weight"  # a copy of the base's own, which the converter skips


class AdapterConfig(BaseModel):
    """The part of adapter_config.json that decides; whatever else PEFT writes is let pass."""

    model_config = ConfigDict(frozen=True, extra="allow")
    peft_type: str = ""
    lora_alpha: float = 0
    base_model_name_or_path: str | None = None
    init_lora_weights: bool | str | None = None


class BaseSide(Frozen):
    """What `lora_base.py` says. `shapes`: outermost dimension first; where there are none, why."""

    model_class: str
    architecture: str  # llama.cpp's name for it; "": it has none
    shapes: dict[str, tuple[int, ...]]
    why_no_shapes: str
    ties_embeddings: bool  # one matrix is both the token embeddings and the output
    versions: dict[str, str]  # of what the converter runs on
    pickle: dict[str, tuple[int, ...]]  # of the adapter's own pickle file, where that is what there is


@dataclass(frozen=True)
class LoraPair:
    """The two matrices of one module: A is [rank, in], B is [out, rank]; of embeddings "in" are the tokens."""

    a: tuple[int, ...]
    b: tuple[int, ...]
    is_embedding: bool = False

    @property
    def rank(self) -> int:
        """What they have in common."""
        return self.a[0]

    @property
    def weight_shape(self) -> tuple[int, ...]:
        """The shape of the weight that they change."""
        return (self.a[1], self.b[0]) if self.is_embedding else (self.b[0], self.a[1])


@dataclass(frozen=True)
class LoraAdapter:
    """One adapter: its configuration, and its pairs by the name of their module."""

    config: AdapterConfig
    pairs: Mapping[str, LoraPair]


def read_lora_config(folder: Path) -> AdapterConfig:
    """The adapter's configuration, if a GGUF can hold what it describes.

    Raises:
        StageFailure: 2, it cannot be read, or it cannot be held.
    """
    path = folder / _CONFIG
    if not path.is_file() or path.stat().st_size > _MAX_CONFIG_BYTES:
        raise _refused_adapter(
            "no-adapter-config", f"The adapter has no {_CONFIG} of a sane size.", "Save it again with PEFT."
        )
    try:
        config = AdapterConfig.model_validate_json(path.read_bytes())
    except ValidationError as error:
        message = f"{_CONFIG} is not what PEFT writes: {error}"
        raise _refused_adapter("bad-adapter-config", message, "Save or download the adapter again.") from error
    _refuse_unrepresentable_adapter(config)
    return config


def _refuse_unrepresentable_adapter(config: AdapterConfig) -> None:
    if config.peft_type != "LORA":
        message = f"peft_type is {config.peft_type!r}, and llama.cpp knows LORA alone."
        raise _refused_adapter("adapter-kind", message, MERGE)
    for key, what in _CANNOT_BE_HELD.items():
        if value := (config.model_extra or {}).get(key):
            raise _refused_adapter(
                "adapter-kind", f"A GGUF cannot hold this adapter: {what} ({key}={value!r:.80}).", MERGE
            )
    if config.init_lora_weights not in _STARTS_THAT_KEEP_THE_BASE:
        message = f"Its training began by changing the base model (init_lora_weights={config.init_lora_weights!r})."
        hint = "Save it with PEFT's path_initial_model_for_weight_conversion, which makes a plain LoRA of it."
        raise _refused_adapter("adapter-kind", message, hint)
    if not math.isfinite(config.lora_alpha) or config.lora_alpha == 0:  # llama.cpp takes 0 as "do not scale"
        message = f"lora_alpha is {config.lora_alpha}, which scales nothing."
        raise _refused_adapter("bad-adapter-config", message, f"Look at {_CONFIG}: what was it trained with?")


def lora_pairs(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, LoraPair]:
    """Group an adapter's tensors by module.

    Raises:
        StageFailure: 2, a tensor is neither lora_A nor lora_B, is alone, or does not fit the other of its pair.
    """
    sides: dict[str, dict[str, tuple[int, ...]]] = {}
    embeddings = set()
    for name, shape in shapes.items():
        if name.endswith(_UNTRAINED):
            continue
        match = _TENSOR.match(name) or _refuse_adapter_tensor(name)
        sides.setdefault(match["module"], {})[match["side"] or match["rows"]] = shape
        if match["rows"]:
            embeddings.add(match["module"])
    if not sides:
        raise _refused_adapter(
            "adapter-tensors", "The adapter holds no tensors.", "Save or download the adapter again."
        )
    return {module: _lora_pair(module, both, module in embeddings) for module, both in sides.items()}


def _refuse_adapter_tensor(name: str) -> NoReturn:
    message = f"A GGUF cannot hold this adapter: {name} is neither a lora_A nor a lora_B."
    raise _refused_adapter("adapter-tensors", message, MERGE)


def _lora_pair(module: str, both: Mapping[str, tuple[int, ...]], is_embedding: bool) -> LoraPair:
    a, b = both.get("A", ()), both.get("B", ())
    if len(a) != 2 or len(b) != 2 or a[0] != b[1] or not math.prod(a + b):
        message = f"The matrices of {module} do not form a pair: lora_A has the shape {list(a)}, lora_B {list(b)}."
        hint = "A is [rank, in] and B [out, rank]: save or download the adapter again; convolutions are not supported."
        raise _refused_adapter("adapter-tensors", message, hint)
    return LoraPair(a, b, is_embedding)


def check_lora_fit(pairs: Mapping[str, LoraPair], base: BaseSide) -> None:
    """Whether every pair has its place in the base model, as far as its shapes are known.

    Experts are left to the converter: transformers 5 keeps all of a layer in one tensor, adapters have one each.

    Raises:
        StageFailure: 2, the base is another model than the adapter was trained on.
    """
    if not base.shapes:
        return
    hint = "BASE must be the model it was trained on: make lora ADAPTER=… BASE=org/name"
    shapes = {_unwrapped_lora_name(name): shape for name, shape in base.shapes.items()}
    placed = {
        module: shapes.get(_unwrapped_lora_name(f"{module}.weight")) for module in pairs if ".experts." not in module
    }
    if strange := [module for module, shape in placed.items() if shape is None]:
        message = f"BASE, a {base.model_class}, has no {_some_lora_names(strange)}, which the adapter changes."
        raise _refused_adapter("adapter-base", message, hint)
    wrong = [module for module, shape in placed.items() if pairs[module].weight_shape != shape]
    if wrong:
        made, have = pairs[wrong[0]].weight_shape, placed[wrong[0]] or ()
        message = (
            f"Another shape: of {_some_lora_names(wrong)} the adapter is made for {list(made)}, BASE has {list(have)}."
        )
        raise _refused_adapter("adapter-base", message, hint)
    if base.ties_embeddings:
        _refuse_tied(pairs)


def _refuse_tied(pairs: Mapping[str, LoraPair]) -> None:
    """llama.cpp would take a pair of the one matrix for both of its uses, and abort."""
    tied = [m for m, pair in pairs.items() if pair.is_embedding or m.rpartition(".")[2] == "lm_head"]
    if tied:
        message = (
            f"The adapter changes {_some_lora_names(tied)}, and BASE has one matrix for token embeddings and output."
        )
        raise _refused_adapter("adapter-kind", f"{message} llama.cpp cannot change the one and not the other.", MERGE)


def _unwrapped_lora_name(name: str) -> str:
    """A name without the wrappers that transformers has moved about between its releases."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _some_lora_names(names: list[str]) -> str:
    more = len(names) - _MAX_NAMED
    return ", ".join(names[:_MAX_NAMED]) + (f" and {more} more" if more > 0 else "")


def _refused_adapter(kind: str, message: str, hint: str) -> StageFailure:
    return StageFailure(ExitCode.BAD_REQUEST, kind, message, hint)
