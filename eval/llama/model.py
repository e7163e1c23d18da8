"""One GGUF loaded by llama.cpp: its vocabulary, its chat template, and what it says about itself.

Everything that makes a file unfit for measuring is found here and raised as a `StageFailure`: a file that is not
a GGUF or cut short, one with a vocabulary and no weights, an embedding model, an encoder-decoder.
"""

from __future__ import annotations

import ctypes
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Final, Self

import llama_cpp

from quantyard.formats.gguf import GgufError, GgufHeader, read_gguf_model, why_gguf_cannot_generate
from quantyard.protocol.base import ExitCode, Sha256
from quantyard.protocol.measurements import FileFacts
from quantyard.protocol.runner import StageFailure

NO_TOKEN: Final = -1  # LLAMA_TOKEN_NULL
_LOG_LINES: Final = 20
_LONGEST_PIECE: Final = 256  # bytes, to begin with


class _Log:
    """Keeps llama.cpp's last lines for error messages; the library logs to stderr otherwise."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=_LOG_LINES)
        # ctypes keeps no reference to a callback: this attribute does, as long as the process lives.
        self._callback = llama_cpp.llama_log_callback(self._keep)
        llama_cpp.llama_log_set(self._callback, ctypes.c_void_p(0))

    def _keep(self, _level: int, text: bytes, _user_data: object) -> None:
        self.lines.append(text.decode(errors="replace").rstrip("\n"))

    def failure(self, what: str, kind: str, hint: str) -> StageFailure:
        """A failure of llama.cpp with its last lines."""
        detail = "\n".join(line for line in self.lines if line)
        return StageFailure(ExitCode.UNSUPPORTED_MODEL, kind, what, hint, detail)


LOG: Final = _Log()


@dataclass
class GgufModel:
    """A model ready for contexts. Close it, or use it in a `with`."""

    path: Path
    header: GgufHeader
    handle: Any
    vocab: Any = field(init=False)
    n_vocab: int = field(init=False)

    def __post_init__(self) -> None:
        self.vocab = llama_cpp.llama_model_get_vocab(self.handle)
        self.n_vocab = int(llama_cpp.llama_vocab_n_tokens(self.vocab))

    @classmethod
    def load(cls, path: Path, n_gpu_layers: int = 0) -> GgufModel:
        """Check the file's header, then load it.

        Args:
            n_gpu_layers: layers to offload, -1 for all.

        Raises:
            StageFailure: `bad-gguf` (2), `not-a-text-model` (3), `load` (3).
        """
        header = _readable(path)
        _refuse_unfit(path, header)
        params = llama_cpp.llama_model_default_params()
        params.n_gpu_layers = n_gpu_layers if n_gpu_layers >= 0 else 2**31 - 1
        handle = llama_cpp.llama_model_load_from_file(str(header.paths[0]).encode(), params)
        if not handle:
            hint = "Its last output says why; an architecture that llama.cpp does not know yet is the usual reason."
            raise LOG.failure(f"llama.cpp does not load {path.name}.", "load", hint)
        model = cls(path, header, handle)
        model._refuse_encoder()
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
    def shares_memory(self) -> bool:
        """Whether sequences may share the memory of a common prefix.

        A recurrent state is of one sequence alone, and a sliding window forgets its beginning, so models with
        either are decoded one sequence at a time.
        """
        recurrent = llama_cpp.llama_model_is_recurrent(self.handle) or llama_cpp.llama_model_is_hybrid(self.handle)
        return not recurrent and int(llama_cpp.llama_model_n_swa(self.handle)) == 0

    @property
    def n_ctx_train(self) -> int:
        """Longest context the model was trained on, in tokens."""
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
        """Whether the metadata wants texts to begin with BOS."""
        return bool(llama_cpp.llama_vocab_get_add_bos(self.vocab))

    @property
    def chat_template(self) -> str | None:
        """The GGUF's own Jinja template."""
        text = llama_cpp.llama_model_chat_template(self.handle, None)
        return text.decode(errors="replace") if text else None

    def ends_generation(self, token: int) -> bool:
        """Whether this token ends a generation (EOS, end of turn)."""
        return bool(llama_cpp.llama_vocab_is_eog(self.vocab, token))

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool = True) -> list[int]:
        """Token ids of a text; BOS is added only if asked for and wanted, special tokens in the text are parsed."""
        data = text.encode()
        room = len(data) + 8
        for _ in range(2):  # a negative count says how much room it needs
            tokens = (llama_cpp.llama_token * room)()
            count = llama_cpp.llama_tokenize(self.vocab, data, len(data), tokens, room, add_special, parse_special)
            if count >= 0:
                return list(tokens[:count])
            room = -count
        raise LOG.failure(f"llama.cpp does not tokenize {text[:60]!r}.", "tokenize", "Report it.")

    def piece(self, token: int, *, special: bool) -> bytes:
        """The UTF-8 bytes of one token as llama-server writes it, maybe half a character; special ones if asked for.

        `llama_detokenize` would drop the first space of a SentencePiece text, and spaces before punctuation with some
        vocabularies, which a continuation must keep.
        """
        room = _LONGEST_PIECE
        while True:  # a negative count says how much room it needs
            buffer = ctypes.create_string_buffer(room)
            count = llama_cpp.llama_token_to_piece(self.vocab, token, buffer, room, 0, special)
            if count >= 0:
                return buffer.raw[:count]
            room = -count

    def special_text(self, token: int) -> str:
        """How a special token is written in texts, such as `</s>`; "" for `NO_TOKEN`."""
        return "" if token == NO_TOKEN else self.piece(token, special=True).decode(errors="replace")

    def facts(self, label: str, sha256: Sha256 | None = None) -> FileFacts:
        """The file in a report: its size on disk, bits per weight over all tensors."""
        header = self.header
        return FileFacts(
            label=label, size_bytes=header.file_size, bits_per_weight=8 * header.tensor_bytes / header.n_params,
            n_params=header.n_params, architecture=header.architecture, sha256=sha256,
        )

    def _refuse_encoder(self) -> None:
        if llama_cpp.llama_model_has_encoder(self.handle) or not llama_cpp.llama_model_has_decoder(self.handle):
            self.close()
            raise unfit_gguf_model(self.path, "it has an encoder")


def _readable(path: Path) -> GgufHeader:
    try:
        return read_gguf_model(path)
    except FileNotFoundError as error:
        message = f"{path} does not exist."
        raise StageFailure(ExitCode.BAD_REQUEST, "bad-gguf", message, "Build the model first.") from error
    except GgufError as error:
        message = f"{path.name} is not a usable GGUF: {error}."
        hint = "It may be cut short: build or download it again."
        raise StageFailure(ExitCode.BAD_REQUEST, "bad-gguf", message, hint) from error


def _refuse_unfit(path: Path, header: GgufHeader) -> None:
    if not header.tensors:
        raise unfit_gguf_model(path, "it holds a vocabulary and no weights")
    if reason := why_gguf_cannot_generate(header):
        raise unfit_gguf_model(path, reason)


def unfit_gguf_model(path: Path, reason: str) -> StageFailure:
    """The failure for a file that has no next-token probabilities."""
    message = f"{path.name} cannot be measured as a language model: {reason}."
    hint = "Only models that predict the next token have scores; choose a text-generation model."
    return StageFailure(ExitCode.UNSUPPORTED_MODEL, "not-a-text-model", message, hint)
