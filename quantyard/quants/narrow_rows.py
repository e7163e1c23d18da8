"""K-quants and most IQ types hold their weights in blocks of 256. Where the rows of a model are not whole blocks,
llama-quantize takes another type, and the file is not what its name says.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from quantyard.formats.ggml_types import FALLBACKS, TYPE_BY_NAME
from quantyard.formatting.numbers import format_bits_per_weight, format_percent
from quantyard.quants.catalog import QUANTS, UNQUANTIZED, Quant
from quantyard.quants.tensor_types import BASE_TYPES

_BLOCK: Final = 256  # weights
_MOSTLY: Final = 0.5


def narrow_rows_note(quant: Quant, counts: Mapping[str, int], bits_per_weight: float, *, by_weight: bool = True) -> str:
    """That few or no weights have a type in blocks of 256, though the quant is named after one; what is held, and
    what to build instead. "" where most have.

    Args:
        counts: tensor type → how many weights of the file have it; empty: not known.
        bits_per_weight: of the whole file.
        by_weight: whether weights are counted; if tensors are, only a file without such a type is told.
    """
    base = BASE_TYPES.get(quant.name, quant.name)
    held = {name: n for name, n in counts.items() if n and name not in UNQUANTIZED}
    if quant.recipe is not None or not held or not _is_wide(base):
        return ""
    share = sum(n for name, n in held.items() if _is_wide(name)) / sum(held.values())
    if share > (_MOSTLY if by_weight else 0):
        return ""
    taken, types = FALLBACKS.get(base, ""), ", ".join(sorted(held, key=lambda name: -held[name]))
    head = f"{quant.name} holds no {base} tensor here" if not share else (
        f"{quant.name} is {base} and its kind in {format_percent(share, 0)} of its quantized weights alone"
    )
    instead = f"; QUANT={taken} says what it is" if any(other.name == taken for other in QUANTS) else ""
    return (
        f"{head}: {'the' if not share else 'most'} rows of this model are not multiples of {_BLOCK}. "
        f"It holds {types}, {format_bits_per_weight(bits_per_weight)} bits per weight{instead}."
    )


def _is_wide(name: str) -> bool:
    """Whether the type holds its weights in blocks of 256."""
    row = TYPE_BY_NAME.get(name)
    return row is not None and row.block_size == _BLOCK
