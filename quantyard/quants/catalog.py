"""Every quantization type that llama-quantize knows, and the lookup of a user's spelling.

From llama.cpp: `tools/quantize/quantize.cpp` (names), `include/llama.h` (ids) and `src/llama-quant.cpp`
(`tensor_requires_imatrix`). `tests/docker/test_quants_table.py` compares the table with the binary of the image in use.
"""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Final

from quantyard.errors import UnknownQuant
from quantyard.formats.names import shown_name
from quantyard.records import dataclass

if TYPE_CHECKING:
    from quantyard.quants.recipe import Recipe

LIST_THEM = "List them: make quants"


@dataclass(frozen=True)
class Quant:
    """One quantization type.

    Attributes:
        name: as llama-quantize spells it.
        ftype: llama_ftype, `include/llama.h`. COPY and F32 are both 0, so recognize COPY by its name.
        bits_per_weight: of the whole file for Llama-3.1-8B: measured in llama.cpp's
            `tools/quantize/README.md`, or by `llama-quantize --dry-run` on its shapes where the README has
            no figure. Small models come out higher, since their embeddings weigh more.
        needs_imatrix: llama-quantize refuses it without an importance matrix on a usual model, because one of
            the tensor types in its mixture requires one. Tried type by type with `--dry-run`.
            A model whose rows are not a multiple of 256 may pass, with larger fallback types.
        use: when to choose it, one line.
        alias_of: the full name, for a shorthand.
        recipe: the recipe it is made by, which changes types of `base`; see `selection.quant_of_recipe`.
    """

    name: str
    ftype: int
    bits_per_weight: float
    needs_imatrix: bool
    use: str
    alias_of: str | None = None
    recipe: Recipe | None = None

    @property
    def base(self) -> str:
        """The type that llama-quantize gets: the name, or the recipe's base."""
        return self.recipe.base if self.recipe else self.name

    @property
    def uses_imatrix(self) -> bool:
        """Whether an importance matrix can change its bytes; Q8_0 and unquantized types ignore it."""
        return self.name != "Q8_0" and not is_unquantized_type(self.name)


UNQUANTIZED: Final = ("F32", "BF16", "F16")
# The label of a baseline whose type is not known before the conversion.
TYPE_UNKNOWN: Final = "unquantized"


def is_unquantized_type(name: str) -> bool:
    """Whether the weights of this quant are not rounded to blocks; COPY counts, because it keeps the source's."""
    return name in (*UNQUANTIZED, "COPY", TYPE_UNKNOWN)


# To add a family: add a row; `quant_family` derives a type's family from its name.
FAMILIES: Final = ("unquantized", "8-bit", "6-bit", "5-bit", "4-bit", "3-bit", "2-bit", "1-bit")


def quant_family(name: str) -> str:
    """The family of a quant by its name: Q4_K_M and IQ4_XS are "4-bit"; "" if the name has no known form."""
    if is_unquantized_type(name):
        return "unquantized"
    bits = re.match(r"(?:[IT]?Q|MXFP)(\d)", name)
    return f"{bits[1]}-bit" if bits else ""


PLAIN, IMATRIX = False, True  # the column needs_imatrix

