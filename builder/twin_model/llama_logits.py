"""Asks llama.cpp for the logits of token ids, through the shared library that its programs use, and writes them.

    python builder/twin_model/llama_logits.py --library libllama.so --gguf twin.gguf --prompts prompts.json --out DIR

A script, not a stage: an assertion of llama.cpp ends the process that it is in. It is one way for both engines: the
image's `libllama` is the very code that its tools run, and llama-cpp-python carries the same library. Everything is
kept in 32 bits and on the CPU: no flash attention, no 16-bit KV cache, no device.

The structs of parameters are passed by value and differ between versions, so no version's layout is written here. They
are blocks larger than any of them: a C function returns a struct of that size through a pointer and reads no more of
an argument than it knows. Four facts of the layout are used: a model's parameters begin with the list of devices, a
context's with n_ctx, n_batch, n_ubatch (`llama_n_ctx` then says so), and two places are found by their defaults: the
types of the KV cache (F16, after two null pointers), and flash attention (auto, after three others that are).

`prompts.json`: a list of {"tokens": [...], "positions": [...]}, with "decoder": [...] for an encoder-decoder, whose
positions are the decoder's. Writes `llama-<i>.npy` for each prompt: float32, one row of logits for each position.

Exit codes: 0; 3, llama.cpp cannot do it, and the last line says why; or a signal (an assertion is SIGABRT).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import struct
import sys
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

CANNOT: Final = 3
_ROOM_BYTES: Final = 2048  # larger than any version's parameters; they have about 200 bytes
_F32: Final = 0
_KV_DEFAULT: Final = struct.pack("@PPii", 0, 0, 1, 1)  # cb_eval, its data, then type_k and type_v: F16
_FLASH_DEFAULT: Final = struct.pack("@iiii", -1, -1, -1, -1)  # rope scaling, pooling, attention, flash attention: auto
_LOG_LINES: Final = 12


class _Params(ctypes.Structure):
    _fields_ = (("block", ctypes.c_ubyte * _ROOM_BYTES),)


class _Batch(ctypes.Structure):
    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


_LOG = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)


class CannotRun(Exception):
    """llama.cpp does not load or run the model; the message says what it does not."""


class Llama:
    """One model in llama.cpp, in 32 bits."""

    def __init__(self, library: str, gguf: Path, threads: int) -> None:
        self._threads, self._log = threads, deque[str](maxlen=_LOG_LINES)
        self._c = _open_library(library)
        self._on_log = _LOG(lambda _level, text, _data: self._log.append((text or b"").decode(errors="replace")))
        self._c.llama_log_set(self._on_log, None)
        self._c.llama_backend_init()
        params = self._c.llama_model_default_params()
        no_device = (ctypes.c_void_p * 1)(None)
        struct.pack_into("@P", params.block, 0, ctypes.addressof(no_device))
        self._model = self._c.llama_model_load_from_file(os.fsencode(gguf), params)
        if not self._model:
            raise self._cannot("does not load the model")
        self._vocab_size = self._c.llama_vocab_n_tokens(self._c.llama_model_get_vocab(self._model))

    def logits(
        self, tokens: Sequence[int], positions: Sequence[int], decoder: Sequence[int]
    ) -> npt.NDArray[np.float32]:
        """Logits at these positions, shape (positions, vocabulary); of the decoder's tokens where there are some."""
        context = self._open_context(max(len(tokens), len(decoder)))
        try:
            if decoder:
                self._run(context, tokens, range(len(tokens)), self._c.llama_encode)
            self._run(context, decoder or tokens, positions, self._c.llama_decode)
            rows = [self._row(context, position) for position in positions]
        finally:
            self._c.llama_free(context)
        return np.stack(rows)

    def _open_context(self, n_tokens: int) -> int:
        params = self._c.llama_context_default_params()
        at = bytes(params.block).find(_KV_DEFAULT)
        if at < 0:
            raise CannotRun("has parameters of a layout that is not known")
        struct.pack_into("@III", params.block, 0, n_tokens, n_tokens, n_tokens)
        struct.pack_into("@ii", params.block, at + 16, _F32, _F32)
        if (flash := bytes(params.block[:at]).find(_FLASH_DEFAULT)) >= 0:  # older ones have a truth value, which is off
            struct.pack_into("@i", params.block, flash + 12, 0)
        context: int = self._c.llama_init_from_model(self._model, params)
        if not context or self._c.llama_n_ctx(context) < n_tokens:
            raise self._cannot("opens no context on the model")
        self._c.llama_set_n_threads(context, self._threads, self._threads)
        return context

    def _run(self, context: int, tokens: Sequence[int], positions: Sequence[int], function: Any) -> None:
        batch, wanted = self._c.llama_batch_init(len(tokens), 0, 1), set(positions)
        try:
            batch.n_tokens = len(tokens)
            for i, token in enumerate(tokens):
                batch.token[i], batch.pos[i], batch.n_seq_id[i], batch.seq_id[i][0] = token, i, 1, 0
                batch.logits[i] = i in wanted
            if function(context, batch):
                raise self._cannot("does not run the model")
        finally:
            self._c.llama_batch_free(batch)

    def _row(self, context: int, position: int) -> npt.NDArray[np.float32]:
        found = self._c.llama_get_logits_ith(context, position)
        if not found:
            raise self._cannot("gives no logits")
        return np.ctypeslib.as_array(found, (self._vocab_size,)).copy()

    def _cannot(self, what: str) -> CannotRun:
        return CannotRun(f"{what}: {' '.join(''.join(self._log).split())[-600:]}")


