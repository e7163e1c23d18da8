"""A file that is not what its name says, because the rows of the model do not fit the blocks of its type."""

from typing import Annotated, Final

from pydantic import Field

from quantyard.formatting.numbers import format_bits_per_weight, format_percent
from quantyard.protocol.base import Frozen

_Name = Annotated[str, Field(max_length=40)]
SAME_BITS: Final = 1.02  # times as many bits per weight count as the same


class NarrowRows(Frozen):
    """What llama.cpp takes in place of a type whose blocks do not divide the rows.

    Attributes:
        quant: the name of the file's type.
        named: the tensor type that it is named after.
        block: weights in a block of that type.
        share: of the quantized weights, those that have the type or another of such blocks, 0 to 1.
        types: what the file holds, the most frequent first.
        bits_per_weight: of the whole file.
        instead: a quant whose name is true on this model; "" if it is not known.
        instead_bits_per_weight: of the file that it would make; 0 if it is not known.
    """

    quant: _Name
    named: _Name
    block: Annotated[int, Field(ge=1, le=1_000_000)]
    share: Annotated[float, Field(ge=0, le=1)]
    types: Annotated[tuple[_Name, ...], Field(max_length=100)]
    bits_per_weight: Annotated[float, Field(ge=0, le=1024)]
    instead: _Name = ""
    instead_bits_per_weight: Annotated[float, Field(ge=0, le=1024)] = 0.0

    @property
    def advice(self) -> str:
        """What to take instead: "QUANT=IQ4_NL is what its name says, with 5.29 bits per weight"; "" if not known."""
        if not self.instead:
            return ""
        if self.instead_bits_per_weight and self.instead_bits_per_weight * SAME_BITS < self.bits_per_weight:
            bits = format_bits_per_weight(self.instead_bits_per_weight)
            return f"QUANT={self.instead} is what its name says, with {bits} bits per weight"
        return f"QUANT={self.instead} says what it is"

    @property
    def sentence(self) -> str:
        """All of it, in sentences."""
        some = f"Only {format_percent(self.share, 0)} of the weights of {self.quant} are {self.named} or its kind"
        head = some if self.share else f"{self.quant} holds no {self.named} tensor here"
        advice = f"; {self.advice}" if self.instead else ""
        return (
            f"{head}: {'most' if self.share else 'the'} rows of this model are not multiples of {self.block}. "
            f"It holds {', '.join(self.types)}, {format_bits_per_weight(self.bits_per_weight)} bits per weight{advice}."
        )

    @property
    def line(self) -> str:
        """In a list of such quants."""
        advice = f"; {self.advice}" if self.instead else ""
        bits = format_bits_per_weight(self.bits_per_weight)
        return f"{self.quant} has {bits} bits per weight: {', '.join(self.types)}{advice}."

    @property
    def short(self) -> str:
        """In a table: what the file holds and what to take instead."""
        instead = f"; {self.instead} has {format_bits_per_weight(self.instead_bits_per_weight)}"
        told = instead if self.instead_bits_per_weight * SAME_BITS < self.bits_per_weight and self.instead else ""
        return (
            f"{format_bits_per_weight(self.bits_per_weight)} bits per weight, since rows are not multiples of "
            f"{self.block}{told}"
        )
