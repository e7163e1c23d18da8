"""llama-imatrix reimplemented on llama-cpp-python, as a `MatrixReader`: the local engine does not have the tool.

llama.cpp passes the result of every requested matrix multiplication to a callback, which squares the inputs of each
weight and sums them, row by row in single precision. Source: llama.cpp's tools/imatrix/imatrix.cpp.

llama-imatrix ends itself on an encoder-decoder, so these are read here on both engines: the encoder reads the first
half of each chunk, with the EOS that ends its texts, and the decoder the second half, which is what is scored.
"""

from __future__ import annotations

import ctypes
import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import numpy.typing as npt

from builder.imatrix.matrix import imatrix_values, read_imatrix
from builder.imatrix.reader import ImatrixLeg, LegLoss, imatrix_not_finite
from builder.llama.bindings_runtime import BindingsRuntime
from quantyard.llama.library import LlamaLibrary
from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure

_LEAST_ROWS: Final = 16  # llama-imatrix ignores smaller products
_F32: Final = 0  # ggml_type

Floats = npt.NDArray[np.float32]


class _Tensor(ctypes.Structure):
    """ggml_tensor (ggml.h)."""


_Pointer = ctypes.POINTER(_Tensor)
_Tensor._fields_ = (  # `src` and `view_src` refer to the class itself, so the fields are set after it exists
    ("type", ctypes.c_int), ("buffer", ctypes.c_void_p), ("ne", ctypes.c_int64 * 4), ("nb", ctypes.c_size_t * 4),
    ("op", ctypes.c_int), ("op_params", ctypes.c_int32 * 16), ("flags", ctypes.c_int32), ("src", _Pointer * 10),
    ("view_src", _Pointer), ("view_offs", ctypes.c_size_t), ("data", ctypes.c_void_p), ("name", ctypes.c_char * 64),
)  # fmt: skip


@dataclass
class Sums:
    """Statistics of one weight: sums of squared inputs, shape (matrices, row length), and tokens, shape (matrices,)."""

    squares: Floats
    counts: npt.NDArray[np.int64]


