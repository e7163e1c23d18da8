#!/usr/bin/env python3
"""A copy of a model whose weights lie on no quantization's grid: what the search of tensor types is judged by.

The demo's model was quantized once (Q4_1, its embeddings Q8_0), so that one type keeps its weights as they are, and
others are better at them than at a model as it was trained. Each weight is moved by at most half the distance between
two levels of that grid, at random. The copy is a slightly worse model, and a fair one: no type knows its weights.

How to run:

    .venv/bin/python scripts/off_grid.py artifacts/demo/SmolLM2-135M-Instruct /tmp/SmolLM2-135M-off-grid

Exit codes:  0 done · 2 it cannot be made: one file of safetensors in BF16 is all that is read
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import NoReturn

import numpy as np
import numpy.typing as npt

REPO_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO_DIR))

from quantyard.formats.safetensors import SafetensorsTensor, read_safetensors_file  # noqa: E402 (the path above comes first)

WEIGHTS, SEED, BLOCK = "model.safetensors", 7, 32
LEVELS, EMBEDDING_LEVELS = 15, 254  # steps between the least and the largest of a block: Q4_1, Q8_0


def main() -> None:
    """Make the copy, and exit with the code."""
    if len(sys.argv) != 3 or not (Path(sys.argv[1]) / WEIGHTS).is_file():
        _stop(f"Type: {Path(__file__).name} FOLDER COPY; the folder has the file {WEIGHTS}")
    source, copy = (Path(name) for name in sys.argv[1:])
    shutil.copytree(source, copy)
    tensors = read_safetensors_file(copy / WEIGHTS).tensors
    rng = np.random.default_rng(SEED)
    for name, tensor in sorted(tensors.items()):
        if len(tensor.shape) == 2:
            _move(copy / WEIGHTS, tensor, EMBEDDING_LEVELS if "embed" in name else LEVELS, rng)


def _move(path: Path, tensor: SafetensorsTensor, levels: int, rng: np.random.Generator) -> None:
    if tensor.dtype != "BF16":
        _stop(f"{path} holds {tensor.dtype}.")
    stored = np.memmap(path, np.uint16, "r+", tensor.start, (tensor.n_params // BLOCK, BLOCK))
    weights = (stored.astype(np.uint32) << 16).view(np.float32)
    step = np.ptp(weights, axis=1, keepdims=True) / levels
    stored[:] = _brain(weights + rng.uniform(-0.5, 0.5, weights.shape).astype(np.float32) * step)
    stored.flush()


def _brain(weights: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """As BF16, rounded to the nearest."""
    found: npt.NDArray[np.uint16] = ((weights.view(np.uint32) + 0x8000) >> 16).astype(np.uint16)
    return found


def _stop(message: str) -> NoReturn:
    print(message, file=sys.stderr)  # noqa: T201 (a script for people prints)
    sys.exit(2)


if __name__ == "__main__":
    main()
