"""Asks llama.cpp for the logits of token ids, through the shared library that its programs use, and writes them.

    python builder/twin_model/llama_logits.py --library libllama.so --gguf twin.gguf --prompts prompts.json --out DIR
        [--layers]

A script, not a stage: an assertion of llama.cpp ends the process that it is in. It is one way for both engines: the
image's `libllama` is the very code that its tools run, and llama-cpp-python carries the same library. Everything is
kept in 32 bits and on the CPU: no flash attention, no 16-bit KV cache, no device.

`prompts.json`: a list of {"tokens": [...], "positions": [...]}, with "decoder": [...] for an encoder-decoder, whose
positions are the decoder's, and "embeddings": [1] where the last hidden states are asked for. A classifier has
"sequences" in place of tokens, each with a row of scores, one for each of its "labels". Writes `llama-<i>.npy`
for each prompt: float32, one row of logits for each position. With `--layers` also `llama-layers-<i>.npz`, the outputs
of all layers by their numbers, one row for each token (of the last layer for each position).

Exit codes: 0; 3, llama.cpp cannot do it, and the last line says why; or a signal (an assertion is SIGABRT).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

sys.path.append(str(Path(__file__).parents[2]))  # as a script it finds only what is beside it

from quantyard.llama.library import LlamaLibrary, LogTail, UnknownLayout, run_llama_batch

CANNOT: Final = 3
_RANK: Final = 4  # LLAMA_POOLING_TYPE_RANK
_LAYER: Final = re.compile(rb"l_out-(\d+)")  # the name of a layer's output in every graph of llama.cpp


class CannotRun(Exception):
    """llama.cpp does not load or run the model; the message says what it does not."""


class LayerOutputs:
    """What llama.cpp's cb_eval shows of the layers: their outputs by number. Keep it as long as the context."""

    def __init__(self, library: LlamaLibrary) -> None:
        self.found: dict[int, npt.NDArray[np.float32]] = {}
        self.width = 0  # of an output
        self.callback = library.ggml_backend_sched_eval_callback(self._see)
        self._c = library
        library.ggml_get_name.restype, library.ggml_nbytes.restype = ctypes.c_char_p, ctypes.c_size_t
        library.ggml_get_name.argtypes = library.ggml_nbytes.argtypes = [ctypes.c_void_p]
        library.ggml_backend_tensor_get.restype = None
        library.ggml_backend_tensor_get.argtypes = [ctypes.c_void_p] * 2 + [ctypes.c_size_t] * 2

    def _see(self, tensor: int, asking: bool, _user_data: object) -> bool:
        name = _LAYER.fullmatch(self._c.ggml_get_name(tensor))
        if asking:
            return name is not None
        size_bytes = self._c.ggml_nbytes(tensor)
        if name is not None and size_bytes % (4 * self.width) == 0:
            values = np.empty((size_bytes // (4 * self.width), self.width), np.float32)
            self._c.ggml_backend_tensor_get(tensor, values.ctypes.data, 0, size_bytes)
            self.found[int(name[1])] = values
        return True


class Llama:
    """One model in llama.cpp, in 32 bits."""

    def __init__(self, library: str, gguf: Path, threads: int, with_layers: bool = False) -> None:
        self._threads = threads
        self._c = LlamaLibrary(library)
        self.layers = LayerOutputs(self._c) if with_layers else None
        self._log = LogTail(self._c)
        params = self._c.llama_model_default_params()
        params.use_cpu_only()
        self._model = self._c.llama_model_load_from_file(os.fsencode(gguf), params)
        if not self._model:
            raise self._cannot("does not load the model")
        self._vocab_size = self._c.llama_vocab_n_tokens(self._c.llama_model_get_vocab(self._model))
        if self.layers is not None:
            self.layers.width = self._c.llama_model_n_embd(self._model)

    def logits(
        self, tokens: Sequence[int], positions: Sequence[int], decoder: Sequence[int], embeddings: bool
    ) -> npt.NDArray[np.float32]:
        """Logits at these positions, shape (positions, vocabulary); of the decoder's tokens where there are some; or
        the hidden states, shape (positions, width).
        """
        context = self._open_context(max(len(tokens), len(decoder)), embeddings)
        try:
            if decoder:
                self._run(context, tokens, range(len(tokens)), self._c.llama_encode)
            self._run(context, decoder or tokens, positions, self._c.llama_decode)
            rows = [self._row(context, position, embeddings) for position in positions]
        finally:
            self._c.llama_free(context)
        return np.stack(rows)

    def scores(self, sequences: Sequence[Sequence[int]], n_labels: int) -> npt.NDArray[np.float32]:
        """A classifier's scores of each sequence, shape (sequences, labels)."""
        context = self._open_context(max(map(len, sequences)), embeddings=True, pooling=_RANK)
        rows = []
        try:
            for tokens in sequences:
                self._c.llama_memory_clear(self._c.llama_get_memory(context), True)
                self._run(context, tokens, range(len(tokens)), self._c.llama_decode)
                found = self._c.llama_get_embeddings_seq(context, 0)
                if not found:
                    raise self._cannot("gives no score")
                rows.append(np.ctypeslib.as_array(found, (n_labels,)).copy())
        finally:
            self._c.llama_free(context)
        return np.stack(rows)

    def _open_context(self, n_tokens: int, embeddings: bool, pooling: int = 0) -> int:
        params = self._c.llama_context_default_params()
        try:
            if embeddings:
                params.set_embeddings(pooling)
            params.set_full_precision()
            if self.layers is not None:
                self.layers.found.clear()
                params.set_callback(self.layers.callback)
        except UnknownLayout as error:
            raise CannotRun(f"cannot be asked: {error}") from error
        params.set_tokens(n_tokens)
        context: int = self._c.llama_init_from_model(self._model, params)
        if not context or self._c.llama_n_ctx(context) < n_tokens:
            raise self._cannot("opens no context on the model")
        self._c.llama_set_embeddings(context, embeddings)
        self._c.llama_set_n_threads(context, self._threads, self._threads)
        return context

    def _run(self, context: int, tokens: Sequence[int], positions: Sequence[int], function: Any) -> None:
        if run_llama_batch(self._c, function, context, tokens, wanted=set(positions)):
            raise self._cannot("does not run the model")

    def _row(self, context: int, position: int, embeddings: bool) -> npt.NDArray[np.float32]:
        row_of = self._c.llama_get_embeddings_ith if embeddings else self._c.llama_get_logits_ith
        found = row_of(context, position)
        if not found:
            raise self._cannot("gives no logits")
        width = self._c.llama_model_n_embd(self._model) if embeddings else self._vocab_size
        return np.ctypeslib.as_array(found, (width,)).copy()

    def _cannot(self, what: str) -> CannotRun:
        return CannotRun(f"{what}: {self._log.words()}")


def main() -> int:
    """Write the logits of every prompt; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write the logits that llama.cpp computes.")
    parser.add_argument("--library", required=True)
    parser.add_argument("--gguf", type=Path, required=True)
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--layers", action="store_true", help="write the outputs of the layers as well")
    args = parser.parse_args()
    try:
        model = Llama(args.library, args.gguf, args.threads, args.layers)
        for number, prompt in enumerate(json.loads(args.prompts.read_bytes())):
            decoder, embeddings = prompt.get("decoder", []), bool(prompt.get("embeddings"))
            if "sequences" in prompt:
                found = model.scores(prompt["sequences"], prompt["labels"])
            else:
                found = model.logits(prompt["tokens"], prompt["positions"], decoder, embeddings)
            np.save(args.out / f"llama-{number}.npy", found)
            if model.layers is not None:
                layers: dict[str, Any] = {str(layer): rows for layer, rows in model.layers.found.items()}
                np.savez(args.out / f"llama-layers-{number}.npz", **layers)
    except CannotRun as error:
        print(error)
        return CANNOT
    return 0


if __name__ == "__main__":
    sys.exit(main())
