"""llama.cpp's shared library, the one that its programs use, with the functions that `llama_cpp` has in Python.

An image has no llama-cpp-python, but the library; that package carries one too. `LlamaLibrary` takes the place of the
module for those who run encoder-decoders, and for the twin. Only the standard library is imported: the twin's script
runs in the converter's Python.

The structs of parameters are passed by value and differ between versions, so no version's layout is written here. They
are blocks larger than any of them: a C function returns a struct of that size through a pointer and reads no more of
an argument than it knows. Four facts of the layout are used: a model's parameters begin with the list of devices, a
context's with n_ctx, n_batch, n_ubatch (`llama_n_ctx` then says so), and two places are found by their defaults: the
types of the KV cache (F16, after two null pointers, the first of them cb_eval), and flash attention (auto, after three
others that are).
"""

from __future__ import annotations

import ctypes
import importlib.util
import os
import struct
from collections import deque
from collections.abc import Callable, Container, Sequence
from pathlib import Path
from typing import Any, Final

_ROOM_BYTES: Final = 2048  # larger than any version's parameters; they have about 200 bytes
_F32: Final = 0
_LOG_LINES: Final = 20
_KV_DEFAULT: Final = struct.pack("@PPii", 0, 0, 1, 1)  # cb_eval, its data, then type_k and type_v: F16
_KINDS_DEFAULT: Final = struct.pack("@iii", -1, -1, -1)  # rope scaling, pooling, attention; flash attention follows
_AUTO: Final = -1


class UnknownLayout(Exception):
    """The parameters of this version are not laid out as any that is known."""


class ModelParams(ctypes.Structure):
    """`llama_model_params`, on the CPU alone."""

    _fields_ = (("block", ctypes.c_ubyte * _ROOM_BYTES),)
    _no_device = (ctypes.c_void_p * 1)(None)

    def use_cpu_only(self) -> None:
        """Offer no device. It takes the place of `n_gpu_layers`."""
        struct.pack_into("@P", self.block, 0, ctypes.addressof(self._no_device))


class ContextParams(ctypes.Structure):
    """`llama_context_params`: what can be set of it."""

    _fields_ = (("block", ctypes.c_ubyte * _ROOM_BYTES),)
    # The places are known by their defaults, so they are found before these are changed.
    _kv_at: int | None = None
    _kinds_at: int | None = None

    def set_tokens(self, n_tokens: int) -> None:
        """The size of the context, of a batch, and of what is computed at once."""
        struct.pack_into("@III", self.block, 0, n_tokens, n_tokens, n_tokens)

    def set_callback(self, callback: Any) -> None:
        """`cb_eval`, which sees every tensor that is computed."""
        struct.pack_into("@P", self.block, self._kv_place(), ctypes.cast(callback, ctypes.c_void_p).value)

    def set_full_precision(self) -> None:
        """A KV cache in 32 bits, and no flash attention."""
        at = self._kv_place()
        struct.pack_into("@ii", self.block, at + 16, _F32, _F32)
        flash = self._kinds_place() + len(_KINDS_DEFAULT)
        if struct.unpack_from("@i", self.block, flash)[0] == _AUTO:  # older ones have a truth value, which is off
            struct.pack_into("@i", self.block, flash, 0)

    def set_embeddings(self, pooling: int = 0) -> None:
        """The hidden state of each token, or pooled in this way (a `llama_pooling_type`)."""
        struct.pack_into("@i", self.block, self._kinds_place() + 4, pooling)

    def _kv_place(self) -> int:
        if self._kv_at is None:
            at = bytes(self.block).find(_KV_DEFAULT)
            if at < 0:
                raise UnknownLayout("llama.cpp has parameters of a layout that is not known")
            self._kv_at = at
        return self._kv_at

    def _kinds_place(self) -> int:
        if self._kinds_at is None:
            at = bytes(self.block[: self._kv_place()]).find(_KINDS_DEFAULT)
            if at < 0:
                raise UnknownLayout("llama.cpp has parameters of a layout that is not known")
            self._kinds_at = at
        return self._kinds_at


