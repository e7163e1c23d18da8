"""Which tensors a recipe's pattern names, and which type each tensor ends with.

A pattern is a kind of tensor, with the layers where it is not all of them:

    attn_v                 every layer's; ffn_* is every kind that begins so
    blk.0-3,28.attn_v      these layers', counted from 0
    blk.0%-33%.ffn_down    those of the first third of the depth, whatever the model's number of layers

Where several patterns name a tensor, the one that names fewest decides, if all it names is named by the others too.
Otherwise the patterns conflict, which is an error. Two tensors have fields of their own in a recipe: the embeddings,
and the output matrix, which is the embeddings in a model with tied embeddings.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Final, NoReturn

from quantyard.formats.ggml_types import FALLBACKS, TYPE_BY_NAME
from quantyard.formats.gguf import TensorInfo

EMBEDDING: Final = "token_embd"
OUTPUT: Final = "output"
_OF_LAYER: Final = re.compile(r"blk\.(\d+)\.(.+)\.weight")
_PATTERN: Final = re.compile(r"(?:blk\.(?P<layers>\*|[\d%,-]+)\.)?(?P<kind>[A-Za-z_*?][\w.*?]*?)(?:\.weight)?")
_LAYERS: Final = re.compile(r"(\d{1,5})(?:-(\d{1,5}))?|(\d{1,3})%-(\d{1,3})%")
_EXAMPLE: Final = "Write it like this: attn_v, blk.0-3.attn_v or blk.0%-33%.ffn_down"

# Tensors that llama-quantize never changes: `tensor_allows_quantization`, src/llama-quant.cpp.
# To follow a change there: change the row.
_KEPT: Final = (
    "_norm.weight", "ffn_gate_inp.weight", "ffn_gate_tid2eid.weight", "altup", "laurel", "per_layer_model_proj",
    "ssm_conv1d", "shortconv.conv.weight", "indexer.k_proj.weight", "indexer.q_proj.weight", "position_embd",
    "token_types.weight", "time_mix_first.weight", "time_mix_w0.weight", "time_mix_w1.weight", "time_mix_w2.weight",
    "time_mix_v0.weight", "time_mix_v1.weight", "time_mix_v2.weight", "time_mix_a0.weight", "time_mix_a1.weight",
    "time_mix_a2.weight", "time_mix_g1.weight", "time_mix_g2.weight", "time_mix_decay_w1.weight",
    "time_mix_decay_w2.weight", "time_mix_lerp_fused.weight", "attn_rel_b.weight", ".hc_",
)  # fmt: skip


class PatternProblem(ValueError):
    """A pattern that cannot be used; `hint` says what to write."""

    def __init__(self, message: str, hint: str) -> None:
        super().__init__(message)
        self.message, self.hint = message, hint


def may_change_tensor_type(tensor: TensorInfo) -> bool:
    """Whether llama-quantize gives this tensor another type at all."""
    is_weight = tensor.name.endswith("weight") and not any(part in tensor.name for part in _KEPT)
    return is_weight and any(length > 1 for length in tensor.shape[1:])


def tensor_name_parts(name: str) -> tuple[int | None, str]:
    """Layer and kind of a tensor: "blk.3.attn_q.weight" → (3, "attn_q"), "token_embd.weight" → (None, "token_embd")."""
    if match := _OF_LAYER.fullmatch(name):
        return int(match[1]), match[2]
    return None, name.removesuffix(".weight")


def tensor_type_for_row(wanted: str, row_length: int) -> str:
    """The type llama.cpp gives a tensor with rows of so many weights when it is told `wanted`."""
    if row_length % TYPE_BY_NAME[wanted].block_size == 0:
        return wanted
    fallback = FALLBACKS.get(wanted, "F16")
    return fallback if row_length % TYPE_BY_NAME[fallback].block_size == 0 else "F16"


def check_tensor_pattern(pattern: str) -> None:
    """Check that the pattern is well-formed, as far as that can be known without a model.

    Raises:
        PatternProblem: it is malformed.
    """
    _pattern_matcher(pattern, 1)


def resolve_tensor_patterns(
    tensors: Iterable[TensorInfo], types: Mapping[str, str], output: str | None = None, embedding: str | None = None
) -> dict[str, str]:
    """The type of every tensor that a recipe names; what it does not name is left to the base quant.

    Args:
        tensors: the model's.
        types: pattern → type.
        output: the type of the output matrix, or of the embeddings where they are both.
        embedding: the type of the embeddings; wins over `output` where they are one.

    Raises:
        PatternProblem: a pattern that no tensor has, or two that contradict each other.
    """
    known = {tensor.name: tensor for tensor in tensors if may_change_tensor_type(tensor)}
    found = {
        name: types[pattern] for name, pattern in _deciding_patterns(_tensor_layers_and_kinds(known), types).items()
    }
    single = {f"{OUTPUT}.weight": output, f"{EMBEDDING}.weight": embedding}
    if output and embedding is None and f"{OUTPUT}.weight" not in known:
        single[f"{EMBEDDING}.weight"] = output
    found |= {name: kind for name, kind in single.items() if kind and name in known}
    return {name: tensor_type_for_row(kind, known[name].shape[0]) for name, kind in found.items()}


def _tensor_layers_and_kinds(known: Mapping[str, TensorInfo]) -> dict[str, tuple[int, str]]:
    """Layer and kind of the tensors that patterns can name."""
    places = ((name, tensor_name_parts(name)) for name in known)
    return {name: (layer, kind) for name, (layer, kind) in places if layer is not None}


def _deciding_patterns(places: Mapping[str, tuple[int, str]], types: Mapping[str, str]) -> dict[str, str]:
    """For each tensor that a pattern names, the pattern that decides. Sets of tensors are the bits of an integer, so
    that a recipe of hundreds of patterns, perhaps from somebody's release, takes a second, not minutes.
    """
    n_layers = 1 + max((layer for layer, _ in places.values()), default=0)
    named = {pattern: _tensors_of_pattern(pattern, places, n_layers) for pattern in types}
    found, known = {}, dict[tuple[str, ...], str | None]()
    for number, name in enumerate(places):
        by = tuple(pattern for pattern, bits in named.items() if bits >> number & 1)
        if by and by not in known:
            known[by] = _most_specific_pattern(by, named, types)
        if by:
            found[name] = known[by] or _refuse_unclear_patterns(name, by, types)
    return found


def _tensors_of_pattern(pattern: str, places: Mapping[str, tuple[int, str]], n_layers: int) -> int:
    layers, kind = _pattern_matcher(pattern, n_layers)
    kinds = {k for k in {k for _, k in places.values()} if fnmatchcase(k, kind)}
    bits = sum(1 << number for number, (i, k) in enumerate(places.values()) if i in layers and k in kinds)
    if not bits:
        raise PatternProblem(
            f"{pattern!r} matches no tensor of this model.", _meant_tensor_kind(kind, places, n_layers)
        )
    return bits


def _meant_tensor_kind(kind: str, places: Mapping[str, tuple[int, str]], n_layers: int) -> str:
    kinds = sorted({k for _, k in places.values()})
    near = difflib.get_close_matches(kind, kinds, n=3, cutoff=0.6)
    if kind in kinds:
        return f"The model has layers 0 to {n_layers - 1}."
    return f"Did you mean {' or '.join(near)}?" if near else f"It has these: {', '.join(kinds)}"


def _most_specific_pattern(patterns: Sequence[str], named: Mapping[str, int], types: Mapping[str, str]) -> str | None:
    """The pattern whose tensors are a proper subset of those of every pattern of another type; None without one."""
    sizes = {pattern: named[pattern].bit_count() for pattern in patterns}
    for pattern in patterns:
        others = [other for other in patterns if types[other] != types[pattern]]
        if all(sizes[pattern] < sizes[other] for other in others) and all(
            named[pattern] & named[other] == named[pattern] for other in others
        ):
            return pattern
    return None


def _refuse_unclear_patterns(name: str, patterns: Sequence[str], types: Mapping[str, str]) -> NoReturn:
    one, other = patterns[0], next(p for p in patterns if types[p] != types[patterns[0]])
    message = f"The tensor {name} is named by {one!r} ({types[one]}) and {other!r} ({types[other]})"
    hint = "Let the two name different tensors, or let one name only tensors that the other names too."
    raise PatternProblem(f"{message}, and neither is more specific.", hint)


def _pattern_matcher(pattern: str, n_layers: int) -> tuple[set[int], str]:
    """The layers and the kind (with * and ?) of a pattern."""
    match = _PATTERN.fullmatch(pattern)
    if match is None or match["kind"].startswith("blk."):
        raise PatternProblem(f"{pattern!r} is not a pattern of tensors.", _EXAMPLE)
    if match["kind"] in (EMBEDDING, OUTPUT):
        field = "token_embedding" if match["kind"] == EMBEDDING else "output"
        raise PatternProblem(f"{pattern!r} is not a tensor of the layers.", f"It has a field of its own: {field}: Q6_K")
    layers = match["layers"] or "*"
    parts = (
        [range(n_layers)] if layers == "*" else [_pattern_range(part, pattern, n_layers) for part in layers.split(",")]
    )
    return set().union(*parts), match["kind"]


def _pattern_range(part: str, pattern: str, n_layers: int) -> range:
    match = _LAYERS.fullmatch(part)
    if match is None:
        raise PatternProblem(f"{part!r} in {pattern!r} is not a range of layers.", _EXAMPLE)
    if match[3] is None:
        first, last = int(match[1]), int(match[2] or match[1])
        if first > last:
            raise PatternProblem(f"{part!r} in {pattern!r} begins after its end.", _EXAMPLE)
        return range(first, min(last + 1, n_layers))
    low, high = int(match[3]), int(match[4])
    if not low < high <= 100:
        raise PatternProblem(f"{part!r} in {pattern!r} is not a part of the depth.", _EXAMPLE)
    return range(-(-low * n_layers // 100), -(-high * n_layers // 100))
