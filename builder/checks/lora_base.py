"""Asks the Hugging Face side what the modules of a base model are, from its config.json alone, and writes it as JSON.

    python builder/checks/lora_base.py --converter convert_lora_to_gguf.py --folder DIR --out base.json [--pickle FILE]

A script, not a stage: it runs in the converter's Python, which has torch and transformers and may have neither
pydantic nor this package. The model is made on torch's `meta` device: names and shapes, not a byte of weights.
It writes what `builder.lora.BaseSide` accepts; with `--pickle` the shapes in an adapter's pickle file too.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

Shapes = dict[str, list[int]]


def main() -> int:
    """Write what is known of one base model; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write the names and shapes of a base model's tensors.")
    parser.add_argument("--converter", type=Path, required=True)
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--pickle", type=Path)
    args = parser.parse_args()
    _search_libraries_of(args.converter)
    model_class, architecture = lora_base_architecture(args.folder)
    shapes, ties, why = lora_base_shapes(args.folder, model_class) if architecture else ({}, False, "")
    said = {
        "model_class": model_class, "architecture": architecture, "shapes": shapes, "why_no_shapes": why,
        "ties_embeddings": ties,
        "pickle": lora_pickle_shapes(args.pickle) if args.pickle else {},
        "versions": {name: version(name) for name in ("transformers", "torch")},
    }
    args.out.write_text(json.dumps(said), encoding="utf-8")
    return 0


def _search_libraries_of(converter: Path) -> None:
    """Look where the converter looks, and not in this folder: Python puts a script's own first."""
    own = str(Path(__file__).resolve().parent)
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or ".") != own]
    sys.path[:0] = [str(converter.parent), str(converter.parent / "gguf-py")]


def lora_base_architecture(folder: Path) -> tuple[str, str]:
    """The Hugging Face class that the converter goes by, and llama.cpp's name for it ("": it has none)."""
    import gguf
    from conversion import (  # type: ignore[import-not-found]  # lies beside the converter
        ModelBase,
        ModelType,
        get_model_architecture,
        get_model_class,
    )

    name = get_model_architecture(ModelBase.load_hparams(folder, False), ModelType.TEXT)
    try:
        return name, gguf.MODEL_ARCH_NAMES[get_model_class(name).model_arch]
    except NotImplementedError:
        return name, ""


def lora_base_shapes(folder: Path, model_class: str) -> tuple[Shapes, bool, str]:
    """The model's tensors by name, and whether its output is its token embeddings; or none, and why."""
    import torch
    import transformers

    try:
        config = transformers.AutoConfig.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
        with torch.device("meta"):
            model: Any = getattr(transformers, model_class)(config)
    except Exception as error:  # transformers raises whatever the folder's files lead it to
        return {}, False, f"transformers cannot make a {model_class}: {type(error).__name__}: {error}"[:500]
    shapes = {name: list(tensor.shape) for name, tensor in model.named_parameters(remove_duplicate=False)}
    return shapes, bool(getattr(config.get_text_config(), "tie_word_embeddings", False)), ""


def lora_pickle_shapes(path: Path) -> Shapes:
    """The tensors of a pickle file, opened as the converter will: nothing but tensors is made."""
    import torch

    tensors = torch.load(path, map_location="meta", weights_only=True)
    return {str(name): list(tensor.shape) for name, tensor in tensors.items()}


if __name__ == "__main__":
    sys.exit(main())
