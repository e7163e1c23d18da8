"""Every quantization type that llama-quantize knows, and how a user's spelling finds one.

Read from llama.cpp: `tools/quantize/quantize.cpp` (names), `include/llama.h` (ids) and
`src/llama-quant.cpp` (`tensor_requires_imatrix`). `tests/docker/test_quants_table.py` holds the
table against the binary of the image in use.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass

from pipeline.errors import BadRequest, UnknownQuant

LIST_THEM = "List them: make quants"


@dataclass(frozen=True)
class Quant:
    """One quantization type.

    Attributes:
        name: as llama-quantize spells it.
        ftype: llama_ftype, `include/llama.h`. COPY shares 0 with F32, so tell COPY by its name.
        bits_per_weight: of the whole file for Llama-3.1-8B: measured in llama.cpp's
            `tools/quantize/README.md`, or by `llama-quantize --dry-run` on its shapes where the README has
            no figure. Small models come out higher, since their embeddings weigh more.
        needs_imatrix: llama-quantize refuses without an importance matrix on a usual model, because one of
            the tensor types in its mixture cannot do without. Tried type by type with `--dry-run`.
            A model whose rows are no multiple of 256 may get through, with larger fallback types.
        use: when to choose it, one line.
        alias_of: the full name, for a shorthand.
    """

    name: str
    ftype: int
    bits_per_weight: float
    needs_imatrix: bool
    use: str
    alias_of: str | None = None


PLAIN, IMATRIX = False, True  # the column needs_imatrix

# To add a quant: add a row. Largest first; a shorthand follows what it stands for.
QUANTS: tuple[Quant, ...] = (
    Quant("F32", 0, 32.0, PLAIN, "a lossless copy of a float32 source; twice the disk of 16 bits"),
    # COPY writes the tensors as they are, so its size is the source's; 16 stands for the usual source.
    # As a QUANT it makes sense for a GGUF source only: it joins shards, and takes an already quantized
    # file through verify without requantizing. After a conversion it repeats the converted file.
    Quant("COPY", 0, 16.0, PLAIN, "keep every tensor as it is, as large as the source: for a GGUF in shards"),
    Quant("BF16", 32, 16.0005, PLAIN, "lossless for a bfloat16 source: the baseline other quants are measured against"),
    Quant("F16", 1, 16.0005, PLAIN, "lossless for a float16 source, and for hardware without bfloat16"),
    Quant("Q8_0", 7, 8.5008, PLAIN, "hardly distinguishable from 16 bits at half the size"),
    Quant("Q6_K", 18, 6.5633, PLAIN, "very close to Q8_0, a quarter smaller"),
    Quant("Q5_1", 9, 6.0376, PLAIN, "older format; Q5_K_M is smaller and better"),
    Quant("Q5_K_M", 17, 5.7036, PLAIN, "when there is memory to spare over Q4_K_M"),
    Quant("Q5_K", 17, 5.7036, PLAIN, "short for Q5_K_M", alias_of="Q5_K_M"),
    Quant("Q5_K_S", 16, 5.5704, PLAIN, "Q5_K_M with less spent on the sensitive layers"),
    Quant("Q5_0", 8, 5.5704, PLAIN, "older format; for runtimes without K-quants"),
    Quant("Q4_1", 3, 5.1031, PLAIN, "older format; fast on some GPUs, Q4_K_M is smaller and better"),
    Quant("Q4_K_M", 15, 4.8944, PLAIN, "the usual choice: good quality at under a third of 16 bits"),
    Quant("Q4_K", 15, 4.8944, PLAIN, "short for Q4_K_M", alias_of="Q4_K_M"),
    Quant("IQ4_NL", 25, 4.6818, PLAIN, "4 bits for models whose rows are no multiple of 256, and for ARM"),
    Quant("Q4_K_S", 14, 4.6672, PLAIN, "when Q4_K_M just does not fit"),
    Quant("Q4_0", 2, 4.6358, PLAIN, "older format; the quickest on many CPUs, weaker than Q4_K_S"),
    Quant("IQ4_XS", 30, 4.4597, PLAIN, "the smallest 4 bits: near Q4_K_S, slower on CPUs"),
    # On a mixture of experts; a dense model has no expert tensors and ends as large as Q8_0.
    Quant("MXFP4_MOE", 38, 4.40, PLAIN, "mixtures of experts trained in MXFP4 (gpt-oss): a dense model becomes Q8_0"),
    Quant("Q3_K_L", 13, 4.2979, PLAIN, "the best of the 3-bit K-quants; compare IQ4_XS first"),
    Quant("Q3_K_M", 12, 3.9960, PLAIN, "when 4 bits do not fit; quality loss begins to show"),
    Quant("Q3_K", 12, 3.9960, PLAIN, "short for Q3_K_M", alias_of="Q3_K_M"),
    Quant("IQ3_M", 27, 3.7628, PLAIN, "the best 3 bits for its size; an imatrix helps, none is needed"),
    Quant("IQ3_S", 26, 3.6606, PLAIN, "as small as Q3_K_S, and better; slower on CPUs"),
    Quant("Q3_K_S", 11, 3.6429, PLAIN, "the smallest 3-bit K-quant; clearly worse than Q3_K_M"),
    Quant("IQ3_XS", 22, 3.4977, IMATRIX, "between IQ3_XXS and IQ3_S, for the last gigabyte"),
    Quant("IQ3_XXS", 23, 3.2548, IMATRIX, "3 bits where every megabyte counts"),
    Quant("Q2_K", 10, 3.1593, PLAIN, "the smallest that works with no imatrix and is no ternary; large models only"),
    Quant("Q2_K_S", 21, 2.9697, IMATRIX, "Q2_K with less spent on attention; IQ2_M is better"),
    Quant("IQ2_M", 29, 2.9294, IMATRIX, "a large model in 2 bits that still answers sensibly"),
    Quant("IQ2_S", 28, 2.7403, IMATRIX, "a step below IQ2_M"),
    Quant("Q2_0", 41, 2.6803, PLAIN, "models trained for two bits; others are destroyed"),
    Quant("IQ2_XS", 20, 2.5882, IMATRIX, "70B and above on one consumer GPU"),
    Quant("TQ2_0", 37, 2.5173, PLAIN, "models trained ternary (BitNet): quicker than TQ1_0; others are destroyed"),
    Quant("IQ2_XXS", 19, 2.3824, IMATRIX, "very large models only; expect errors"),
    Quant("TQ1_0", 36, 2.1914, PLAIN, "models trained ternary (BitNet): the smallest; others are destroyed"),
    Quant("IQ1_M", 31, 2.1460, IMATRIX, "an experiment for models of 100B and more"),
    Quant("IQ1_S", 24, 2.0042, IMATRIX, "the smallest of all general types; hardly usable"),
    Quant("Q1_0", 40, 1.4817, PLAIN, "models trained for one bit, rows a multiple of 128; others are destroyed"),
)

# To add what people type for a quant: add a row. Keys are upper case with letters and digits only.
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


def find(name: str) -> Quant:
    """The quant of this name, in any case; a shorthand gives what it stands for.

    Raises:
        UnknownQuant: no such type; the message names the nearest one.
    """
    quant = _BY_NAME.get(name.strip().upper())
    if quant is None:
        near = nearest(name)
        advice = f"Did you mean {near!r}?" if near else "The usual choice is 'Q4_K_M'."
        raise UnknownQuant(f"Unknown quant {name.strip()!r}. {advice}", hint=LIST_THEM)
    return _BY_NAME[quant.alias_of or quant.name]


def nearest(name: str) -> str | None:
    """The type a misspelt name most likely means: the same letters, a nickname, else the most similar, if any is."""
    letters = re.sub(r"[^A-Z0-9]", "", name.upper())
    known = {**NICKNAMES, **_BY_LETTERS}
    found = [letters] if letters in known else difflib.get_close_matches(letters, known, n=1, cutoff=0.5)
    return known[found[0]] if found else None


def parse_list(text: str) -> tuple[Quant, ...]:
    """The quants of "Q4_K_M,Q8_0": separated by commas or spaces, duplicates dropped, order kept.

    Raises:
        BadRequest: no name in it.
        UnknownQuant: a name that is no type.
    """
    names = [name for name in re.split(r"[,\s]+", text) if name]
    if not names:
        raise BadRequest("QUANT is empty.", hint="Name at least one: QUANT=Q4_K_M. " + LIST_THEM)
    return tuple(dict.fromkeys(find(name) for name in names))


# ---- Which tensor types a quant is made of ---------------------------------------------------------------------------
# From `src/llama-quant.cpp`: llama_ftype_get_default_type, llama_tensor_get_type_impl, tensor_type_fallback.

# To add a tensor type: add a row. Type → (weights per block, bytes per block); gguf-py, GGML_QUANT_SIZES.
BLOCKS: dict[str, tuple[int, int]] = {
    "F32": (1, 4), "F16": (1, 2), "BF16": (1, 2), "Q8_0": (32, 34), "Q5_1": (32, 24), "Q5_0": (32, 22),
    "Q4_1": (32, 20), "Q4_0": (32, 18), "IQ4_NL": (32, 18), "MXFP4": (32, 17), "Q2_0": (64, 18), "Q1_0": (128, 18),
    "Q6_K": (256, 210), "Q5_K": (256, 176), "Q4_K": (256, 144), "Q3_K": (256, 110), "Q2_K": (256, 84),
    "IQ4_XS": (256, 136), "IQ3_S": (256, 110), "IQ3_XXS": (256, 98), "IQ2_S": (256, 82), "IQ2_XS": (256, 74),
    "IQ2_XXS": (256, 66), "IQ1_M": (256, 56), "IQ1_S": (256, 50), "TQ2_0": (256, 66), "TQ1_0": (256, 54),
}  # fmt: skip

# To add a quant whose name is not the tensor type it starts from: add it here.
BASE_TYPES = {
    "IQ3_XS": "IQ3_S", "IQ3_M": "IQ3_S", "IQ2_S": "IQ2_XS", "IQ2_M": "IQ2_S", "MXFP4_MOE": "MXFP4",
    "Q2_K_S": "Q2_K", "Q3_K_S": "Q3_K", "Q3_K_M": "Q3_K", "Q3_K_L": "Q3_K",
    "Q4_K_S": "Q4_K", "Q4_K_M": "Q4_K", "Q5_K_S": "Q5_K", "Q5_K_M": "Q5_K",
}  # fmt: skip

# What stands in for a type whose block does not divide the row. Where that fails too: F16.
FALLBACKS = {
    "Q6_K": "Q8_0", "Q5_K": "Q5_1", "Q4_K": "Q5_0", "IQ4_XS": "IQ4_NL",
    **dict.fromkeys(("Q3_K", "Q2_K", "Q2_0", "TQ1_0", "TQ2_0"), "Q4_0"),
    **dict.fromkeys(("IQ3_S", "IQ3_XXS", "IQ2_S", "IQ2_XS", "IQ2_XXS", "IQ1_M", "IQ1_S"), "IQ4_NL"),
}  # fmt: skip


@dataclass(frozen=True)
class Place:
    """Where a tensor sits: the `i`-th of `n` of its kind, in a model with these traits."""

    i: int
    n: int
    gqa: float = 1.0  # query heads per key/value head
    experts: int = 0  # in the model
    is_expert: bool = False  # this tensor
    falcon: bool = False
    seventy_b: bool = False  # llama.cpp's LLM_TYPE_70B
    imatrix: bool = False  # one is given


Holds = Callable[[Place], bool]


def _first(part: int) -> Holds:
    return lambda p: p.i < p.n // part


def _more(p: Place) -> bool:
    """llama.cpp's use_more_bits: the first and last eighth of the layers, and every third between."""
    return p.i < p.n // 8 or p.i >= 7 * p.n // 8 or (p.i - p.n // 8) % 3 == 2


