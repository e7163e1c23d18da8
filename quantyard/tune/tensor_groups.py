"""Groups of a model's tensors that get one type each: by kind, and by their part of the depth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

from quantyard.formats.gguf import GgufHeader, TensorInfo
from quantyard.formats.tensor_patterns import EMBEDDING, OUTPUT, may_change_tensor_type, tensor_name_parts

PARTS = 3  # thirds of the depth


@dataclass(frozen=True)
class TensorGroup:
    """Tensors that get one type. `layers` is (first, last), None for what belongs to no layer."""

    kind: str  # attn_q, ffn_down, token_embd …
    layers: tuple[int, int] | None
    tensors: tuple[TensorInfo, ...]

    @property
    def name(self) -> str:
        """As in labels and tables: "attn_q.0-9", "token_embd"."""
        return self.kind if self.layers is None else f"{self.kind}.{self.layers[0]}-{self.layers[1]}"

    @property
    def pattern(self) -> str:
        """As in a recipe; the embeddings and the output have fields of their own there."""
        return self.kind if self.layers is None else f"blk.{self.layers[0]}-{self.layers[1]}.{self.kind}"

    @property
    def n_params(self) -> int:
        """How many weights it holds."""
        return sum(tensor.n_params for tensor in self.tensors)


def tuning_tensor_groups(header: GgufHeader, parts: int = PARTS) -> tuple[TensorGroup, ...]:
    """Every tensor that can be given a type, in exactly one group; the order is that of the file.

    Args:
        parts: into how many parts the depth is cut; 1: a group for each kind.
    """
    tensors = [tensor for tensor in header.tensors if may_change_tensor_type(tensor)]
    n_layers = 1 + max((layer for layer, _ in map(_place_in_tensor_groups, tensors) if layer is not None), default=0)
    cuts = _tensor_group_cuts(n_layers, min(parts, n_layers))
    found: dict[tuple[str, tuple[int, int] | None], list[TensorInfo]] = {}
    for tensor in tensors:
        layer, kind = _place_in_tensor_groups(tensor)
        if layer is None and kind not in (EMBEDDING, OUTPUT):
            continue  # tensors that a recipe cannot name keep the base type
        part = None if layer is None else next(cut for cut in cuts if cut[0] <= layer <= cut[1])
        found.setdefault((kind, part), []).append(tensor)
    return tuple(TensorGroup(kind, part, tuple(members)) for (kind, part), members in found.items())


def _place_in_tensor_groups(tensor: TensorInfo) -> tuple[int | None, str]:
    return tensor_name_parts(tensor.name)


def _tensor_group_cuts(n_layers: int, parts: int) -> Sequence[tuple[int, int]]:
    ends = [n_layers * part // parts for part in range(parts + 1)]
    return [(first, last - 1) for first, last in pairwise(ends)]
