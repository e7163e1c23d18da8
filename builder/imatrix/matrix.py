"""An importance matrix as llama-imatrix writes it (GGUF): reads it, reports what it covers, and checks that it fits.

For each weight `name` the file holds `name.in_sum2`, the sums of squared inputs, shape (row length, matrices), and
`name.counts`, how many tokens each matrix saw. Source: llama.cpp's tools/imatrix.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from quantyard.formats.gguf import GgufError, GgufHeader, TensorInfo, read_gguf_header
from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure

_SUMS: Final = ".in_sum2"
_COUNTS: Final = ".counts"
_BLOCK: Final = re.compile(r"^((?:enc\.|dec\.)?)blk\.(\d+)\.")
_NO_BLOCK: Final = ("", -1)
_NEVER_QUANTIZED: Final = "attn_rel_b.weight"  # the relative positions of T5
_NAMED: Final = 5  # tensors named in a note, at most
_HINT: Final = "Give a matrix computed from this model, or have one computed: IMATRIX=auto."

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class ImatrixEntry:
    """The statistics of one weight."""

    name: str
    sums: TensorInfo
    counts_at: TensorInfo

    @cached_property
    def counts(self) -> Floats:
        """How many tokens each matrix saw, shape (matrices,): one number, or one for each expert."""
        return imatrix_values(self.counts_at)

    def importance(self) -> Floats:
        """Mean squared inputs, shape (matrices * row length,); 1 where no token was seen, as in llama-quantize."""
        sums, counts = imatrix_values(self.sums).reshape(len(self.counts), -1), self.counts[:, None]
        seen = counts > 0
        return np.where(seen, sums / np.where(seen, counts, 1), 1).astype(np.float32).reshape(-1)


@dataclass(frozen=True)
class Imatrix:
    """An importance matrix file; the values of its tensors are read when asked for."""

    path: Path
    entries: dict[str, ImatrixEntry]
    n_chunks: int
    chunk_tokens: int


def read_imatrix(path: Path) -> Imatrix:
    """Read and check a matrix.

    Raises:
        StageFailure: `bad-imatrix` (2): the file is not a matrix, is in the old format, or holds NaN or infinity.
    """
    try:
        header = read_gguf_header(path)
    except FileNotFoundError as error:
        raise _bad_imatrix(f"{path.name} does not exist") from error
    except GgufError as error:
        hint = "To convert the old format: llama-imatrix --in-file old.dat -o imatrix.gguf"
        raise _bad_imatrix(f"{path.name} is not an importance matrix in GGUF format: {error}", hint) from error
    if header.metadata.get("general.type") != "imatrix":
        raise _bad_imatrix(
            f"{path.name} is a GGUF of type {header.metadata.get('general.type', 'model')!r}, not 'imatrix'"
        )
    entries = dict(_imatrix_entries(path, header))
    if not entries:
        raise _bad_imatrix(f"{path.name} covers no tensor")
    n_chunks, chunk_tokens = (header.metadata.get(f"imatrix.chunk_{what}") for what in ("count", "size"))
    found = Imatrix(path, entries, int(str(n_chunks or 0)), int(str(chunk_tokens or 0)))
    _refuse_imatrix_not_finite(found)
    return found


def _imatrix_entries(path: Path, header: GgufHeader) -> Iterator[tuple[str, ImatrixEntry]]:
    tensors = {tensor.name: tensor for tensor in header.tensors}
    for key, sums in tensors.items():
        name = key.removesuffix(_SUMS)
        if name == key:
            continue
        counts = tensors.get(name + _COUNTS)
        if counts is None or sums.n_params % counts.n_params or {sums.type.name, counts.type.name} != {"F32"}:
            raise _bad_imatrix(f"{path.name} has no usable counts for {name}")
        yield name, ImatrixEntry(name, sums, counts)


def _refuse_imatrix_not_finite(matrix: Imatrix) -> None:
    for entry in matrix.entries.values():
        if not (np.isfinite(imatrix_values(entry.sums)).all() and np.isfinite(entry.counts).all()):
            raise _bad_imatrix(
                f"{matrix.path.name} holds NaN or infinity for {entry.name}", "Compute it again: IMATRIX=auto."
            )


def check_imatrix_fits(matrix: Imatrix, model: GgufHeader) -> None:
    """Refuse the matrix of another model: tensor names or sizes differ, or it does not cover a block.

    Raises:
        StageFailure: `other-imatrix` (2), with the first tensor that does not fit.
    """
    tensors = {tensor.name: tensor for tensor in model.tensors}
    for name, entry in matrix.entries.items():
        tensor = tensors.get(name)
        if tensor is None:
            raise _imatrix_of_other_model(matrix, f"it covers {name}, which the model does not have")
        expected = tensor.n_params // tensor.shape[1] if len(tensor.shape) > 1 else tensor.n_params
        if entry.sums.n_params != expected:
            raise _imatrix_of_other_model(
                matrix, f"it has {entry.sums.n_params:,} values for {name}, and the model needs {expected:,}"
            )
    if missing := sorted(_imatrix_blocks(model) - {_imatrix_block(name) for name in matrix.entries}):
        raise _imatrix_of_other_model(matrix, f"it covers no tensor of block {''.join(map(str, missing[0]))}")


def imatrix_coverage(matrix: Imatrix, model: GgufHeader) -> dict[str, JsonValue]:
    """What the matrix covers, for a stage's facts; `note` tells the user what is missing and what follows from it."""
    weights = [t.name for t in model.tensors if len(t.shape) > 1 and t.name.endswith(".weight")]
    weights = [name for name in weights if not name.endswith(_NEVER_QUANTIZED)]
    missing = [name for name in weights if name not in matrix.entries]
    partial = {e.name: int((e.counts == 0).sum()) for e in matrix.entries.values() if (e.counts == 0).any()}
    experts = sum(len(matrix.entries[name].counts) for name in partial)
    facts: dict[str, JsonValue] = {"tensors": len(matrix.entries), "tensors_of_model": len(weights)}
    notes = []
    if missing:
        facts["tensors_without"] = list(missing)
        uncovered = f"{_imatrix_names(missing)} {_imatrix_verb(missing)} not covered"
        notes.append(f"{uncovered} and will be quantized without a matrix.")
    if partial:
        facts["experts_without"] = dict(partial)
        notes.append(
            f"{sum(partial.values())} of {experts} experts in {_imatrix_names(list(partial))} saw no token, "
            "so all their weights count the same. A longer or more varied CALIBRATION text reaches more of them."
        )
    return facts | ({"note": " ".join(notes)} if notes else {})


