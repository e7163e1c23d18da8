"""Weights that are quantized already: what the plan says and asks of them, and the tensors that they stand for."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping

from quantyard.errors import UnreadableWeights
from quantyard.formats.quantized_weights import (
    WeightQuantization,
    as_sentence,
    find_quantization,
    plain_tensors,
    said_quantization,
    without_quantization,
)
from quantyard.quants.file_size import TensorShape
from quantyard.records import dataclass


@dataclass(frozen=True)
class SourceWeights:
    """The weights as the conversion has them."""

    config: Mapping[str, object]  # without what is stale in it
    tensors: tuple[TensorShape, ...] | None
    quantization: WeightQuantization | None
    notes: tuple[str, ...] = ()


def read_source_weights(config: Mapping[str, object], tensors: tuple[TensorShape, ...] | None) -> SourceWeights:
    """Tell plain weights from quantized ones.

    Args:
        config: config.json.
        tensors: of the headers; None where they are not known.
    """
    named = {tensor.name: tensor for tensor in tensors} if tensors else None
    found = find_quantization(config, named)
    if found is None and said_quantization(config):
        return SourceWeights(without_quantization(config), tensors, None, (_stale_quantized_source_note(config),))
    if found is None or found.problem:
        return SourceWeights(config, tensors, found)
    if named is not None:
        plain = plain_tensors(config, named).items()
        tensors = tuple(TensorShape(name, tensor.shape, tensor.dtype) for name, tensor in plain)
    return SourceWeights(config, tensors, found, (_quantized_source_note(found, is_known=named is not None),))


def refuse_unreadable_weights(title: str, quantization: WeightQuantization | None, base_model: str) -> None:
    """Refuse quantized weights that the converter cannot unpack, before anything is downloaded.

    Args:
        base_model: the model that these were made from, by its card; "" where it does not say.

    Raises:
        UnreadableWeights: llama.cpp's converter cannot read them.
    """
    if quantization is None or not quantization.problem:
        return
    message = f"{title} is quantized already: {quantization.title}. {as_sentence(quantization.problem)}"
    original = f"MODEL={base_model}" if base_model else "most cards name it (base_model)"
    raise UnreadableWeights(message, f"Build from the model as it was before it was quantized: {original}")


def source_dtypes(tensors: tuple[TensorShape, ...]) -> dict[str, int]:
    """Dtype → number of weights."""
    counts: Counter[str] = Counter()
    for tensor in tensors:
        counts[tensor.dtype] += math.prod(tensor.shape)
    return dict(counts)


def _stale_quantized_source_note(config: Mapping[str, object]) -> str:
    said = said_quantization(config)
    method = said.get("quant_method") or said.get("quant_algo") or "quantized"
    return (
        f"config.json speaks of {str(method)[:40]!r} weights, and the files hold plain ones: its quantization_config "
        "is left from an earlier step and is ignored."
    )


def _quantized_source_note(found: WeightQuantization, *, is_known: bool) -> str:
    if found.kept:
        same = f" and {found.kept}_MOE" if found.kept == "MXFP4" else ""
        return (
            f"The weights are quantized at the source: {found.title}. The conversion{same} keep them as they are; any "
            "other quant is made from them, not from unquantized weights."
        )
    rough = "" if is_known else " The headers of its files cannot be read, so the sizes below are rough."
    return (
        f"The weights are quantized already: {found.title}. The conversion unpacks them, and restores nothing that was "
        f"lost: no file can be better than these weights.{rough}"
    )