class Batch(ctypes.Structure):
    """`llama_batch`."""

    _fields_ = (
        ("n_tokens", ctypes.c_int32),
        ("token", ctypes.POINTER(ctypes.c_int32)),
        ("embd", ctypes.POINTER(ctypes.c_float)),
        ("pos", ctypes.POINTER(ctypes.c_int32)),
        ("n_seq_id", ctypes.POINTER(ctypes.c_int32)),
        ("seq_id", ctypes.POINTER(ctypes.POINTER(ctypes.c_int32))),
        ("logits", ctypes.POINTER(ctypes.c_int8)),
    )


LogCallback = ctypes.CFUNCTYPE(None, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)
EvalCallback = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_bool, ctypes.c_void_p)
_P, _I, _TEXT, _YES, _REAL = ctypes.c_void_p, ctypes.c_int32, ctypes.c_char_p, ctypes.c_bool, ctypes.c_float
_IDS: Final = ctypes.POINTER(ctypes.c_int32)
# To use one more function: its name, the type of its result, those of its arguments.
_FUNCTIONS: Final[dict[str, tuple[Any, list[Any]]]] = {
    "llama_log_set": (None, [LogCallback, _P]),
    "llama_backend_init": (None, []),
    "llama_model_default_params": (ModelParams, []),
    "llama_context_default_params": (ContextParams, []),
    "llama_model_load_from_file": (_P, [_TEXT, ModelParams]),
    "llama_init_from_model": (_P, [_P, ContextParams]),
    "llama_model_free": (None, [_P]),
    "llama_free": (None, [_P]),
    "llama_n_ctx": (ctypes.c_uint32, [_P]),
    "llama_set_n_threads": (None, [_P, _I, _I]),
    "llama_model_get_vocab": (_P, [_P]),
    "llama_model_has_encoder": (_YES, [_P]),
    "llama_model_decoder_start_token": (_I, [_P]),
    "llama_model_chat_template": (_TEXT, [_P, _TEXT]),
    "llama_vocab_n_tokens": (_I, [_P]),
    "llama_vocab_bos": (_I, [_P]),
    "llama_vocab_eos": (_I, [_P]),
    "llama_vocab_get_add_bos": (_YES, [_P]),
    "llama_vocab_get_add_eos": (_YES, [_P]),
    "llama_vocab_get_text": (_TEXT, [_P, _I]),
    "llama_tokenize": (_I, [_P, _TEXT, _I, _IDS, _I, _YES, _YES]),
    "llama_get_memory": (_P, [_P]),
    "llama_memory_clear": (None, [_P, _YES]),
    "llama_batch_init": (Batch, [_I, _I, _I]),
    "llama_batch_free": (None, [Batch]),
    "llama_encode": (_I, [_P, Batch]),
    "llama_decode": (_I, [_P, Batch]),
    "llama_get_logits": (ctypes.POINTER(ctypes.c_float), [_P]),
    "llama_model_n_ctx_train": (_I, [_P]),
    "llama_vocab_is_eog": (_YES, [_P, _I]),
    "llama_token_to_piece": (_I, [_P, _I, _TEXT, _I, _I, _YES]),
    "llama_sampler_chain_init": (_P, [_YES]),  # llama_sampler_chain_params has one field, no_perf
    "llama_sampler_chain_add": (None, [_P, _P]),
    "llama_sampler_init_greedy": (_P, []),
    "llama_sampler_init_dist": (_P, [ctypes.c_uint32]),
    "llama_sampler_init_top_k": (_P, [_I]),
    "llama_sampler_init_top_p": (_P, [_REAL, ctypes.c_size_t]),
    "llama_sampler_init_min_p": (_P, [_REAL, ctypes.c_size_t]),
    "llama_sampler_init_temp": (_P, [_REAL]),
    "llama_sampler_init_penalties": (_P, [_I, _REAL, _REAL, _REAL]),
    "llama_sampler_sample": (_I, [_P, _P, _I]),
    "llama_sampler_free": (None, [_P]),
    "llama_get_logits_ith": (ctypes.POINTER(ctypes.c_float), [_P, _I]),
    "llama_set_embeddings": (None, [_P, _YES]),
    "llama_get_embeddings_ith": (ctypes.POINTER(ctypes.c_float), [_P, _I]),
    "llama_get_embeddings_seq": (ctypes.POINTER(ctypes.c_float), [_P, _I]),
    "llama_model_n_embd": (_I, [_P]),
}


