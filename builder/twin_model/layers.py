"""Names the first layer whose output differs, where both sides wrote the outputs of their layers.

Transformers' are those of the modules in the model's list of layers (random_weights.py, `hf-layers-<i>.npz`), those of
llama.cpp the tensors `l_out-<layer>` of its graph (llama_logits.py --layers, `llama-layers-<i>.npz`). A few graphs
name none, and those of an encoder-decoder stand for two layers each: then there is nothing to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from builder.twin_model.compare import TOLERANCE

Outputs = npt.NDArray[np.float32]


def first_wrong_layer(out: Path, positions: Sequence[Sequence[int]]) -> int | None:
    """The number of the first layer that differs on any prompt, from 0; one more than the last layer's where all layers
    agree, so that the final norm or the output differ; None: not known.

    Args:
        positions: of each prompt, which are compared.
    """
    last: int | None = None
    for number, each in enumerate(positions):
        original, ours = (_twin_layer_outputs(out / f"{side}-layers-{number}.npz") for side in ("hf", "llama"))
        for layer in sorted(original.keys() & ours.keys()):
            if _twin_layer_differs(original[layer], ours[layer], each):
                return layer
            last = max(last or 0, layer)
    return None if last is None else last + 1


def layer_sentence(layer: int | None, depth: int) -> str:
    """Where they part, as a sentence; "" where that is not known."""
    if layer is None:
        return ""
    if layer >= depth:
        return "All layers agree: the final norm or the output differs."
    before = {0: "", 1: " Layer 0 agrees."}.get(layer, f" Layers 0 to {layer - 1} agree.")
    return f"The first layer that differs is layer {layer} (the first is 0).{before}"


def _twin_layer_outputs(path: Path) -> dict[int, Outputs]:
    if not path.is_file():
        return {}
    with np.load(path, allow_pickle=False) as found:
        return {int(name): found[name] for name in found.files}


def _twin_layer_differs(original: Outputs, ours: Outputs, positions: Sequence[int]) -> bool:
    """Whether they differ at these positions; of the last layer llama.cpp computes no others."""
    if len(ours) != len(positions):
        ours = ours[list(positions)]
    if original.shape != ours.shape:
        return True
    return bool(np.abs(original - ours).max() > TOLERANCE * original.std())
