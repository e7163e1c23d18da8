"""One GGUF loaded by llama.cpp: its vocabulary, its chat template, and its metadata.

Files that cannot be measured are refused here with a `StageFailure`: a file that is not a GGUF or is truncated, one
with a vocabulary but no weights, an embedding model.
"""

from __future__ import annotations

import ctypes
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import llama_cpp

from quantyard.formats.gguf import GgufError, GgufHeader, read_gguf_model, why_gguf_cannot_generate
from quantyard.llama.library import set_llama_log
from quantyard.protocol.base import ExitCode, Sha256
from quantyard.protocol.runner import StageFailure
from quantyard.protocol.task_results import FileFacts

NO_TOKEN: Final = -1  # LLAMA_TOKEN_NULL
_LOG_LINES: Final = 20
_LONGEST_PIECE: Final = 256  # bytes; the first try, grown if a token is longer


class _Log:
    """Keeps llama.cpp's last log lines for error messages; by default the library writes them to stderr."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=_LOG_LINES)
        self._listener: Callable[[str], None] | None = None
        set_llama_log(llama_cpp, self._keep)

    def _keep(self, _level: int, text: bytes | None, _user_data: object) -> None:
        line = (text or b"").decode(errors="replace").rstrip("\n")
        self.lines.append(line)
        if self._listener is not None:
            self._listener(line)

    @contextmanager
    def heard_by(self, listener: Callable[[str], None]) -> Iterator[None]:
        """Hand every line to a function, too: the kept ones are the last of many."""
        set_llama_log(llama_cpp, self._keep)  # other code of the process may have set it since
        self._listener = listener
        try:
            yield
        finally:
            self._listener = None

    def failure(self, what: str, kind: str, hint: str) -> StageFailure:
        """A `StageFailure` with llama.cpp's last log lines."""
        detail = "\n".join(line for line in self.lines if line)
        return StageFailure(ExitCode.UNSUPPORTED_MODEL, kind, what, hint, detail)


LOG: Final = _Log()


