"""Embeddings of texts and scores of pairs, by the functions of llama-cpp-python, for the stages that have it."""

from __future__ import annotations

from typing import Any, Final

from quantyard.llama.library import llama_tokens, run_llama_batch

_CLEAR_DATA: Final = True


class PooledError(Exception):
    """llama.cpp gives no answer; the message says what it does not, as the end of a sentence."""


class PooledTexts:
    """A context on a model that embeds texts or ranks documents. Close it.

    Args:
        llama: the module `llama_cpp`.
        model: its handle.
        pooling: a `llama_pooling_type`.
        n_tokens: the longest text; what is longer is cut.
        threads: 0: llama.cpp's default.

    Raises:
        PooledError: no context can be opened.
    """

    def __init__(self, llama: Any, model: Any, pooling: int, n_tokens: int, threads: int) -> None:
        self._c, self._model, self._n_tokens = llama, model, n_tokens
        self._vocab = llama.llama_model_get_vocab(model)
        params = llama.llama_context_default_params()
        params.n_ctx = params.n_batch = params.n_ubatch = n_tokens
        params.embeddings, params.pooling_type = True, pooling
        self._context = llama.llama_init_from_model(model, params)
        if not self._context:
            raise PooledError("loads the model but cannot open a context on it")
        if threads:
            llama.llama_set_n_threads(self._context, threads, threads)

    def close(self) -> None:
        """Free the context."""
        if self._context:
            self._c.llama_free(self._context)
            self._context = None

    def embedding(self, text: str) -> list[float]:
        """The vector of a text, of any length."""
        return self._pooled(self._tokens(text, add_special=True), int(self._c.llama_model_n_embd(self._model)))

    def score(self, query: str, document: str) -> float:
        """A reranker's score. The text of a pair is put together as llama-server does it."""
        template = self._c.llama_model_chat_template(self._model, b"rerank")
        if template:
            text = template.decode(errors="replace").replace("{query}", query).replace("{document}", document)
            return self._pooled(self._tokens(text, add_special=False), 1)[0]
        return self._pooled(self._pair(query, document), 1)[0]

    def _pair(self, query: str, document: str) -> list[int]:
        c, vocab = self._c, self._vocab
        bos, eos, sep = c.llama_vocab_bos(vocab), c.llama_vocab_eos(vocab), c.llama_vocab_sep(vocab)
        eos = sep if eos < 0 else eos
        start = [bos] if c.llama_vocab_get_add_bos(vocab) else []
        end = [eos] if c.llama_vocab_get_add_eos(vocab) else []
        middle = end + ([sep] if c.llama_vocab_get_add_sep(vocab) else [])
        first, second = (self._tokens(text, add_special=False) for text in (query, document))
        return [*start, *first, *middle, *second, *end]

    def _tokens(self, text: str, *, add_special: bool) -> list[int]:
        tokens = llama_tokens(self._c, self._vocab, text.encode(), add_special=add_special)
        if not tokens:
            raise PooledError(f"does not tokenize {text[:60]!r}")
        return tokens

    def _pooled(self, tokens: list[int], width: int) -> list[float]:
        memory = self._c.llama_get_memory(self._context)
        if memory:  # an encoder has none
            self._c.llama_memory_clear(memory, _CLEAR_DATA)
        has_encoder = self._c.llama_model_has_encoder(self._model)
        function = self._c.llama_encode if has_encoder else self._c.llama_decode
        if run_llama_batch(self._c, function, self._context, tokens[: self._n_tokens]):
            raise PooledError("cannot run the model")
        found = self._c.llama_get_embeddings_seq(self._context, 0)
        if not found:
            raise PooledError("gives no embedding")
        return [float(number) for number in found[:width]]
