"""A model to build from: its files, its commit, and the facts that a plan needs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import field
from functools import cached_property
from typing import Literal

from quantyard.formats.gguf import GgufHeader
from quantyard.formats.quantized_weights import WeightQuantization
from quantyard.memory.from_config import kv_cache_bytes
from quantyard.memory.kv_cache import ContextUse, context_cache_bytes
from quantyard.memory.layers import ModelLayers
from quantyard.protocol.base import FileEntry
from quantyard.protocol.builder import OutType
from quantyard.quants.catalog import QUANTS, UNQUANTIZED, Quant, find_quant
from quantyard.quants.exact_sizes import gguf_quant_bytes, gguf_type_counts
from quantyard.quants.file_size import (
    SizedModel,
    TensorShape,
    quant_gguf_bytes,
    quant_main_type,
    quant_outtype_for,
    quant_rough_bytes,
    quant_type_counts,
    sized_model,
)
from quantyard.quants.model_config import TRAINED, model_config_number, model_text_config
from quantyard.records import dataclass
from quantyard.sources.presets import Preset
from quantyard.sources.projector import text_model_tensors
from quantyard.sources.purpose import ModelUse
from quantyard.store.artifact import Artifact, ModelId
from quantyard.store.manifest import SourceCard


@dataclass(frozen=True)
class Source:
    """A model to build from. Sizes are in bytes."""

    model: ModelId
    kind: Literal["huggingface", "gguf"]
    title: str
    files: tuple[FileEntry, ...]
    repo_id: str = ""
    revision: str = ""
    license: str | None = None
    local: Artifact | None = None
    gguf_file: str | None = None
    gguf: GgufHeader | None = None
    cache_layers: ModelLayers | None = None  # of a GGUF, where its architecture is known
    dtypes: Mapping[str, int] = field(default_factory=dict)  # dtype → number of weights
    tensors: tuple[TensorShape, ...] | None = None
    config: Mapping[str, object] = field(default_factory=dict)
    card: SourceCard = field(default_factory=SourceCard)
    quantization: WeightQuantization | None = None  # of Hugging Face weights
    base_model: str = ""  # that it was made from, by its card
    preset: Preset | None = None  # if it was named by a preset
    notes: tuple[str, ...] = ()  # what the plan says of it, a sentence each
    has_chat_template: bool | None = None  # None: not known before it is here
    use: ModelUse = field(default_factory=ModelUse)
    # Counted once for each quant: plan, size and manifest ask for the same.
    _type_counts: dict[Quant, Mapping[str, int]] = field(default_factory=dict, init=False, repr=False, compare=False)

    @property
    def size_bytes(self) -> int:
        """Size of the files that are downloaded, or read in place."""
        return sum(f.size_bytes for f in self.files)

    @property
    def n_params(self) -> int:
        """Number of weights; from the file sizes (two bytes each) where nothing better is known."""
        if self.gguf is not None:
            return self.gguf.n_params
        return sum(self.dtypes.values()) or self.size_bytes // 2

    @property
    def named_quant(self) -> Quant | None:
        """The quant that the file name of a GGUF on the Hub claims; `verify` checks it later."""
        words = re.split(r"[^A-Z0-9_]+", (self.gguf_file or "").upper())
        return next((quant for quant in QUANTS if quant.name in words), None)

    @property
    def is_quantized(self) -> bool:
        """Whether its weights are quantized, as far as that can be known without downloading it."""
        if self.kind == "huggingface":
            return self.quantization is not None
        if self.gguf is not None:
            return self.gguf.is_quantized
        return self.named_quant is not None and self.named_quant.name not in UNQUANTIZED

    @property
    def text_tensors(self) -> tuple[TensorShape, ...] | None:
        """The tensors of the text model; None where they are not known."""
        return None if self.tensors is None else text_model_tensors(self.config, self.tensors)

    def outtype(self, asked: OutType) -> tuple[OutType, str]:
        """The type to convert to, and why. `auto` if only the conversion can tell."""
        if asked != "auto":
            return asked, "asked for"
        if not self.dtypes:
            return "auto", "decided by the weights' own type when they are here"
        outtype, reason = quant_outtype_for(self.dtypes)
        if self.quantization is None:
            return outtype, reason
        what = f"the {self.quantization.title} weights are"
        kept = f"{what} kept, and the others"
        return outtype, f"{kept} are 16 bit" if self.quantization.kept else f"{what} unpacked and rounded to 16 bit"

    def keeps(self, quant: Quant) -> bool:
        """Whether this quant leaves the quantized weights of the source as they are, or as they are unpacked."""
        if quant.name == "COPY":
            return True
        if self.gguf is not None:
            held = {tensor.type.name for tensor in self.gguf.tensors if tensor.type.is_quantized}
            return quant.name == "MXFP4_MOE" and held == {"MXFP4"}
        if self.quantization is None:
            return False
        kept = self.quantization.kept
        return quant.name == "MXFP4_MOE" if kept == "MXFP4" else not kept and quant.name in UNQUANTIZED

    def is_already(self, quant: Quant, outtype: OutType) -> bool:
        """Whether the conversion, or the GGUF itself, has this quant already, so that quantizing is not needed."""
        if quant.recipe is not None:
            return False
        if self.kind == "gguf" and (quant.name == "COPY" or sum(f.path.endswith(".gguf") for f in self.files) > 1):
            return False  # shards are joined
        if self.gguf is not None:
            return self.gguf.file_type == quant.ftype
        if self.gguf_file:
            return self.named_quant == quant
        return self.kind == "huggingface" and outtype == quant.name.lower()

    def converted_size_bytes(self, outtype: OutType) -> int:
        """Expected size of the conversion."""
        return self.quant_size_bytes(find_quant("BF16" if outtype == "auto" else outtype))

    def quant_size_bytes(self, quant: Quant) -> int:
        """Expected size of a GGUF of this quant."""
        if self.gguf is not None:
            return gguf_quant_bytes(self.gguf, quant)
        if self._sized is not None:
            return quant_gguf_bytes(self._sized, quant)
        return quant_rough_bytes(self.n_params, quant)

    def main_type(self, quant: Quant) -> str:
        """The tensor type that most of its weights have in a GGUF of this quant; "" where their shapes are unknown."""
        if self.gguf is not None:
            return gguf_type_counts(self.gguf, quant).most_common(1)[0][0]
        return quant_main_type(self._sized, quant) if self._sized and self.text_tensors else ""

    def type_counts(self, quant: Quant) -> Mapping[str, int]:
        """Tensor type → how many weights of a GGUF of this quant have it; empty where the shapes are unknown."""
        if quant not in self._type_counts:
            self._type_counts[quant] = self._count_types(quant)
        return self._type_counts[quant]

    def _count_types(self, quant: Quant) -> Mapping[str, int]:
        if self.gguf is not None:
            return gguf_type_counts(self.gguf, quant)
        return quant_type_counts(self._sized, quant) if self._sized and self.text_tensors else {}

    @cached_property
    def _sized(self) -> SizedModel | None:
        """What decides the sizes of its files; None where the tensors are not known."""
        return None if self.text_tensors is None else sized_model(self.text_tensors, self.config)

    @property
    def trained_tokens(self) -> int | None:
        """The longest context that the model was trained for; None where it is not known."""
        if self.gguf is not None:
            return self.gguf.context_length
        return model_config_number(model_text_config(self.config), *TRAINED)

    def kv_cache_bytes(self, context_tokens: int) -> int | None:
        """Size of the KV cache at this context; None if the configuration does not tell."""
        if self.cache_layers is not None:
            return context_cache_bytes(self.cache_layers, ContextUse(context_tokens))
        return None if self.gguf is not None else kv_cache_bytes(self.config, context_tokens)