@dataclass
class GgufModel:
    """A loaded model. Close it, or use it in a `with`."""

    path: Path
    header: GgufHeader
    handle: Any
    vocab: Any = field(init=False)
    n_vocab: int = field(init=False)

    def __post_init__(self) -> None:
        self.vocab = llama_cpp.llama_model_get_vocab(self.handle)
        self.n_vocab = int(llama_cpp.llama_vocab_n_tokens(self.vocab))

    @classmethod
    def load(cls, path: Path, n_gpu_layers: int = 0, *, generates: bool = True) -> GgufModel:
        """Check the file's header, then load it.

        Args:
            n_gpu_layers: layers to offload, -1 for all.
            generates: refuse what does not predict the next token.

        Raises:
            StageFailure: `bad-gguf` (2), `not-a-text-model` (3), `load` (3).
        """
        header = _read_eval_gguf(path)
        _refuse_unfit_eval_model(path, header, generates=generates)
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers if n_gpu_layers >= 0 else 2**31 - 1
        handle = llama_cpp.llama_model_load_from_file(str(header.paths[0]).encode(), params)
        if not handle:
            hint = "Its last output says why; the usual reason is an architecture that llama.cpp does not support yet."
            raise LOG.failure(f"llama.cpp does not load {path.name}.", "load", hint)
        model = cls(path, header, handle)
        if generates:
            model._refuse_encoder_alone()
        return model

    def close(self) -> None:
        """Free the weights."""
        if self.handle:
            llama_cpp.llama_model_free(self.handle)
            self.handle = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    @property
    def has_states(self) -> bool:
        """Whether sequences have a state (recurrent and hybrid models): it can be copied at its end alone, where KV
        cells of a common prefix can be shared up to any token.
        """
        recurrent = llama_cpp.llama_model_is_recurrent(self.handle) or llama_cpp.llama_model_is_hybrid(self.handle)
        return bool(recurrent)

    @property
    def has_window(self) -> bool:
        """Whether some layers see the last tokens alone."""
        return int(llama_cpp.llama_model_n_swa(self.handle)) > 0

    @property
    def has_encoder(self) -> bool:
        """Whether it is an encoder-decoder: the encoder reads a text, and the decoder writes the answer to it."""
        return bool(llama_cpp.llama_model_has_encoder(self.handle))

    @property
    def decoder_start(self) -> int:
        """The token that an encoder-decoder's decoder begins with; BOS where the file names none."""
        token = int(llama_cpp.llama_model_decoder_start_token(self.handle))
        return token if token != NO_TOKEN else self.bos

    @property
    def n_ctx_train(self) -> int:
        """The longest context that the model was trained on, in tokens."""
        return int(llama_cpp.llama_model_n_ctx_train(self.handle))

    @property
    def bos(self) -> int:
        """The BOS token, or `NO_TOKEN`."""
        return int(llama_cpp.llama_vocab_bos(self.vocab))

    @property
    def eos(self) -> int:
        """The EOS token, or `NO_TOKEN`."""
        return int(llama_cpp.llama_vocab_eos(self.vocab))

    @property
    def adds_bos(self) -> bool:
        """Whether the metadata says that texts begin with BOS."""
        return bool(llama_cpp.llama_vocab_get_add_bos(self.vocab))

    @property
    def adds_eos(self) -> bool:
        """Whether the metadata says that texts end with EOS."""
        return bool(llama_cpp.llama_vocab_get_add_eos(self.vocab))

    @property
    def chat_template(self) -> str | None:
        """The GGUF's own Jinja template."""
        text = llama_cpp.llama_model_chat_template(self.handle, None)
        return text.decode(errors="replace") if text else None

    def ends_generation(self, token: int) -> bool:
        """Whether this token ends a generation (EOS, end of turn)."""
        return bool(llama_cpp.llama_vocab_is_eog(self.vocab, token))

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool = True) -> list[int]:
        """Token ids of a text; `add_special` adds BOS and EOS as the metadata says."""
        data = text.encode()
        room = len(data) + 8
        for _ in range(2):  # a negative count is the room it needs, negated
            tokens = (llama_cpp.llama_token * room)()
            count = llama_cpp.llama_tokenize(self.vocab, data, len(data), tokens, room, add_special, parse_special)
            if count >= 0:
                return list(tokens[:count])
            room = -count
        raise LOG.failure(f"llama.cpp does not tokenize {text[:60]!r}.", "tokenize", "Report it.")

    def with_bos(self, tokens: list[int]) -> list[int]:
        """The tokens of a text after BOS, if there is one and they do not begin with it."""
        return [self.bos, *tokens] if self.bos != NO_TOKEN and tokens[:1] != [self.bos] else tokens

    def piece(self, token: int, *, special: bool) -> bytes:
        """The bytes of one token as llama-server writes it, perhaps a part of a UTF-8 character.

        Special tokens give no bytes unless `special` is set. `llama_detokenize` cannot be used: it drops the first
        space of a SentencePiece text and, with some vocabularies, spaces before punctuation.
        """
        room = _LONGEST_PIECE
        while True:  # a negative count is the room it needs, negated
            buffer = ctypes.create_string_buffer(room)
            count = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, room, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def special_text(self, token: int) -> str:
        """The text of a special token, such as `</s>`; "" for `NO_TOKEN`."""
        return "" if token == NO_TOKEN else self.piece(token, special=True).decode(errors="replace")

    def facts(self, label: str, sha256: Sha256 | None = None) -> FileFacts:
        """The file's facts for a report; bits per weight are those of all tensors together."""
        header = self.header
        return FileFacts(
            label=label, size_bytes=header.file_size, bits_per_weight=8 * header.tensor_bytes / header.n_params,
            n_params=header.n_params, architecture=header.architecture, sha256=sha256,
        )

    def _refuse_encoder_alone(self) -> None:
        if not llama_cpp.llama_model_has_decoder(self.handle):
            self.close()
            raise unfit_gguf_model(self.path, "it has an encoder only")


def _read_eval_gguf(path: Path) -> GgufHeader:
    try:
        return read_gguf_model(path)
    except FileNotFoundError as error:
        message = f"{path} does not exist."
        raise StageFailure(ExitCode.BAD_REQUEST, "bad-gguf", message, "Build the model first.") from error
    except GgufError as error:
        message = f"{path.name} is not a usable GGUF: {error}."
        hint = "It may be truncated: build or download it again."
        raise StageFailure(ExitCode.BAD_REQUEST, "bad-gguf", message, hint) from error


def _refuse_unfit_eval_model(path: Path, header: GgufHeader, *, generates: bool) -> None:
    if not header.tensors:
        raise unfit_gguf_model(path, "it has a vocabulary but no weights")
    if generates and (reason := why_gguf_cannot_generate(header)):
        raise unfit_gguf_model(path, reason)


def unfit_gguf_model(path: Path, reason: str) -> StageFailure:
    """The failure for a file that does not give next-token probabilities."""
    message = f"{path.name} cannot be measured as a language model: {reason}."
    hint = "Only models that predict the next token can be measured: choose a text-generation model."
    return StageFailure(ExitCode.UNSUPPORTED_MODEL, "not-a-text-model", message, hint)
