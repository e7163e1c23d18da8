#!/usr/bin/env python3
"""Time the stage `twin` on dense configs from 1 to 70 billion weights: it must not grow with the model.

    .venv/bin/python scripts/bench_twin.py TOKENIZER_DIR [CONFIG.json …]      on an otherwise idle machine

TOKENIZER_DIR holds the tokenizer's files of a model whose vocabulary fits (as large as the config says, or smaller).
Runs in .venv-local. Prints for each config the seconds by the clock, those of the processor and the peak of memory,
and ends with 1 if one takes more than 20 s or 2 GB.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPO_DIR = Path(__file__).resolve().parents[1]
VENV = REPO_DIR / ".venv-local"
MOST_S, MOST_BYTES = 20.0, 2 * 10**9
_SIZES = {"1B": (2048, 16, 32), "8B": (4096, 32, 32), "70B": (8192, 80, 64)}  # width, layers, heads
_MEASURED = """
import resource, subprocess, sys
subprocess.run([sys.executable, *sys.argv[1:]], check=False)
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_utime + used.ru_stime, used.ru_maxrss * 1024)
"""


def main() -> int:
    """Print a line for each config; returns the exit code."""
    parser = argparse.ArgumentParser(description="Time the stage twin.")
    parser.add_argument("tokenizer", type=Path)
    parser.add_argument("configs", type=Path, nargs="*")
    args = parser.parse_args()
    given = {path.stem: json.loads(path.read_bytes()) for path in args.configs} or _dense(args.tokenizer)
    slow = False
    sys.stdout.write("config  seconds  cpu seconds  peak of one process  status\n")
    for name, config in given.items():
        wall_s, cpu_s, peak_bytes, status = _time(config, args.tokenizer)
        sys.stdout.write(f"{name}  {wall_s:.1f}  {cpu_s:.1f}  {peak_bytes / 1e6:.0f} MB  {status}\n")
        slow |= wall_s > MOST_S or peak_bytes > MOST_BYTES
    return int(slow)


def _dense(tokenizer: Path) -> dict[str, dict[str, Any]]:
    """Llamas with the vocabulary of this tokenizer."""
    found = json.loads((tokenizer / "tokenizer.json").read_bytes())
    ids = [*found["model"]["vocab"].values(), *(token["id"] for token in found["added_tokens"])]
    return {
        name: {
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": width,
            "intermediate_size": 4 * width, "num_hidden_layers": layers, "num_attention_heads": heads,
            "num_key_value_heads": 8, "vocab_size": max(ids) + 1, "rms_norm_eps": 1e-5, "rope_theta": 500000.0,
            "max_position_embeddings": 8192, "tie_word_embeddings": False,
        }
        for name, (width, layers, heads) in _SIZES.items()
    }  # fmt: skip


def _time(config: dict[str, Any], tokenizer: Path) -> tuple[float, float, float, str]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = folder / "in" / "source"
        shutil.copytree(tokenizer, source, ignore=shutil.ignore_patterns("config.json", "*.safetensors"))
        (source / "config.json").write_text(json.dumps(config))
        (folder / "in" / "request.json").write_text(json.dumps({"stage": "twin"}))
        (folder / "out").mkdir()
        stage = ["-m", "builder.twin", "--in", str(folder / "in"), "--out", str(folder / "out")]
        environment = {
            "PATH": "/usr/bin:/bin", "HOME": name, "LANG": "C.UTF-8", "PYTHONPATH": str(REPO_DIR),
            "LLAMA_CONVERTER": str(VENV / "share" / "llama.cpp" / "convert_hf_to_gguf.py"),
            "CONVERTER_PYTHON": str(VENV / "bin" / "python"), "HF_HUB_OFFLINE": "1",
            "CONVERTER_PACKAGES": str(VENV / "share" / "transformers-4.57"),
        }
        started = time.monotonic()
        run = subprocess.run(
            [str(VENV / "bin" / "python"), "-c", _MEASURED, *stage], env=environment, cwd=folder, text=True,
            stdout=subprocess.PIPE, check=True,
        )
        wall_s = time.monotonic() - started
        cpu_s, peak_bytes = map(float, run.stdout.splitlines()[-1].split())
        result = json.loads((folder / "out" / "result.json").read_bytes())
    return wall_s, cpu_s, peak_bytes, str(result["facts"].get("status") or result["error"]["message"])


if __name__ == "__main__":
    sys.exit(main())
