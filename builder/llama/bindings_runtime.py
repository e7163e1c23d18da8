"""llama-cpp-python's low-level functions as a `LlamaRuntime`: for the local engine, and for encoder-decoders.

llama-server cannot run an encoder-decoder, so in an image too the functions are called, those of its own library.
Its logits are those of the decoder, which begins with its start token, after the encoder has read a text.
"""

from __future__ import annotations

import importlib
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self, TypeVar

import numpy as np
import numpy.typing as npt

from builder.llama.runtime import CONTEXT_TOKENS, llama_not_finite
from quantyard.formats.purpose import POOLINGS, Pooling
from quantyard.llama.library import LlamaLibrary, llama_tokens, run_llama_batch, set_llama_log
from quantyard.llama.pooled import PooledError, PooledTexts
from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure
from quantyard.sandbox.chat_template import ChatRefused, ChatTemplate, Messages

_LOG_LINES: Final = 20
_CLEAR_DATA: Final = True
Answer = TypeVar("Answer")


class BindingsRuntime:
    """The model loaded into this process, on the CPU."""

    def __init__(self, model: Path, threads: int, library: str | None = None, pooling: Pooling = "none") -> None:
        """Only store the settings.

        Args:
            library: llama.cpp's, to call in place of llama-cpp-python's.
            pooling: of a model that embeds texts or ranks them.
        """
        self._path = model
        self._threads = threads
        self._library = library
        self._pooling = pooling
        self._log: deque[str] = deque(maxlen=_LOG_LINES)
        self._model: Any = None
        self._context: Any = None
        self._template: ChatTemplate | None = None

    def __enter__(self) -> Self:
        self._llama: Any = LlamaLibrary(self._library) if self._library else importlib.import_module("llama_cpp")
        set_llama_log(self._llama, self._keep_log)
        self._load()
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        if self._template:
            self._template.close()
        if self._context:
            self._llama.llama_free(self._context)
        if self._model:
            self._llama.llama_model_free(self._model)
        self._context = self._model = None
        set_llama_log(self._llama, _drop_llama_log)  # llama.cpp may log at exit

    @property
    def argv(self) -> tuple[str, ...]:
        """See `LlamaRuntime`."""
        return ("llama_model_load_from_file", str(self._path), str(self._threads))

    def version(self) -> str:
        """The version of llama-cpp-python, which pins its llama.cpp, or the file of the library."""
        return Path(self._library).name if self._library else f"llama-cpp-python {self._llama.__version__}"

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        """See `LlamaRuntime`."""
        tokens = llama_tokens(self._llama, self._vocab, text.encode(), add_special=add_special)
        if tokens is None:
            raise self._failure(f"does not tokenize {text!r}", "verify-tokenizer")
        return tokens

    def render_chat(self, messages: Messages) -> str:
        """See `LlamaRuntime`."""
        if self._template is None:
            self._template = self._own_template()
        return self._template.render(messages, add_generation_prompt=True)

    def check_template(self) -> None:
        """See `LlamaRuntime`. Renders one short conversation; a template may refuse it, but must compile."""
        try:
            self.render_chat([{"role": "user", "content": "Hello"}])
        except ChatRefused as error:
            if "TemplateSyntaxError" in str(error):
                raise

    def finite_logits(self, prompts: Sequence[str]) -> int:
        """See `LlamaRuntime`. Checks every logit of every position of each prompt.

        This does not replace the scan of every tensor: kernels that quantize activations to 8 bits can turn a NaN
        weight into a finite number before it reaches the logits.
        """
        if not self._context:
            self._context = self._open_context()
        rows = 0
        for prompt in prompts:
            logits = self._after_text(self.tokenize(prompt, add_special=True)[:CONTEXT_TOKENS])
            if not np.isfinite(logits).all():
                raise llama_not_finite(prompt)
            rows += len(logits)
        return rows

    def text_logprob(self, ids: Sequence[int]) -> float | None:
        """See `LlamaRuntime`."""
        if not self._context:
            self._context = self._open_context()
        bos, eos = self._llama.llama_vocab_bos(self._vocab), self._llama.llama_vocab_eos(self._vocab)
        first = bos if bos >= 0 else max(eos, 0)
        logits = self._answer([first], [*ids]) if self.has_encoder else self._decode([first, *ids])
        return float(sum(_llama_token_logprob(row, token) for row, token in zip(logits, ids, strict=False)))

    def embeddings(self, texts: Sequence[str]) -> list[list[float]]:
        """See `LlamaRuntime`."""
        return self._pooled(lambda pooled: [pooled.embedding(text) for text in texts])

    def scores(self, pairs: Sequence[tuple[str, str]]) -> list[float]:
        """See `LlamaRuntime`."""
        return self._pooled(lambda pooled: [pooled.score(*pair) for pair in pairs])

    def _pooled(self, ask: Callable[[PooledTexts], Answer]) -> Answer:
        try:
            pooling = POOLINGS.index(self._pooling)
            with closing(PooledTexts(self._llama, self._model, pooling, CONTEXT_TOKENS, self._threads)) as pooled:
                return ask(pooled)
        except PooledError as error:
            raise self._failure(str(error), "verify-embeddings") from error

    @property
    def has_encoder(self) -> bool:
        """Whether it is an encoder-decoder."""
        return bool(self._llama.llama_model_has_encoder(self._model))

    def _load(self) -> None:
        params = self._llama.llama_model_default_params()
        if self._library:
            params.use_cpu_only()
        else:
            params.n_gpu_layers = 0
            params.use_extra_bufts = False  # a repacked copy would cost time and twice the memory
        self._model = self._llama.llama_model_load_from_file(str(self._path).encode(), params)
        if not self._model:
            raise self._failure("does not load the model", "verify-load")
        self._vocab = self._llama.llama_model_get_vocab(self._model)

    def _context_params(self, n_tokens: int = CONTEXT_TOKENS, callback: Any = None) -> Any:
        """For batches of `n_tokens`; `callback`: cb_eval."""
        params = self._llama.llama_context_default_params()
        if self._library:
            params.set_tokens(n_tokens)
            if callback:
                params.set_callback(callback)
            return params
        params.n_ctx = params.n_batch = params.n_ubatch = n_tokens
        if callback:
            params.cb_eval = callback
        return params

    def _open_context(self) -> Any:
        context = self._llama.llama_init_from_model(self._model, self._context_params())
        if not context:
            raise self._failure("loads the model but cannot open a context on it", "verify-load")
        if self._threads:
            self._llama.llama_set_n_threads(context, self._threads, self._threads)
        return context

    def _after_text(self, tokens: list[int]) -> npt.NDArray[np.float32]:
        """Logits after every token of a text; an encoder-decoder reads the text, and repeats it in answer."""
        return self._answer(tokens, tokens[:-1]) if self.has_encoder else self._decode(tokens)

    def _answer(self, text: list[int], answer: list[int]) -> npt.NDArray[np.float32]:
        """Logits of an encoder-decoder that has read `text`, after its start token and after every token of `answer`.

        Shape (1 + tokens of the answer, vocabulary). A view: valid until the next call.
        """
        self._run(text, self._llama.llama_encode)
        return self._decode([self._llama.llama_model_decoder_start_token(self._model), *answer])

    def _decode(self, tokens: list[int]) -> npt.NDArray[np.float32]:
        """Logits of all positions, shape (tokens, vocabulary). A view: valid until the next call."""
        self._run(tokens, self._llama.llama_decode)
        n_vocab = self._llama.llama_vocab_n_tokens(self._vocab)
        return np.ctypeslib.as_array(self._llama.llama_get_logits(self._context), (len(tokens), n_vocab))

    def _run(self, tokens: list[int], function: Any) -> None:
        """Let llama.cpp encode or decode these tokens, with nothing before them."""
        self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), _CLEAR_DATA)
        if run_llama_batch(self._llama, function, self._context, tokens):
            raise self._failure("cannot run the model", "verify-logits")

    def _own_template(self) -> ChatTemplate:
        template = self._llama.llama_model_chat_template(self._model, None)
        if not template:
            raise ChatRefused("the GGUF has no chat template")
        bos, eos = self._llama.llama_vocab_bos(self._vocab), self._llama.llama_vocab_eos(self._vocab)
        return ChatTemplate(template.decode(errors="replace"), self._token_text(bos), self._token_text(eos))

    def _token_text(self, token: int) -> str:
        if token < 0:
            return ""
        return str(self._llama.llama_vocab_get_text(self._vocab, token).decode(errors="replace"))

    def _keep_log(self, _level: int, text: bytes | None, _user_data: object) -> None:
        self._log.append((text or b"").decode(errors="replace").rstrip("\n"))

    def _failure(self, what: str, kind: str) -> StageFailure:
        hint = "The end of its log says why; the usual reason is an architecture that llama.cpp does not support yet."
        detail = "\n".join(self._log)
        return StageFailure(ExitCode.UNSUPPORTED_MODEL, kind, f"llama.cpp {what}.", hint, detail)


def _llama_token_logprob(logits: npt.NDArray[np.float32], token: int) -> float:
    """Of one token, in nats; row by row, for a copy of all rows of a large vocabulary takes hundreds of megabytes."""
    rest = logits - logits.max()
    return float(rest[token]) - float(np.log(np.exp(rest).sum(dtype=np.float64)))


def _drop_llama_log(_level: int, _text: bytes | None, _user_data: object) -> None:
    """Keep nothing of the log."""
