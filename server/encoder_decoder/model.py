"""An encoder-decoder in llama.cpp: the encoder reads a prompt, the decoder writes the answer, token by token.

Each of `parallel` requests has a context of its own, since a context holds one text of the encoder. They take turns:
one token of one request at a time, computed by all threads, so that requests that run together end together.
"""

from __future__ import annotations

import ctypes
import os
import queue
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from quantyard.llama.library import LlamaLibrary, LogTail, llama_tokens, run_llama_batch

_LONGEST_PIECE: Final = 256  # bytes
_LAST: Final = -1  # the last row of logits
_PENALIZED_TOKENS: Final = 64  # how far back penalties look, as in llama-server


class CannotServe(Exception):
    """llama.cpp does not load or run the model; the message says what it does not."""


class TooLong(Exception):
    """A prompt that does not fit in the context."""


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen; the defaults are llama-server's."""

    temperature: float = 0.8  # 0: the likeliest token
    top_k: int = 40
    top_p: float = 0.95
    min_p: float = 0.05
    repeat_penalty: float = 1.0
    frequency_penalty: float = 0.0
    presence_penalty: float = 0.0
    seed: int = 0xFFFFFFFF  # llama.cpp's sign for another one each time


class EncoderDecoder:
    """A loaded model. Thread-safe."""

    def __init__(self, library: LlamaLibrary, path: Path, n_ctx: int, parallel: int, threads: int) -> None:
        """Load it.

        Args:
            n_ctx: tokens of one request, for its prompt and for its answer; 0: as the model was trained.

        Raises:
            CannotServe: llama.cpp does not load it, or it is not an encoder-decoder.
        """
        self._c, self._threads = library, threads
        self._log = LogTail(library)
        params = library.llama_model_default_params()
        params.use_cpu_only()
        self._model = library.llama_model_load_from_file(os.fsencode(path), params)
        if not self._model:
            raise self._cannot(f"does not load {path.name}")
        if not library.llama_model_has_encoder(self._model):
            raise CannotServe(f"{path.name} is not an encoder-decoder: llama-server runs it")
        self._vocab = library.llama_model_get_vocab(self._model)
        self.n_ctx = n_ctx or int(library.llama_model_n_ctx_train(self._model))
        self.parallel = parallel
        self._turn = threading.Lock()
        self._free: queue.Queue[Any] = queue.Queue()
        for _ in range(parallel):
            self._free.put(self._open_context())

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """Token ids; with `add_special` the EOS that ends the texts of the encoder."""
        tokens = llama_tokens(self._c, self._vocab, text.encode(errors="replace"), add_special=add_special)
        if tokens is None:
            raise self._cannot("does not tokenize the text")
        return tokens

    def piece(self, token: int) -> bytes:
        """The bytes of a token; none of a special one."""
        buffer = ctypes.create_string_buffer(_LONGEST_PIECE)
        count = self._c.llama_token_to_piece(self._vocab, token, buffer, _LONGEST_PIECE, 0, False)
        return bytes(buffer.raw[: max(0, count)])

    def answer(self, prompt: Sequence[int], max_tokens: int, sampling: Sampling) -> Iterator[bytes | None]:
        """The answer's tokens as they are chosen, each by its bytes; None at its end, if the model ended it.

        Closing the iterator ends the answer.

        Raises:
            TooLong: the prompt does not fit.
            CannotServe: llama.cpp fails.
        """
        if len(prompt) > self.n_ctx:
            what = f"the prompt has {len(prompt)} tokens, and the context of the encoder {self.n_ctx}"
            raise TooLong(f"the request exceeds the available context size: {what}")
        with self._context() as context, self._sampler(sampling) as sampler:
            self._run(context, self._c.llama_encode, prompt, 0)
            token = int(self._c.llama_model_decoder_start_token(self._model))
            for position in range(min(max_tokens, self.n_ctx)):
                token = self._next(context, sampler, token, position)
                if self._c.llama_vocab_is_eog(self._vocab, token):
                    yield None
                    return
                yield self._shown(token, position)

    def _shown(self, token: int, position: int) -> bytes:
        """Its bytes; an answer begins without the space that the tokenizer puts before a first word."""
        piece = self.piece(token)
        return piece if position else piece.removeprefix(b" ")

    def _next(self, context: Any, sampler: Any, token: int, position: int) -> int:
        self._run(context, self._c.llama_decode, [token], position)
        return int(self._c.llama_sampler_sample(sampler, context, _LAST))

    def _run(self, context: Any, function: Any, tokens: Sequence[int], start: int) -> None:
        with self._turn:
            code = run_llama_batch(self._c, function, context, tokens, start)
        if code:
            raise self._cannot(f"cannot compute {len(tokens)} tokens (code {code})")

    @contextmanager
    def _context(self) -> Iterator[Any]:
        """A context that no other request uses; waits for one."""
        context = self._free.get()
        try:
            self._c.llama_memory_clear(self._c.llama_get_memory(context), True)
            yield context
        finally:
            self._free.put(context)

    @contextmanager
    def _sampler(self, sampling: Sampling) -> Iterator[Any]:
        chain = self._c.llama_sampler_chain_init(True)
        try:
            for sampler in self._samplers(sampling):
                self._c.llama_sampler_chain_add(chain, sampler)
            yield chain
        finally:
            self._c.llama_sampler_free(chain)

    def _samplers(self, asked: Sampling) -> Iterator[Any]:
        yield self._c.llama_sampler_init_penalties(
            _PENALIZED_TOKENS, asked.repeat_penalty, asked.frequency_penalty, asked.presence_penalty
        )
        if asked.temperature <= 0:
            yield self._c.llama_sampler_init_greedy()
            return
        yield self._c.llama_sampler_init_top_k(asked.top_k)
        yield self._c.llama_sampler_init_top_p(asked.top_p, 1)
        yield self._c.llama_sampler_init_min_p(asked.min_p, 1)
        yield self._c.llama_sampler_init_temp(asked.temperature)
        yield self._c.llama_sampler_init_dist(asked.seed)

    def _open_context(self) -> Any:
        params = self._c.llama_context_default_params()
        params.set_tokens(self.n_ctx)
        context = self._c.llama_init_from_model(self._model, params)
        if not context:
            raise self._cannot(f"opens no context of {self.n_ctx} tokens")
        self._c.llama_set_n_threads(context, self._threads, self._threads)
        return context

    def _cannot(self, what: str) -> CannotServe:
        return CannotServe(f"llama.cpp {what}: {self._log.words()}")