def _always(_: Place) -> bool:
    return True


def _gqa4(p: Place) -> bool:
    return p.gqa >= 4


def _eight(p: Place) -> bool:
    return p.experts == 8


def _plain(p: Place) -> bool:
    return not p.falcon and p.experts != 8


def _middle(p: Place) -> bool:
    return p.n // 8 <= p.i < 7 * p.n // 8


LOW = ("IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M")  # these have rules of their own
NOT_LOW = tuple(quant.name for quant in QUANTS if quant.name not in LOW)

# To follow a change of llama.cpp's mixtures: change the rows. (quants, category, condition, type): of the rows for a
# quant and category the first whose condition holds decides; where none does it is the quant's base type.
RULES: tuple[tuple[tuple[str, ...], str, Holds, str], ...] = (
    (("IQ2_XXS", "IQ2_XS", "IQ1_S", "IQ1_M"), "embed", _always, "Q2_K"),
    (("IQ2_S", "IQ2_M", "IQ3_XXS"), "embed", _always, "IQ3_S"),
    (("TQ1_0", "TQ2_0", "Q2_0"), "embed", _always, "Q4_K"),
    (LOW, "v", lambda p: p.gqa >= 4 or p.experts >= 4, "Q4_K"),
    (("IQ2_S", "IQ2_M"), "v", _always, "IQ3_S"),
    (LOW, "v", _always, "Q2_K"),
    (LOW, "k", _eight, "Q4_K"),
    (("IQ2_S", "IQ2_M"), "down", _first(8), "IQ3_S"),
    (LOW, "down", _first(8), "Q2_K"),
    (LOW, "attn_out", _eight, "Q5_K"),
    (("IQ1_S", "IQ1_M"), "attn_out", _always, "IQ2_XXS"),
    (("IQ2_S", "IQ2_M"), "attn_out", _always, "IQ3_S"),
    (NOT_LOW, "v", _eight, "Q8_0"),
    (("Q2_K", "Q2_K_S", "IQ3_XXS", "IQ3_XS", "IQ3_S"), "v", _gqa4, "Q4_K"),
    (("Q2_K",), "v", _always, "Q3_K"),
    (("IQ3_XXS",), "v", lambda p: not p.imatrix, "IQ3_S"),
    (("Q3_K_M",), "v", lambda p: p.i < 2, "Q5_K"),
    (("Q3_K_M", "IQ3_M"), "v", _always, "Q4_K"),
    (("Q3_K_L",), "v", _always, "Q5_K"),
    (("IQ4_NL", "IQ4_XS"), "v", _gqa4, "Q5_K"),
    (("Q4_K_M", "Q5_K_M"), "v", _more, "Q6_K"),
    (("Q4_K_S",), "v", lambda p: p.i < 4, "Q5_K"),
    (NOT_LOW, "k", _eight, "Q8_0"),
    (("IQ3_XS",), "k", _always, "IQ3_XXS"),
    (("IQ3_XXS",), "k", _always, "IQ2_S"),
    (("IQ3_XS",), "q", _always, "IQ3_XXS"),
    (("IQ3_XXS",), "q", _always, "IQ2_S"),
    (("Q2_K",), "down", _always, "Q3_K"),
    (("Q2_K_S",), "down", _first(8), "Q4_K"),
    (("IQ3_XXS",), "down", lambda p: not p.imatrix and _first(8)(p), "Q4_K"),
    (("IQ3_XXS",), "down", lambda p: not p.imatrix, "Q3_K"),
    (("Q3_K_M",), "down", _first(16), "Q5_K"),
    (("Q3_K_M",), "down", lambda p: not p.falcon or _more(p), "Q4_K"),
    (("IQ3_M",), "down", lambda p: _first(8)(p) or (_eight(p) and _more(p)), "Q4_K"),
    (("Q3_K_L",), "down", lambda p: p.falcon, "Q4_K"),
    (("Q3_K_L",), "down", _always, "Q5_K"),
    (("Q4_K_M",), "down", lambda p: _first(16)(p) if p.falcon else _more(p), "Q6_K"),
    (("Q4_K_M",), "down", lambda p: p.falcon and _more(p), "Q5_K"),
    (("IQ4_NL", "IQ4_XS"), "down", lambda p: not p.imatrix and _first(8)(p), "Q5_K"),
    (("Q5_K_M",), "down", _more, "Q6_K"),
    (("Q4_K_S",), "down", lambda p: not p.falcon and _first(8)(p), "Q5_K"),
    (("Q4_0",), "down", lambda p: p.imatrix and _first(8)(p), "Q4_1"),
    (("Q5_0",), "down", lambda p: p.imatrix and _first(8)(p), "Q5_1"),
    (("Q3_K_L",), "attn_out", lambda p: p.falcon, "Q4_K"),
    (("Q2_K", "IQ3_XXS", "IQ3_XS", "IQ3_S", "IQ3_M", "Q3_K_S", "Q3_K_M"), "attn_out", _eight, "Q5_K"),
    (("IQ4_NL", "IQ4_XS", "Q4_K_S", "Q4_K_M"), "attn_out", _eight, "Q5_K"),
    (("Q2_K",), "attn_out", _plain, "Q3_K"),
    (("IQ3_XXS",), "attn_out", _plain, "IQ3_S"),
    (("Q3_K_M", "IQ3_M"), "attn_out", _plain, "Q4_K"),
    (("Q3_K_L",), "attn_out", _plain, "Q5_K"),
    (("IQ3_XS",), "gate", _middle, "IQ3_XXS"),
    (("IQ3_XS",), "up", _middle, "IQ3_XXS"),
)