class LlamaLibrary:
    """The library: its functions, and the types of `llama_cpp` by their names there."""

    llama_token = ctypes.c_int32
    llama_log_callback = LogCallback
    ggml_backend_sched_eval_callback = EvalCallback

    def __init__(self, name: str) -> None:
        self._c = ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
        for function, (result, arguments) in _FUNCTIONS.items():
            getattr(self._c, function).restype = result
            getattr(self._c, function).argtypes = arguments
        _load_llama_back_ends(self._c, Path(name).parent)
        self._c.llama_backend_init()

    def __getattr__(self, name: str) -> Any:
        """A function of the library, or of a library that it loaded (`ggml_…`)."""
        return getattr(self._c, name)


_LOG_CALLBACKS: Final[list[Any]] = []


def set_llama_log(llama: Any, keep: Callable[[int, bytes | None, object], None]) -> None:
    """Hand each piece of llama.cpp's log to a function, until another is set.

    The log belongs to the process: llama.cpp keeps the pointer, calls it for every model there is, and at exit. ctypes
    frees a callback that nothing refers to, so each one is kept here for the life of the process.

    Args:
        llama: a `LlamaLibrary`, or the module `llama_cpp`.
        keep: takes the level, the text in UTF-8, and nothing else of use.
    """
    callback = llama.llama_log_callback(keep)
    _LOG_CALLBACKS.append(callback)
    llama.llama_log_set(callback, ctypes.c_void_p(0))


class LogTail:
    """The end of what llama.cpp says, which tells why something failed."""

    def __init__(self, llama: LlamaLibrary) -> None:
        self._lines: deque[str] = deque(maxlen=_LOG_LINES)
        set_llama_log(llama, self._keep)

    def _keep(self, _level: int, text: bytes | None, _user_data: object) -> None:
        self._lines.append((text or b"").decode(errors="replace"))

    def words(self, most: int = 600) -> str:
        """The last characters, in one line."""
        return " ".join("".join(self._lines).split())[-most:]


def llama_tokens(llama: Any, vocab: Any, data: bytes, *, add_special: bool) -> list[int] | None:
    """Token ids of a text in UTF-8, special tokens in it parsed; None if llama.cpp gives none.

    Args:
        llama: a `LlamaLibrary`, or the module `llama_cpp`.
    """
    room = len(data) + 8
    for _ in range(2):  # a negative count is the room it needs, negated
        tokens = (llama.llama_token * room)()
        count = llama.llama_tokenize(vocab, data, len(data), tokens, room, add_special, True)
        if count >= 0:
            return list(tokens[:count])
        room = -count
    return None


def run_llama_batch(
    llama: Any, function: Any, context: Any, tokens: Sequence[int], start: int = 0, wanted: Container[int] | None = None
) -> int:
    """Run `llama_encode` or `llama_decode` on tokens of one sequence; returns its code, 0 if it did.

    Args:
        llama: a `LlamaLibrary`, or the module `llama_cpp`.
        start: the position of the first token.
        wanted: the indexes of the tokens whose logits are wanted; None: all of them, while llama.cpp's default is the
            last.
    """
    batch = llama.llama_batch_init(len(tokens), 0, 1)
    try:
        batch.n_tokens = len(tokens)
        for i, token in enumerate(tokens):
            batch.token[i], batch.pos[i] = token, start + i
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
            batch.logits[i] = wanted is None or i in wanted
        return int(function(context, batch))
    finally:
        llama.llama_batch_free(batch)


def llama_library_path(llama_bin: Path | None) -> str:
    """The library of the programs in this folder, or where the loader finds it; None: that of llama-cpp-python."""
    if llama_bin is not None:
        found = sorted(llama_bin.glob("libllama.so*"))
        return str(found[0]) if found else "libllama.so.0"
    spec = importlib.util.find_spec("llama_cpp")
    folder = Path(spec.origin).parent / "lib" if spec and spec.origin else Path()
    found = sorted(path for path in folder.glob("libllama.*") if path.suffix in (".so", ".dylib"))
    return str(found[0]) if found else "libllama.so"


def _load_llama_back_ends(library: Any, folder: Path) -> None:
    """Builds for many CPUs keep the code of each in a library of its own."""
    if not hasattr(library, "ggml_backend_load_all"):
        return
    library.ggml_backend_load_all.restype = None
    library.ggml_backend_load_all()
    if folder.is_absolute() and not library.ggml_backend_dev_count():
        library.ggml_backend_load_all_from_path(os.fsencode(folder))
