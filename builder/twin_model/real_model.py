"""Computes a model itself with Transformers on a text: in 32 bits, and again in the type that it is converted to.

    python builder/twin_model/real_model.py --source DIR --text FILE --out DIR --dtype bfloat16

A script, not a stage: it runs in the converter's Python, and runs no code that came with the model. Writes prompts.json
(as llama_logits.py reads it), hf-<i>.npy, and floor-<i>.npy: the same by Transformers with weights and activations of
that type, whose distance from 32 bits is what rounding alone costs.

Exit codes: 0; 3, Transformers does not load or run it, and the last line says why; 4, torch or transformers is not
installed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any, Final

NO_MODEL: Final = 3
LACKS_PACKAGE: Final = 4
_PROMPTS: Final = 4
_TOKENS: Final = 256  # of a prompt
_FIRST: Final = 16  # position that is compared: before it there is hardly a context
_STEP: Final = 4


def main() -> int:
    """Write both answers; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write the logits that Transformers computes of a model.")
    parser.add_argument("--source", type=Path, required=True)
    parser.add_argument("--text", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--dtype", choices=("bfloat16", "float16", "float32"), required=True)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    own = str(Path(__file__).resolve().parent)
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or ".") != own]
    try:
        import torch  # noqa: F401
        import transformers  # noqa: F401
    except ImportError as error:
        print(f"the converter's Python lacks a package: {error}")
        return LACKS_PACKAGE
    try:
        _compute_real_logits(args)
    except Exception as error:  # transformers raises whatever the files lead it to
        print(" ".join(f"Transformers does not run the model: {type(error).__name__}: {error}".split())[:400])
        return NO_MODEL
    return 0


def _compute_real_logits(args: argparse.Namespace) -> None:
    import torch
    import transformers

    torch.set_num_threads(args.threads)
    torch.set_grad_enabled(False)
    settings = transformers.AutoConfig.from_pretrained(str(args.source), trust_remote_code=False, local_files_only=True)
    kind = getattr(transformers, settings.architectures[0])
    model = kind.from_pretrained(
        str(args.source), config=settings, dtype=torch.float32, attn_implementation="eager", local_files_only=True
    ).eval()
    prompts = _real_model_prompts(args.source, args.text)
    (args.out / "prompts.json").write_text(json.dumps(prompts, allow_nan=False))
    _write_real_logits(model, prompts, args.out, "hf")
    _write_real_logits(model.to(getattr(torch, args.dtype)), prompts, args.out, "floor")


def _real_model_prompts(source: Path, text: Path) -> list[dict[str, Any]]:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(str(source), trust_remote_code=False, local_files_only=True)
    ids = tokenizer(text.read_text(encoding="utf-8"), add_special_tokens=False)["input_ids"]
    parts = [ids[at : at + _TOKENS] for at in range(0, _PROMPTS * _TOKENS, _TOKENS)]
    return [
        {"tokens": part, "positions": list(range(_FIRST, len(part), _STEP))} for part in parts if len(part) > _FIRST
    ]


def _write_real_logits(model: Any, prompts: list[dict[str, Any]], out: Path, name: str) -> None:
    import numpy as np
    import torch

    for number, prompt in enumerate(prompts):
        logits = model(input_ids=torch.tensor([prompt["tokens"]]), use_cache=False).logits[0]
        np.save(out / f"{name}-{number}.npy", logits[prompt["positions"]].float().numpy())


if __name__ == "__main__":
    sys.exit(main())
