#!/usr/bin/env python3
"""Lets the installed llama-cpp-python quantize and run a tiny model: a wheel made for another CPU dies here.

A wheel loads on any CPU; an instruction that the CPU does not have kills the process at the first product of
quantized matrices (exit code 132, SIGILL). So a random model of one layer is quantized to several types, each is
run on a batch and on one token, and the logits are compared with those of the 16-bit file. About a second.

Usage:  .venv-local/bin/python scripts/llama_self_check.py
Exit codes:  0 it runs · 1 it fails, and stderr says how · 132 killed by an illegal instruction
"""

from __future__ import annotations

import ctypes
import sys
import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

WIDTH, FEED_FORWARD, VOCABULARY, BATCH = 256, 512, 256, 64
# Of ggml's kinds of kernels: legacy blocks, K-quants, and a table of values. With the least cosine to 16 bits.
TYPES = (("Q8_0", 7, 0.99), ("Q4_0", 2, 0.8), ("Q4_K_M", 15, 0.8), ("Q6_K", 18, 0.95), ("IQ4_NL", 25, 0.8))


def write_model(path: Path) -> None:
    """A llama of one layer with random weights and no tokenizer."""
    import gguf

    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(BATCH)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(1)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(4)
    writer.add_head_count_kv(4)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_file_type(1)
    writer.add_tokenizer_model("none")
    random = np.random.default_rng(0)
    weights = {f"blk.0.attn_{name}": (WIDTH, WIDTH) for name in ("q", "k", "v", "output")}
    weights |= {f"blk.0.ffn_{name}": (FEED_FORWARD, WIDTH) for name in ("gate", "up")}
    weights |= {"blk.0.ffn_down": (WIDTH, FEED_FORWARD)}
    weights |= dict.fromkeys(("token_embd", "output"), (VOCABULARY, WIDTH))
    for name, shape in weights.items():
        writer.add_tensor(f"{name}.weight", (random.standard_normal(shape) / 8).astype(np.float16))
    for name in ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm"):
        writer.add_tensor(f"{name}.weight", np.ones(WIDTH, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def quantize(source: Path, target: Path, ftype: int) -> None:
    """By llama.cpp itself."""
    import llama_cpp

    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.nthread = ftype, 2
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params)):
        raise SystemExit(f"llama.cpp cannot quantize to {target.stem}")


def last_logits(path: Path) -> npt.NDArray[np.float32]:
    """After a batch of tokens and one more: the two ways in which a product is computed."""
    import llama_cpp

    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    params = llama_cpp.llama_context_default_params()
    params.n_ctx = params.n_batch = params.n_ubatch = BATCH
    params.n_threads = params.n_threads_batch = 2
    context = model and llama_cpp.llama_init_from_model(model, params)
    if not context:
        raise SystemExit(f"llama.cpp does not load a model of {path.stem}")
    for tokens in (list(range(1, BATCH - 1)), [BATCH]):
        held = (llama_cpp.llama_token * len(tokens))(*tokens)
        if llama_cpp.llama_decode(context, llama_cpp.llama_batch_get_one(held, len(tokens))):
            raise SystemExit(f"llama.cpp cannot run a model of {path.stem}")
    logits = np.ctypeslib.as_array(llama_cpp.llama_get_logits_ith(context, -1), (VOCABULARY,)).copy()
    llama_cpp.llama_free(context)
    llama_cpp.llama_model_free(model)
    return logits


def cosine(a: npt.NDArray[np.float32], b: npt.NDArray[np.float32]) -> float:
    """Of two vectors; not a number where one is not finite."""
    return float(a @ b / np.linalg.norm(a) / np.linalg.norm(b))


def main() -> None:
    """Check every type of the table."""
    import llama_cpp

    quiet = llama_cpp.llama_log_callback(lambda _level, _text, _data: None)
    llama_cpp.llama_log_set(quiet, ctypes.c_void_p())
    llama_cpp.llama_backend_init()
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / "F16.gguf"
        write_model(whole)
        original = last_logits(whole)
        for name, ftype, least in TYPES:
            path = Path(folder) / f"{name}.gguf"
            quantize(whole, path, ftype)
            if not (found := cosine(original, last_logits(path))) >= least:
                raise SystemExit(f"llama.cpp computes {name} wrongly here (cosine to 16 bits {found:.4f})")


if __name__ == "__main__":
    sys.exit(main())