def tensor_type(quant: Quant, category: str, row_length: int, place: Place) -> str:
    """The ggml type (a key of BLOCKS) that llama-quantize gives a weight with two or more dimensions.

    `category` is one of embed, output, v, k, q, attn_out, gate, up, down, other; fused qkv counts as v, and
    tied embeddings as output. COPY has no type of its own and is the caller's to decide.

    Raises:
        BadRequest: llama-quantize would refuse this row length (Q1_0 has no stand-in).
    """
    base = BASE_TYPES.get(quant.name, quant.name)
    if base in ("F32", "F16", "BF16"):
        return base
    if category == "output":
        wanted = _output_type(quant.name, base, row_length, place)
    elif base == "MXFP4":
        wanted = "MXFP4" if place.is_expert else "Q8_0"
    else:
        wanted = _mixed_type(quant.name, base, category, place)
    return _fitting(wanted, row_length)


def _mixed_type(name: str, base: str, category: str, place: Place) -> str:
    rows = (kind for names, where, holds, kind in RULES if where == category and name in names and holds(place))
    kind = next(rows, base)
    if category == "v" and place.seventy_b and name in NOT_LOW and kind in ("Q3_K", "Q4_K"):
        return "Q5_K"
    return kind


def _output_type(name: str, base: str, row_length: int, place: Place) -> str:
    if name in ("MXFP4_MOE", "Q8_0") or place.falcon or row_length % BLOCKS[base][0]:
        return "Q8_0"
    return "Q5_K" if name in LOW or name == "IQ3_XXS" else "Q6_K"


def _fitting(kind: str, row_length: int) -> str:
    if row_length % BLOCKS[kind][0] == 0:
        return kind
    if kind not in FALLBACKS and BLOCKS[kind][0] > 32:
        fact = f"{kind} needs rows of a multiple of {BLOCKS[kind][0]} weights; this model has rows of {row_length}."
        raise BadRequest(fact, hint=f"Choose another quant. {LIST_THEM}")
    stand_in = FALLBACKS.get(kind, kind)
    return stand_in if row_length % BLOCKS[stand_in][0] == 0 else "F16"