def _open_library(name: str) -> Any:
    """The library with the types of what is called, and the back ends that it finds beside itself."""
    library = ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    pointer, number = ctypes.c_void_p, ctypes.c_int32
    types: dict[str, tuple[Any, list[Any]]] = {
        "llama_log_set": (None, [_LOG, pointer]),
        "llama_backend_init": (None, []),
        "llama_model_default_params": (_Params, []),
        "llama_context_default_params": (_Params, []),
        "llama_model_load_from_file": (pointer, [ctypes.c_char_p, _Params]),
        "llama_init_from_model": (pointer, [pointer, _Params]),
        "llama_n_ctx": (ctypes.c_uint32, [pointer]),
        "llama_model_get_vocab": (pointer, [pointer]),
        "llama_vocab_n_tokens": (number, [pointer]),
        "llama_set_n_threads": (None, [pointer, number, number]),
        "llama_batch_init": (_Batch, [number, number, number]),
        "llama_batch_free": (None, [_Batch]),
        "llama_encode": (number, [pointer, _Batch]),
        "llama_decode": (number, [pointer, _Batch]),
        "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), [pointer, number]),
        "llama_free": (None, [pointer]),
    }
    for function, (result, arguments) in types.items():
        getattr(library, function).restype = result
        getattr(library, function).argtypes = arguments
    _load_back_ends(library, Path(name).parent)
    return library


def _load_back_ends(library: Any, folder: Path) -> None:
    """Builds for many CPUs keep the code of each in a library of its own."""
    if not hasattr(library, "ggml_backend_load_all"):
        return
    library.ggml_backend_load_all.restype = None
    library.ggml_backend_load_all()
    if folder.is_absolute() and not library.ggml_backend_dev_count():
        library.ggml_backend_load_all_from_path(os.fsencode(folder))


def main() -> int:
    """Write the logits of every prompt; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write the logits that llama.cpp computes.")
    parser.add_argument("--library", required=True)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    args = parser.parse_args()
    try:
        model = Llama(args.library, args.gguf, args.threads)
        for number, prompt in enumerate(json.loads(args.prompts.read_bytes())):
            found = model.logits(prompt["tokens"], prompt["positions"], prompt.get("decoder", []))
            np.save(args.out / f"llama-{number}.npy", found)
    except CannotRun as error:
        print(error)
        return CANNOT
    return 0


if __name__ == "__main__":
    sys.exit(main())