# To add a quant: add a row. Largest first; a shorthand follows its full name.
QUANTS: tuple[Quant, ...] = (
    Quant("F32", 0, 32.0, PLAIN, "a lossless copy of a float32 source"),
    # COPY writes the tensors as they are, so its size is the source's; 16 stands for the usual source.
    # As a QUANT it makes sense for a GGUF source only: it joins shards, and takes an already quantized
    # file through verify without requantizing. After a conversion it repeats the converted file.
    Quant("COPY", 0, 16.0, PLAIN, "every tensor as it is: joins a GGUF in shards"),
    Quant("BF16", 32, 16.0005, PLAIN, "lossless for a bfloat16 source: the usual baseline"),
    Quant("F16", 1, 16.0005, PLAIN, "lossless for a float16 source; any hardware"),
    Quant("Q8_0", 7, 8.5008, PLAIN, "hardly distinguishable from 16 bits at half the size"),
    Quant("Q6_K", 18, 6.5633, PLAIN, "very close to Q8_0, a quarter smaller"),
    Quant("Q5_1", 9, 6.0376, PLAIN, "older format; Q5_K_M is smaller and better"),
    Quant("Q5_K_M", 17, 5.7036, PLAIN, "when there is memory to spare over Q4_K_M"),
    Quant("Q5_K", 17, 5.7036, PLAIN, "short for Q5_K_M", alias_of="Q5_K_M"),
    Quant("Q5_K_S", 16, 5.5704, PLAIN, "Q5_K_M with less spent on the sensitive layers"),
    Quant("Q5_0", 8, 5.5704, PLAIN, "older format; for runtimes without K-quants"),
    Quant("Q4_1", 3, 5.1031, PLAIN, "older format; Q4_K_M is smaller and better"),
    Quant("Q4_K_M", 15, 4.8944, PLAIN, "the usual choice: good quality at a third of 16 bits"),
    Quant("Q4_K", 15, 4.8944, PLAIN, "short for Q4_K_M", alias_of="Q4_K_M"),
    Quant("IQ4_NL", 25, 4.6818, PLAIN, "4 bits where rows are not a multiple of 256; for ARM"),
    Quant("Q4_K_S", 14, 4.6672, PLAIN, "when Q4_K_M just does not fit"),
    Quant("Q4_0", 2, 4.6358, PLAIN, "the quickest on many CPUs; weaker than Q4_K_S"),
    Quant("IQ4_XS", 30, 4.4597, PLAIN, "the smallest 4 bits: near Q4_K_S, slower on CPUs"),
    # For a mixture of experts; a dense model has no expert tensors and becomes as large as Q8_0.
    Quant("MXFP4_MOE", 38, 4.40, PLAIN, "experts trained in MXFP4 (gpt-oss); others: Q8_0"),
    Quant("Q3_K_L", 13, 4.2979, PLAIN, "the best of the 3-bit K-quants; try IQ4_XS first"),
    Quant("Q3_K_M", 12, 3.9960, PLAIN, "when 4 bits do not fit; quality loss begins to show"),
    Quant("Q3_K", 12, 3.9960, PLAIN, "short for Q3_K_M", alias_of="Q3_K_M"),
    Quant("IQ3_M", 27, 3.7628, PLAIN, "the best 3 bits for its size; an imatrix helps"),
    Quant("IQ3_S", 26, 3.6606, PLAIN, "as small as Q3_K_S, and better; slower on CPUs"),
    Quant("Q3_K_S", 11, 3.6429, PLAIN, "the smallest 3-bit K-quant; worse than Q3_K_M"),
    Quant("IQ3_XS", 22, 3.4977, IMATRIX, "between IQ3_XXS and IQ3_S, for the last gigabyte"),
    Quant("IQ3_XXS", 23, 3.2548, IMATRIX, "3 bits where every megabyte counts"),
    Quant("Q2_K", 10, 3.1593, PLAIN, "the smallest without an imatrix; large models only"),
    Quant("Q2_K_S", 21, 2.9697, IMATRIX, "Q2_K with less spent on attention; IQ2_M is better"),
    Quant("IQ2_M", 29, 2.9294, IMATRIX, "a large model in 2 bits that still answers sensibly"),
    Quant("IQ2_S", 28, 2.7403, IMATRIX, "a step below IQ2_M"),
    Quant("Q2_0", 41, 2.6803, PLAIN, "models trained for two bits; destroys others"),
    Quant("IQ2_XS", 20, 2.5882, IMATRIX, "70B and above on one consumer GPU"),
    Quant("TQ2_0", 37, 2.5173, PLAIN, "models trained ternary (BitNet); destroys others"),
    Quant("IQ2_XXS", 19, 2.3824, IMATRIX, "very large models only; expect errors"),
    Quant("TQ1_0", 36, 2.1914, PLAIN, "as TQ2_0, smaller and slower"),
    Quant("IQ1_M", 31, 2.1460, IMATRIX, "an experiment for models of 100B and more"),
    Quant("IQ1_S", 24, 2.0042, IMATRIX, "the smallest of all general types; hardly usable"),
    Quant("Q1_0", 40, 1.4817, PLAIN, "models trained for one bit; destroys others"),
)

