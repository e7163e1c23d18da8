"""The tensor types that a search chooses from, and how far each rounds the weights of a group."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from quantyard.errors import BadRequest
from quantyard.formats.gguf import TensorInfo
from quantyard.formats.tensor_patterns import tensor_type_for_row
from quantyard.store.outputs import read_stored_output

# Tensor → type → squared error of its weights, as a share of their squares; the stage `rounding` measures it.
# Divergence grows with the square of a small error, so a group's divergence at one type predicts that at another.
Errors = Mapping[str, Mapping[str, float]]

# To add a type: add it here. Types that need an importance matrix are excluded: ggml cannot round to them without one.
LADDER: Final = (
    "Q2_K", "Q3_K", "Q4_0", "Q4_1", "IQ4_XS", "IQ4_NL", "Q4_K", "Q5_0", "Q5_1", "Q5_K", "Q6_K", "Q8_0",
)  # fmt: skip
LOW: Final = "Q3_K"  # of one group while all others have HIGH; Q4_0 if rows are not a multiple of 256
HIGH: Final = "Q8_0"


def tuning_type_error(wanted: str, tensors: Sequence[TensorInfo], errors: Errors) -> float:
    """The squared error of these tensors at a type, each by how many weights it has."""
    weights = sum(tensor.n_params for tensor in tensors)
    return sum(errors[t.name][tensor_type_for_row(wanted, t.shape[0])] * t.n_params for t in tensors) / weights


def read_rounding_errors(folder: Path) -> Errors:
    """Read the result of the stage `rounding` in this folder.

    Raises:
        QuantyardError: the folder does not hold such a result.
    """
    return read_stored_output(
        folder, "rounding.json", dict[str, dict[str, float]], "is not a result of the stage rounding"
    )


def tuning_type_ladder(asked: Sequence[str]) -> tuple[str, ...]:
    """The types to choose from; by default all.

    Raises:
        BadRequest: the search does not know one of them.
    """
    if unknown := [name for name in asked if name not in LADDER]:
        near = difflib.get_close_matches(unknown[0], LADDER, n=1, cutoff=0.5)
        meant = f"Did you mean {near[0]}? " if near else ""
        message = f"TYPES={','.join(asked)}: {unknown[0]} is not a tensor type that the search chooses from."
        raise BadRequest(message, f"{meant}Choose from {', '.join(LADDER)}")
    return tuple(name for name in LADDER if name in asked) or LADDER


def distinct_tuning_types(tensors: Sequence[TensorInfo], ladder: Sequence[str] = LADDER) -> tuple[str, ...]:
    """The types worth trying for these tensors; of types that fall back to the same one, only one."""
    found: dict[tuple[str, ...], str] = {}
    for wanted in ladder:
        ends = tuple(tensor_type_for_row(wanted, tensor.shape[0]) for tensor in tensors)
        if ends not in found or wanted in ends:
            found[ends] = wanted
    return tuple(found.values())
