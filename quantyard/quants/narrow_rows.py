"""K-quants and most IQ types hold their weights in blocks of 256, most others in blocks of 32. Where the rows of a
model are not whole blocks, llama-quantize takes another type, and the file is not what its name says.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Final

from quantyard.errors import BadRequest
from quantyard.formats.ggml_types import FALLBACKS, TYPE_BY_NAME
from quantyard.protocol.narrow_rows import SAME_BITS, NarrowRows
from quantyard.quants.catalog import QUANTS, UNQUANTIZED, Quant, find_quant
from quantyard.quants.tensor_types import BASE_TYPES

_MOSTLY: Final = 0.5
_KEPT: Final = ("F32", "BF16")  # of tensors that are never quantized
_NO_FIT: Final = "F16"  # what llama-quantize takes where no block divides the rows
# Quants of narrow blocks, to take in place of another: those with more bits first, of equal ones the better first.
_NARROW: Final = ("Q8_0", "Q5_1", "Q5_0", "IQ4_NL", "Q4_0")
_AS_SMALL: Final = 0.1  # bits per weight that a name may promise more and still be of the same size
# A quant → tensor type → how many weights of its file on this model have it; empty: not known.
TypesOf = Callable[[Quant], Mapping[str, int]]


def find_narrow_rows(quant: Quant, types_of: TypesOf) -> NarrowRows | None:
    """What this quant turns into on a model, and what to build instead; None where most weights are what it says.

    Raises:
        BadRequest: llama-quantize would refuse the quant for the model's rows.
    """
    counts = types_of(quant)
    found = narrow_rows_of_counts(quant, counts, type_counts_bits(counts))
    if found is None:
        return None
    name, bits = _quant_instead_of_narrow(quant, found, types_of) or (found.instead, 0.0)
    return found.model_copy(update={"instead": name, "instead_bits_per_weight": bits})


def narrow_rows_of_counts(
    quant: Quant, counts: Mapping[str, int], bits_per_weight: float, *, by_weight: bool = True
) -> NarrowRows | None:
    """The same from what a file holds, with a quant to take whose bits are not known.

    Args:
        counts: tensor type → how many weights of the file have it; empty: not known.
        bits_per_weight: of the whole file.
        by_weight: whether weights are counted; if tensors are, only a file without such a type is told.
    """
    base = BASE_TYPES.get(quant.name, quant.name)
    held = {name: n for name, n in counts.items() if n and name not in _KEPT}
    row = TYPE_BY_NAME.get(base)
    if quant.recipe is not None or not held or row is None or base in UNQUANTIZED:
        return None
    like = sum(n for name, n in held.items() if _is_type_of_such_blocks(name, row.block_size))
    share = like / sum(held.values())
    if share > (_MOSTLY if by_weight else 0):
        return None
    taken = _NO_FIT if max(held, key=lambda name: held[name]) == _NO_FIT else FALLBACKS.get(base, "")
    return NarrowRows(
        quant=quant.name, named=base, block=row.block_size, share=share,
        types=tuple(sorted(held, key=lambda name: -held[name])), bits_per_weight=bits_per_weight,
        instead=taken if any(other.name == taken for other in QUANTS) else "",
    )  # fmt: skip


def type_counts_bits(counts: Mapping[str, int]) -> float:
    """Bits per weight of a file whose tensor types have this many weights."""
    return sum(n * TYPE_BY_NAME[name].bits_per_weight for name, n in counts.items()) / max(1, sum(counts.values()))


def _quant_instead_of_narrow(quant: Quant, found: NarrowRows, types_of: TypesOf) -> tuple[str, float] | None:
    """A quant of the promised size whose name is true on this model, and its bits per weight; None without one."""
    if found.instead == _NO_FIT:
        return _NO_FIT, type_counts_bits(types_of(find_quant(_NO_FIT)))
    most = found.bits_per_weight * SAME_BITS
    true = [(name, bits) for name in _NARROW if (bits := _true_bits_of_quant(name, types_of)) <= most]
    promised = [one for one in true if find_quant(one[0]).bits_per_weight <= quant.bits_per_weight + _AS_SMALL]
    held = [one for one in true if one[0] == found.instead]
    return next(iter(promised or held or true[-1:]), None)


def _true_bits_of_quant(name: str, types_of: TypesOf) -> float:
    """Bits per weight of a quant on this model; infinite where its name is not true."""
    quant = find_quant(name)
    try:
        counts = types_of(quant)
    except BadRequest:
        return float("inf")
    is_true = counts and narrow_rows_of_counts(quant, counts, 0.0) is None
    return type_counts_bits(counts) if is_true else float("inf")


def _is_type_of_such_blocks(name: str, block: int) -> bool:
    """Whether a type is of such blocks: of 256, or for a narrow one any that is quantized."""
    row = TYPE_BY_NAME.get(name)
    if row is None or name == _NO_FIT:
        return False
    return row.block_size == block if block > 32 else row.is_quantized
