"""The weights of a GGUF that somebody else made, against those of our conversion.

A tensor of a type is as far from the source as ggml's own rounding to that type, or a little further where an
importance matrix weighed the errors. What is much further holds other weights: another model, a fine-tune, a merged
adapter. What changes weights by less than their rounding cannot be seen here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from builder.checks.tensors import has_promised_type, is_tensor_worth_comparing
from builder.llama.ggml_rows import Floats, Ggml, sample_rounded_rows
from quantyard.formats.gguf import GgufHeader, TensorInfo
from quantyard.formatting.numbers import format_digits
from quantyard.protocol.foreign_findings import ForeignFinding, foreign_finding

# Of squared errors to those of ggml's rounding without a matrix: twice the distance.
ALLOWED_RATIO: Final = 4.0
# Squared, relative to the weights: bf16 rounds by 1e-6; ours and theirs may have been rounded to 16 bits differently.
LEAST_ERROR: Final = 1e-5
ALLOWED_ERROR: Final = 0.9  # of other weights it is 2; types of one bit have up to 0.5
_MAX_NAMED: Final = 5
_OUTPUT, _EMBEDDINGS = "output.weight", "token_embd.weight"


@dataclass(frozen=True)
class TensorError:
    """The squared error of one tensor, relative to its weights, and the largest that its type explains."""

    name: str
    error: float
    bound: float
    ratio: float  # to ggml's own rounding


def foreign_tensor_errors(
    ggml: Ggml, source: GgufHeader, model: GgufHeader, weights: int, on_tensor: Callable[[int, str], None]
) -> Iterator[TensorError]:
    """The error of each tensor that both files have, in the same shape.

    Args:
        weights: of a tensor that are compared, at most, but at least four rows.
        on_tensor: called with the number of tensors compared so far, and the next one's name.
    """
    ours = {tensor.name: tensor for tensor in source.tensors}
    for number, theirs in enumerate(model.tensors):
        on_tensor(number, theirs.name)
        own = ours.get(theirs.name) or (ours.get(_EMBEDDINGS) if theirs.name == _OUTPUT else None)
        if own is not None and _rows_of_foreign(own) == _rows_of_foreign(theirs):
            yield _foreign_tensor_error(ggml, own, theirs, max(4, weights // theirs.shape[0]))


def _rows_of_foreign(tensor: TensorInfo) -> tuple[int, int]:
    return tensor.shape[0], tensor.n_params


def _foreign_tensor_error(ggml: Ggml, own: TensorInfo, theirs: TensorInfo, rows: int) -> TensorError:
    expected, found = sample_rounded_rows(ggml, own, rows), sample_rounded_rows(ggml, theirs, rows)
    error = _relative_square(expected, found)
    if not ggml.can_write(theirs.type.name):
        return TensorError(theirs.name, error, ALLOWED_ERROR / ALLOWED_RATIO, 0.0)
    rounding = max(ggml.error(expected, theirs.type.name), LEAST_ERROR)
    return TensorError(theirs.name, error, min(ALLOWED_RATIO * rounding, ALLOWED_ERROR), error / rounding)


def _relative_square(expected: Floats, found: Floats) -> float:
    total = float(np.square(expected, dtype=np.float64).sum())
    wrong = float(np.square(found.astype(np.float64) - expected).sum())
    return wrong / total if total else float(wrong > 0)


def other_weights_finding(errors: Sequence[TensorError]) -> ForeignFinding | None:
    """Which tensors are further from the source than their type explains; None where none is."""
    wrong = sorted((e for e in errors if not e.error <= e.bound), key=lambda e: e.bound - e.error)
    if not wrong:
        return None
    said = (
        f"{e.name} ({format_digits(e.error**0.5, 2)} of its size, {format_digits(e.bound**0.5, 2)} allowed)"
        for e in wrong[:_MAX_NAMED]
    )
    shown = ", ".join(said)
    text = (
        f"{len(wrong)} of {len(errors)} tensors hold other weights than the source: {shown}. It is made of another "
        "model, a fine-tune, or with an adapter merged in."
    )
    return foreign_finding("other-weights", text)


def foreign_tensor_findings(source: GgufHeader, model: GgufHeader) -> Iterator[ForeignFinding]:
    """Tensors that are missing, too many, or of another shape."""
    ours, theirs = ({t.name: t for t in header.tensors} for header in (source, model))
    more = sorted(theirs.keys() - ours.keys())
    if _OUTPUT in more:
        more.remove(_OUTPUT)
        what = "output.weight is stored, which our conversion shares with the embeddings."
        yield foreign_finding("output-stored", what)
    if missing := sorted(ours.keys() - theirs.keys() - {"rope_freqs.weight"}):
        yield foreign_finding("missing-tensors", f"{len(missing)} tensors are missing: {_named_foreign(missing)}.")
    if more:
        yield foreign_finding("more-tensors", f"{len(more)} tensors are not in our conversion: {_named_foreign(more)}.")
    both = sorted(ours.keys() & theirs.keys())
    if other := [name for name in both if _rows_of_foreign(ours[name]) != _rows_of_foreign(theirs[name])]:
        first = f"{other[0]} is {theirs[other[0]].shape}, in our conversion {ours[other[0]].shape}"
        yield foreign_finding("other-shapes", f"{len(other)} tensors have other shapes: {first}.")


def unreadable_type_finding(ggml: Ggml, model: GgufHeader) -> ForeignFinding | None:
    """Tensors whose values ggml cannot read; None where there are none."""
    found = [tensor for tensor in model.tensors if not ggml.can_read(tensor.type_id)]
    if not found:
        return None
    return foreign_finding("unreadable-type", f"{found[0].name} and {len(found) - 1} more are {found[0].type.name}.")


def foreign_type_share(model: GgufHeader, types: Sequence[str]) -> float:
    """The share of these types, or what stands for them in narrow rows, among the weights of matrices, from 0 to 1."""
    matrices = [tensor for tensor in model.tensors if is_tensor_worth_comparing(tensor)]
    total = sum(tensor.n_params for tensor in matrices)
    promised = (t.n_params for t in matrices if any(has_promised_type(t, name) for name in types))
    return sum(promised) / total if total else 0.0


def _named_foreign(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
    return f"{', '.join(names[:_MAX_NAMED])}{more}"