def _imatrix_names(names: list[str]) -> str:
    rest = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + rest


def _imatrix_verb(names: list[str]) -> str:
    return "is" if len(names) == 1 else "are"


_Block = tuple[str, int]  # "" for a decoder, "enc." or "dec." for the two sides of an encoder-decoder; and its number


def _imatrix_blocks(model: GgufHeader) -> set[_Block]:
    """The model's blocks, without the NextN (multi-token prediction) blocks: calibration skips them."""
    found = {_imatrix_block(t.name) for t in model.tensors if len(t.shape) > 1} - {_NO_BLOCK}
    extra = model.metadata.get(f"{model.architecture}.nextn_predict_layers", 0)
    last = max(number for _side, number in found) - (extra if isinstance(extra, int) else 0)
    return {(side, number) for side, number in found if number <= last}


def _imatrix_block(name: str) -> _Block:
    match = _BLOCK.match(name)
    return (match[1], int(match[2])) if match else _NO_BLOCK


def imatrix_values(tensor: TensorInfo) -> Floats:
    """The values of an F32 tensor, flat."""
    return np.fromfile(tensor.path, np.float32, count=tensor.n_params, offset=tensor.offset)


def _bad_imatrix(what: str, hint: str = _HINT) -> StageFailure:
    return StageFailure(ExitCode.BAD_REQUEST, "bad-imatrix", f"The importance matrix {what}.", hint)


def _imatrix_of_other_model(matrix: Imatrix, why: str) -> StageFailure:
    message = f"The importance matrix {matrix.path.name} belongs to another model: {why}."
    return StageFailure(ExitCode.BAD_REQUEST, "other-imatrix", message, _HINT)