class ImatrixCollector:
    """The callback and the sums it has collected so far."""

    def __init__(self, library: LlamaLibrary | None = None) -> None:
        self.sums: dict[str, Sums] = {}
        self.problem: StageFailure | None = None  # raised later: an exception cannot pass through llama.cpp
        self._ggml: Any = library or importlib.import_module("llama_cpp._ggml").libggml
        self._ggml.ggml_op_desc.restype = self._ggml.ggml_get_name.restype = ctypes.c_char_p
        self._ggml.ggml_op_desc.argtypes = self._ggml.ggml_get_name.argtypes = [ctypes.c_void_p]

    def load(self, path: Path) -> None:
        """Continue from the sums of an earlier matrix."""
        for name, entry in read_imatrix(path).entries.items():
            counts = entry.counts
            self.sums[name] = Sums(imatrix_values(entry.sums).reshape(len(counts), -1), counts.astype(np.int64))

    def save(self, path: Path, text: str, n_chunks: int, chunk_tokens: int) -> None:
        """Write the matrix as llama-imatrix does: a GGUF, tensors in the order of their names."""
        gguf = importlib.import_module("gguf")
        writer = gguf.GGUFWriter(path, "")
        writer.kv_data[0].pop("general.architecture", None)  # the file is not a model
        writer.add_type("imatrix")
        writer.add_array("imatrix.datasets", [text])
        writer.add_uint32("imatrix.chunk_count", n_chunks)
        writer.add_uint32("imatrix.chunk_size", chunk_tokens)
        for name, found in sorted(self.sums.items()):
            counts = found.counts.astype(np.float32)[:, None]
            writer.add_tensor(f"{name}.in_sum2", found.squares[0] if len(counts) == 1 else found.squares)
            writer.add_tensor(f"{name}.counts", counts[0] if len(counts) == 1 else counts)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    def see(self, address: int, asking: bool, _user_data: object) -> bool:
        """llama.cpp's cb_eval: with `asking`, whether the result is wanted; later, with the result, False aborts."""
        tensor, kind = ctypes.cast(address, _Pointer).contents, self._ggml.ggml_op_desc(address)
        # ggml does not promise the layout of its struct. `name` is its last field that is read here: if it is where
        # we expect it, so are the others.
        if tensor.name != self._ggml.ggml_get_name(address):
            self.problem = self.problem or _other_activation_layout()
        elif asking:
            return bool(kind == b"MUL_MAT_ID" or (kind == b"MUL_MAT" and self._wanted(tensor)))
        else:
            self._add(tensor, with_experts=kind == b"MUL_MAT_ID")
        return self.problem is None

    def _wanted(self, tensor: _Tensor) -> bool:
        weight, inputs = tensor.src[0].contents, tensor.src[1].contents
        name = _imatrix_weight_name(weight.name).removeprefix("enc.").removeprefix("dec.")
        return inputs.type == _F32 and inputs.ne[1] >= _LEAST_ROWS and name.startswith("blk.")

    def _add(self, product: _Tensor, *, with_experts: bool) -> None:
        weight, inputs = product.src[0].contents, product.src[1].contents
        name = _imatrix_weight_name(weight.name)
        rows = _strided_activations(inputs, np.float32)  # (…, tokens, row length)
        if with_experts:
            self._add_experts(
                name, weight.ne[2], rows[0], _strided_activations(product.src[2].contents, np.int32)[0, 0]
            )
            return
        n_matrices = weight.ne[2] * weight.ne[3]
        found = self._of(name, n_matrices, 1, rows.shape[-1])
        for i3, plane in enumerate(rows):
            for i2, matrix in enumerate(plane):
                at = (i3 % weight.ne[3]) * weight.ne[2] + i2 % weight.ne[2]
                self._accumulate(name, found, at, matrix)
        found.counts += rows.size // rows.shape[-1] // n_matrices

    def _add_experts(self, name: str, n_experts: int, rows: Floats, ids: npt.NDArray[np.int32]) -> None:
        """`rows` has shape (tokens, experts used or 1, row length), `ids` (tokens, experts used)."""
        found = self._of(name, n_experts, n_experts, rows.shape[-1])
        columns = np.arange(ids.shape[1]) % rows.shape[1]
        for expert in np.unique(ids):
            # Slot by slot, and token by token within each: the order of llama-imatrix, so that float sums are equal.
            slots, tokens = np.nonzero(expert == ids.T)
            self._accumulate(name, found, int(expert), rows[tokens, columns[slots]])
            found.counts[expert] += len(tokens)

    def _of(self, name: str, n_matrices: int, n_counts: int, length: int) -> Sums:
        if name not in self.sums:
            shape = (n_counts, n_matrices * length // n_counts)
            self.sums[name] = Sums(np.zeros(shape, np.float32), np.zeros(n_counts, np.int64))
        return self.sums[name]

    def _accumulate(self, name: str, found: Sums, at: int, rows: Floats) -> None:
        squares = found.squares.reshape(-1, rows.shape[-1])
        squares[at] = np.add.reduce(np.concatenate([squares[at : at + 1], np.square(rows)]), axis=0)
        if not np.isfinite(squares[at]).all():
            self.problem = self.problem or imatrix_not_finite(f"a value that is not a number in the inputs of {name}")


class LocalReader(BindingsRuntime):
    """A model in this process that reads chunks of a text while an `ImatrixCollector` sums its activations."""

    def __init__(self, model: Path, threads: int, n_ctx: int, library: str | None = None) -> None:
        super().__init__(model, threads, library)
        self._n_ctx = n_ctx

    def __enter__(self) -> Self:
        super().__enter__()
        self._collector = ImatrixCollector(self._llama if self._library else None)
        self._see = self._llama.ggml_backend_sched_eval_callback(self._collector.see)
        self._context = self._open_context()
        return self

    def leg_argv(self, text: Path, leg: ImatrixLeg) -> tuple[str, ...]:
        """See `MatrixReader`. There is no command line: the function called, the text, and its chunks."""
        return ("llama_decode", str(self._path), str(text), str(leg.start), str(leg.end), str(self._threads))

    def read(self, text: Path, leg: ImatrixLeg) -> LegLoss:
        """See `MatrixReader`."""
        self._collector.sums.clear()
        if leg.before:
            self._collector.load(leg.before)
        tokens, n_ctx = self.tokenize(text.read_text(encoding="utf-8"), add_special=True), self._n_ctx
        losses = [self._chunk(tokens[at * n_ctx : (at + 1) * n_ctx]) for at in range(leg.start, leg.end)]
        self._collector.save(leg.out, text.name, leg.end, n_ctx)
        return LegLoss(len(losses), sum(losses) / len(losses))

    def _chunk(self, tokens: list[int]) -> float:
        """Decode one chunk; returns the mean negative loglikelihood of its second half, in nats."""
        first = len(tokens) // 2
        if self.has_encoder:
            return self._loss(self._answered(tokens[:first], tokens[first:]), tokens[first:])
        asked = list(tokens)
        if self._llama.llama_vocab_get_add_bos(self._vocab):
            asked[0] = self._llama.llama_vocab_bos(self._vocab)
        return self._loss(self._decode(asked)[first:-1], tokens[first + 1 :])

    def _answered(self, text: list[int], answer: list[int]) -> Floats:
        """The rows of an encoder-decoder before each token of `answer`."""
        if self._llama.llama_vocab_get_add_eos(self._vocab):
            text = [*text, self._llama.llama_vocab_eos(self._vocab)]
        return self._answer(text, answer[:-1])

    def _loss(self, rows: Floats, targets: list[int]) -> float:
        """The mean negative loglikelihood of the targets, each by its row of logits, in nats."""
        if self._collector.problem:
            raise self._collector.problem
        logits = rows.astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        chosen = logits[np.arange(len(logits)), targets]
        return float((np.log(np.exp(logits).sum(axis=1)) - chosen).mean())

    def _context_params(self, n_tokens: int = 0, callback: Any = None) -> Any:
        return super()._context_params(n_tokens or self._n_ctx, callback or self._see)


def _other_activation_layout() -> StageFailure:
    message = "The installed llama-cpp-python has another layout of ggml_tensor than Quantyard supports."
    hint = "Install the pinned version: make images ENGINE=local. Or compute the matrix with ENGINE=docker."
    return StageFailure(ExitCode.UNSUPPORTED_MODEL, "calibrate", message, hint)


def _imatrix_weight_name(name: bytes) -> str:
    """`CUDA0#blk.0.attn_k.weight#0` is a copy of `blk.0.attn_k.weight`."""
    text = name.decode(errors="replace")
    return text.split("#")[1] if "#" in text else text


def _strided_activations(tensor: _Tensor, kind: type[np.generic]) -> Any:
    """The values of a tensor in the CPU's memory, outermost dimension first. A view."""
    shape, strides = tuple(tensor.ne)[::-1], tuple(tensor.nb)[::-1]
    n_bytes = sum((n - 1) * step for n, step in zip(shape, strides, strict=True)) + np.dtype(kind).itemsize
    data = (ctypes.c_char * n_bytes).from_address(tensor.data)
    return np.ndarray(shape, kind, data, strides=strides)
