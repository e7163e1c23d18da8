"""Exact sizes of files that are not made yet, from the header of one that exists."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress

from quantyard.errors import BadRequest
from quantyard.formats.ggml_types import TYPE_BY_NAME
from quantyard.formats.gguf import GgufHeader, TensorInfo
from quantyard.formats.tensor_patterns import (
    EMBEDDING,
    OUTPUT,
    PatternProblem,
    may_change_tensor_type,
    resolve_tensor_patterns,
    tensor_name_parts,
    tensor_type_for_row,
)
from quantyard.quants.catalog import QUANTS, Quant, find_quant, is_unquantized_type
from quantyard.quants.tensor_types import TensorPlace, quant_tensor_type
from quantyard.records import dataclass

_CATEGORIES = {
    "attn_q": "q", "attn_k": "k", "attn_v": "v", "attn_qkv": "v", "attn_kv_b": "v", "attn_output": "attn_out",
    "ffn_gate": "gate", "ffn_up": "up", "ffn_down": "down", EMBEDDING: "embed", OUTPUT: "output",
}  # fmt: skip
# Made for models trained in few bits; compared with these types, any mix would look good.
_NO_YARDSTICK = ("MXFP4_MOE", "TQ1_0", "TQ2_0", "Q1_0", "Q2_0")


@dataclass(frozen=True)
class Sizes:
    """`made` is any file of the model, made without a matrix: all of them have the same header."""

    made: GgufHeader

    def of_tensor(self, tensor: TensorInfo, wanted: str) -> int:
        """Bytes of a tensor at a type, padded as in the file."""
        kind = TYPE_BY_NAME[tensor_type_for_row(wanted, tensor.shape[0])]
        return self._padded(tensor.n_params // kind.block_size * kind.type_size_bytes)

    def of_file(self, types: Mapping[str, str]) -> int:
        """Bytes of a file whose tensors have these types, by name; the others keep their types in `made`."""
        each = (
            self.of_tensor(t, types[t.name]) if t.name in types else self._padded(t.size_bytes)
            for t in self.made.tensors
        )
        return self.made.data_offset + sum(each)

    def stock(self, quant: Quant) -> int:
        """Bytes of the file that llama-quantize makes of this type.

        Raises:
            BadRequest: llama-quantize would refuse the model's rows.
        """
        return self.of_file(self.stock_types(quant))

    def stock_types(self, quant: Quant) -> dict[str, str]:
        """The types that llama-quantize gives the tensors which it changes, by name. Raises as `stock`."""
        return {t.name: kind for t, kind in self._stock_types(quant)}

    def _stock_types(self, quant: Quant) -> list[tuple[TensorInfo, str]]:
        tensors = [tensor for tensor in self.made.tensors if may_change_tensor_type(tensor)]
        counts: dict[str, int] = {}
        n_of = {c: sum(self._category(t) == c for t in tensors) for c in set(_CATEGORIES.values())}
        found = []
        for tensor in sorted(tensors, key=lambda t: (tensor_name_parts(t.name)[0] or 0)):
            category = self._category(tensor)
            place = self._place(counts.get(category, 0), n_of.get(category, 1), tensor, imatrix=quant.needs_imatrix)
            counts[category] = counts.get(category, 0) + 1
            found.append((tensor, quant_tensor_type(quant, category, tensor.shape[0], place)))
        return found

    def _category(self, tensor: TensorInfo) -> str:
        kind = tensor_name_parts(tensor.name)[1].removesuffix("_exps").removesuffix("_shexp")
        is_tied = kind == EMBEDDING and all(t.name != f"{OUTPUT}.weight" for t in self.made.tensors)
        return "output" if is_tied else _CATEGORIES.get(kind, "other")

    def _place(self, i: int, n: int, tensor: TensorInfo, *, imatrix: bool) -> TensorPlace:
        architecture = self.made.architecture
        heads, kv_heads = self._number("attention.head_count"), self._number("attention.head_count_kv")
        return TensorPlace(
            i=i, n=n, gqa=heads / kv_heads if heads and kv_heads else 1.0, experts=self._number("expert_count"),
            is_expert="_exps" in tensor.name, falcon=architecture == "falcon",
            seventy_b=architecture == "llama" and self._number("block_count") == 80 and heads != kv_heads,
            imatrix=imatrix,
        )

    def _number(self, key: str) -> int:
        value = self.made.metadata.get(f"{self.made.architecture}.{key}")
        return value if isinstance(value, int) else 0

    def _padded(self, size_bytes: int) -> int:
        return -(-size_bytes // self.made.alignment) * self.made.alignment


def gguf_quant_types(header: GgufHeader, quant: Quant) -> dict[str, str]:
    """The type of every tensor of a GGUF of this quant, made of the one with this header.

    Raises:
        BadRequest: llama-quantize would refuse the model's rows.
    """
    types = {tensor.name: tensor.type.name for tensor in header.tensors}
    if quant.name == "COPY" or (quant.recipe is None and header.file_type == quant.ftype):
        return types
    types |= Sizes(header).stock_types(find_quant(quant.base))
    if recipe := quant.recipe:
        with suppress(PatternProblem):  # the stage says what is wrong with the recipe
            types |= resolve_tensor_patterns(header.tensors, recipe.tensors, recipe.output, recipe.token_embedding)
    return types


def gguf_quant_bytes(header: GgufHeader, quant: Quant) -> int:
    """The size of that GGUF in bytes. Raises as `gguf_quant_types`."""
    return Sizes(header).of_file(gguf_quant_types(header, quant))


def gguf_type_counts(header: GgufHeader, quant: Quant) -> Counter[str]:
    """Tensor type → how many weights of that GGUF have it. Raises as `gguf_quant_types`."""
    counts: Counter[str] = Counter()
    types = gguf_quant_types(header, quant)
    for tensor in header.tensors:
        counts[types[tensor.name]] += tensor.n_params
    return counts


def stock_quant_sizes(sizes: Sizes) -> dict[str, int]:
    """The size of each stock quant that a mix can be compared with, without a matrix."""
    found = {}
    for quant in QUANTS:
        if quant.alias_of or quant.needs_imatrix or is_unquantized_type(quant.name) or quant.name in _NO_YARDSTICK:
            continue
        try:
            found[quant.name] = sizes.stock(quant)
        except BadRequest:  # the type does not fit the model's rows
            continue
    return found


def nearest_stock_quant(stock: Mapping[str, int], size_bytes: int) -> str | None:
    """The largest stock quant up to this size; of equal ones the last, which is the newer format."""
    fitting = [name for name, size in stock.items() if size <= size_bytes]
    return max(fitting, key=lambda name: stock[name], default=None)
