"""A recipe of mixed precision: which tensors get other types than those of the base quant.

A recipe that is invalid for every model is refused here, before a byte is downloaded. `quantize` refuses a recipe that
does not fit the model (a pattern without a tensor) before it writes anything. `recipe_files.py` reads YAML files.
"""

import difflib
import re
from functools import cache
from pathlib import Path
from typing import Annotated, Final, Self

from pydantic import Field, StringConstraints, field_validator, model_validator

from quantyard.formats.ggml_types import TYPE_BY_NAME
from quantyard.formats.gguf import TensorInfo
from quantyard.formats.tensor_patterns import PatternProblem, check_tensor_pattern, resolve_tensor_patterns
from quantyard.protocol.base import Frozen

_LONGEST_PATTERN: Final = 200  # characters
# The types that a tensor can get: without types of activations and integers, and those llama-quantize does not write.
_NO_WEIGHTS: Final = ("I8", "I16", "I32", "I64", "F64", "F32", "Q8_1", "Q8_K", "NVFP4")
TYPES: Final = tuple(name for name in TYPE_BY_NAME if name not in _NO_WEIGHTS)
# In the layers; see `tensor_requires_imatrix`, src/llama-quant.cpp.
NEED_IMATRIX: Final = ("IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS")
_MIXTURE: Final = re.compile(r"I?Q\d(_K)?_(XS|S|M|L)|MXFP4_MOE")  # quants that mix several types
_KINDS: Final = (
    "attn_q", "attn_k", "attn_v", "attn_qkv", "attn_output", "ffn_gate", "ffn_up", "ffn_down", "ffn_gate_exps",
    "ffn_up_exps", "ffn_down_exps", "ffn_gate_shexp", "ffn_up_shexp", "ffn_down_shexp",
)  # fmt: skip


class Recipe(Frozen):
    """One recipe.

    Attributes:
        name: the name of the quant; the file is `<model>-<name>.gguf`.
        base: the quant that decides all types that the recipe does not set.
        description: its purpose, one line.
        tensors: pattern → type; see `tensor_patterns.py`.
        output: type of the output matrix, and of the embeddings if a model has one matrix for both.
        token_embedding: type of the embeddings.
    """

    name: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.+-]{0,39}$")]
    base: str
    description: Annotated[str, StringConstraints(strip_whitespace=True, min_length=1, max_length=300)]
    tensors: Annotated[dict[str, str], Field(default_factory=dict, max_length=500)]
    output: str | None = None
    token_embedding: str | None = None

    def __hash__(self) -> int:
        """Recipes are frozen but hold a dict, which has no hash."""
        return hash((self.name, self.base, self.output, self.token_embedding, *self.tensors.items()))

    @property
    def needs_imatrix(self) -> bool:
        """Whether llama-quantize refuses one of its types without an importance matrix."""
        return any(kind in NEED_IMATRIX for kind in self.tensors.values())

    @field_validator("tensors")
    @classmethod
    def _names_patterns_and_types(cls, value: dict[str, str]) -> dict[str, str]:
        for pattern in value:
            if len(pattern) > _LONGEST_PATTERN:
                raise ValueError(f"a pattern has {len(pattern):,} characters, and {_LONGEST_PATTERN} are possible")
            try:
                check_tensor_pattern(pattern)
            except PatternProblem as problem:
                raise ValueError(f"{problem.message} {problem.hint}") from problem
        return {pattern: _recipe_type(kind) for pattern, kind in value.items()}

    @field_validator("output", "token_embedding")
    @classmethod
    def _is_a_type(cls, value: str | None) -> str | None:
        return value if value is None else _recipe_type(value)

    @model_validator(mode="after")
    def _changes_something_and_is_clear(self) -> Self:
        if not (self.tensors or self.output or self.token_embedding):
            raise ValueError(f"it changes nothing of {self.base}: name tensors, output or token_embedding")
        if found := _recipe_contradiction(self.tensors):
            raise ValueError(found)
        return self


def _recipe_type(text: str) -> str:
    """A tensor type in any case."""
    name = text.upper()
    if name in TYPES:
        return name
    is_mixture = _MIXTURE.fullmatch(name) is not None
    if is_mixture:
        name = name.removesuffix("_S").removesuffix("_M").removesuffix("_L")
    near = [name] if name in TYPES else difflib.get_close_matches(name, TYPES, n=1, cutoff=0.5)
    advice = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(TYPES)}"
    what = "a mixture of types, not the type of a tensor" if is_mixture else "not a tensor type"
    raise ValueError(f"{text!r} is {what}; {advice}")


def _recipe_contradiction(types: dict[str, str]) -> str:
    """Two contradicting patterns in a model of the usual kinds and 100 layers; "" if there are none."""
    try:
        resolve_tensor_patterns(
            _usual_tensors(), {pattern: kind for pattern, kind in types.items() if _is_usual(pattern)}
        )
    except PatternProblem as problem:
        return f"{problem.message} {problem.hint}"
    return ""


@cache
def _usual_tensors() -> tuple[TensorInfo, ...]:
    names = (f"blk.{layer}.{kind}.weight" for layer in range(100) for kind in _KINDS)
    return tuple(TensorInfo(name, (256, 2), 0, 0, 0, Path()) for name in names)


@cache
def _is_usual(pattern: str) -> bool:
    try:
        resolve_tensor_patterns(_usual_tensors(), {pattern: "Q8_0"})
    except PatternProblem:
        return False
    return True