# To add a nickname of a quant: add a row. Keys are upper case with letters and digits only.
NICKNAMES = {
    "4BIT": "Q4_K_M", "INT4": "Q4_K_M", "GPTQ": "Q4_K_M", "AWQ": "Q4_K_M", "BNB": "Q4_K_M", "NF4": "Q4_K_M",
    "Q4": "Q4_K_M", "IQ4": "IQ4_XS", "8BIT": "Q8_0", "INT8": "Q8_0", "FP8": "Q8_0", "Q8": "Q8_0", "6BIT": "Q6_K",
    "5BIT": "Q5_K_M", "Q5": "Q5_K_M", "Q6": "Q6_K", "3BIT": "Q3_K_M", "INT3": "Q3_K_M", "Q3": "Q3_K_M",
    "IQ3": "IQ3_M", "2BIT": "Q2_K", "INT2": "Q2_K", "Q2": "Q2_K", "IQ2": "IQ2_M", "1BIT": "IQ1_M", "IQ1": "IQ1_M",
    "FP16": "F16", "HALF": "F16", "16BIT": "BF16", "BFLOAT16": "BF16", "FP32": "F32", "FLOAT": "F32", "FULL": "F32",
    "FLOAT16": "F16", "FLOAT32": "F32", "32BIT": "F32", "FP4": "MXFP4_MOE", "MXFP4": "MXFP4_MOE", "NVFP4": "MXFP4_MOE",
    "TERNARY": "TQ2_0", "BITNET": "TQ2_0", "NONE": "COPY",
}  # fmt: skip

_BY_NAME = {quant.name: quant for quant in QUANTS}
_BY_LETTERS = {quant.name.replace("_", ""): quant.alias_of or quant.name for quant in QUANTS}

# Quants by usefulness; to prefer another one, insert it. The usual choice, the nearest to the original, those between
# the two, then the smaller ones.
USEFUL: Final = ("Q4_K_M", "Q8_0", "Q5_K_M", "Q6_K", "IQ4_XS", "Q4_K_S", "Q5_K_S", "Q3_K_M", "IQ3_M", "Q2_K")


def quant_rank(name: str) -> int:
    """The position of a quant in `USEFUL`; all others share the last rank."""
    return USEFUL.index(name) if name in USEFUL else len(USEFUL)


def find_quant(name: str) -> Quant:
    """The quant of this name, in any case; a shorthand is resolved.

    Raises:
        UnknownQuant: no such type; the message names the nearest one.
    """
    quant = _BY_NAME.get(name.strip().upper())
    if quant is None:
        near = nearest_quant_name(name)
        advice = f"Did you mean {near!r}?" if near else "The usual choice is 'Q4_K_M'."
        raise UnknownQuant(f"Unknown quant {shown_name(name.strip())}. {advice}", hint=LIST_THEM)
    return _BY_NAME[quant.alias_of or quant.name]


def nearest_quant_name(name: str) -> str | None:
    """The type that a misspelt name most likely means: by letters, nickname or similarity; None if none is near."""
    letters = re.sub(r"[^A-Z0-9]", "", name.upper())
    known = {**NICKNAMES, **_BY_LETTERS}
    if letters.isalpha() and letters not in known:  # every type has a number
        return None
    found = [letters] if letters in known else difflib.get_close_matches(letters, known, n=1, cutoff=0.5)
    return known[found[0]] if found else None
