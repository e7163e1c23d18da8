"""Quantizes the tiny model's safetensors in the forms that people publish; what it then stands for comes with it."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from quantyard.formats.safetensors import read_safetensors_file

Array = npt.NDArray[Any]
Stored = dict[str, tuple[str, Array]]  # name → dtype of the header, and its values
_GROUP = 32


@dataclass(frozen=True)
class Form:
    """How a projection is stored: its tensors, and the weights that they stand for."""

    said: Mapping[str, Any]  # quantization_config
    store: Callable[[str, Array], tuple[Stored, Array]]


def _bfloat16(values: Array) -> Array:
    return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)


def _floats(stored: Array) -> Array:
    return (stored.astype(np.uint32) << 16).view(np.float32)


def _fp8(codes: Array) -> Array:
    """E4M3: the value of each byte."""
    sign, exponent, mantissa = np.where(codes >> 7, -1.0, 1.0), (codes >> 3) & 15, codes & 7
    normal = (1 + mantissa / 8) * 2.0 ** (exponent.astype(np.int32) - 7)
    return (sign * np.where(exponent == 0, mantissa / 8 * 2.0**-6, normal)).astype(np.float32)


_CODES = np.array([code for code in range(256) if code & 127 != 127], np.uint8)  # without NaN


def _to_fp8(values: Array) -> Array:
    order = np.argsort(_fp8(_CODES), kind="stable")
    places = np.searchsorted(_fp8(_CODES)[order], values).clip(0, len(order) - 1)
    return np.asarray(_CODES[order][places], np.uint8)


def _fp8_blocks(module: str, weight: Array) -> tuple[Stored, Array]:
    """DeepSeek's: one scale for each block of 128 × 128."""
    rows, row = weight.shape
    scale = np.full((-(-rows // 128), -(-row // 128)), 2.0**-9 * 1.25, np.float32)
    codes = _to_fp8(weight / scale[0, 0])
    stored: Stored = {f"{module}.weight": ("F8_E4M3", codes), f"{module}.weight_scale_inv": ("F32", scale)}
    return stored, _fp8(codes) * scale[0, 0]


def _fp8_rows(module: str, weight: Array) -> tuple[Stored, Array]:
    """compressed-tensors: one scale for each row."""
    scale = _floats(_bfloat16(np.abs(weight).max(axis=1, keepdims=True) / 400))
    codes = _to_fp8(weight / scale)
    stored: Stored = {f"{module}.weight": ("F8_E4M3", codes), f"{module}.weight_scale": ("BF16", _bfloat16(scale))}
    return stored, _fp8(codes) * scale


def _fp8_modelopt(module: str, weight: Array) -> tuple[Stored, Array]:
    """ModelOpt: one scale for the tensor, and one for its inputs, which no GGUF has."""
    scale = np.array(np.abs(weight).max() / 400, np.float32)
    codes = _to_fp8(weight / scale)
    stored: Stored = {
        f"{module}.weight": ("F8_E4M3", codes), f"{module}.weight_scale": ("F32", scale),
        f"{module}.input_scale": ("F32", scale),
    }  # fmt: skip
    return stored, _fp8(codes) * scale


def _int8_rows(module: str, weight: Array) -> tuple[Stored, Array]:
    """compressed-tensors: 8-bit integers, one scale for each row."""
    scale = _floats(_bfloat16(np.abs(weight).max(axis=1, keepdims=True) / 120))
    levels = np.round(weight / scale).astype(np.int8)
    stored: Stored = {f"{module}.weight": ("I8", levels), f"{module}.weight_scale": ("BF16", _bfloat16(scale))}
    return stored, levels.astype(np.float32) * scale


def _levels(weight: Array) -> tuple[Array, Array]:
    """4-bit levels from 0 to 15 around 8, and a scale for each group of a row."""
    groups = weight.reshape(len(weight), -1, _GROUP)
    scale = (np.abs(groups).max(axis=2) / 7).astype(np.float16).astype(np.float32)
    levels = (np.round(groups / scale[..., None]) + 8).clip(0, 15).astype(np.uint32)
    return levels.reshape(weight.shape), scale


def _packed(levels: Array) -> Array:
    """Eight to a word, the first lowest, along the last axis."""
    shifts = np.arange(0, 32, 4, dtype=np.uint32)
    words = levels.reshape(*levels.shape[:-1], -1, 8) << shifts
    return np.asarray(np.bitwise_or.reduce(words, axis=-1), np.uint32).view(np.int32)


def _unpacked(levels: Array, scale: Array) -> Array:
    return (levels.astype(np.float32) - 8) * np.repeat(scale, _GROUP, axis=1)


def _gptq(module: str, weight: Array) -> tuple[Stored, Array]:
    levels, scale = _levels(weight)
    zeros = np.full((scale.shape[1], len(weight)), 7, np.uint32)  # one less than the zero, as GPTQ writes it
    order = (np.arange(weight.shape[1]) // _GROUP).astype(np.int32)
    stored: Stored = {
        f"{module}.qweight": ("I32", _packed(levels).T), f"{module}.qzeros": ("I32", _packed(zeros)),
        f"{module}.scales": ("F16", scale.T.astype(np.float16)), f"{module}.g_idx": ("I32", order),
    }  # fmt: skip
    return stored, _unpacked(levels, scale)


def _pack_quantized(module: str, weight: Array) -> tuple[Stored, Array]:
    levels, scale = _levels(weight)
    scale = _floats(_bfloat16(scale))
    stored: Stored = {
        f"{module}.weight_packed": ("I32", _packed(levels)), f"{module}.weight_scale": ("BF16", _bfloat16(scale)),
        f"{module}.weight_shape": ("I64", np.array(weight.shape, np.int64)),
    }  # fmt: skip
    return stored, _unpacked(levels, scale)


def _plain(module: str, weight: Array) -> tuple[Stored, Array]:
    return {f"{module}.weight": ("BF16", _bfloat16(weight))}, weight


def _compressed(form: str, **weights: Any) -> dict[str, Any]:
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": groups}


# To add a form: what config.json says of it, and how a projection is stored.
FORMS: dict[str, Form] = {
    "fp8": Form({"quant_method": "fp8", "weight_block_size": [128, 128]}, _fp8_blocks),
    "gptq": Form({"quant_method": "gptq", "bits": 4, "group_size": _GROUP, "checkpoint_format": "gptq"}, _gptq),
    "compressed-tensors": Form(
        _compressed("pack-quantized", num_bits=4, type="int", strategy="group", group_size=_GROUP), _pack_quantized
    ),
    "compressed-tensors fp8": Form(
        _compressed("float-quantized", num_bits=8, type="float", strategy="channel"), _fp8_rows
    ),
    "compressed-tensors int8": Form(
        _compressed("int-quantized", num_bits=8, type="int", strategy="channel"), _int8_rows
    ),
    "modelopt": Form({"quant_method": "modelopt", "quant_algo": "FP8"}, _fp8_modelopt),
    "stale": Form({"quant_method": "bitsandbytes", "load_in_4bit": True}, _plain),
}


def quantize_folder(model: Path, form: Form) -> dict[str, Array]:
    """Store the projections of the model in this form; returns the weights that they stand for, by name."""
    path, stored, plain = model / "model.safetensors", {}, {}
    data = path.read_bytes()
    for name, tensor in read_safetensors_file(path).tensors.items():
        values = np.frombuffer(data[tensor.start : tensor.end], np.uint16).reshape(tensor.shape)
        if not name.endswith("_proj.weight"):
            stored[name] = ("BF16", values)
            continue
        parts, plain[name] = form.store(name.removesuffix(".weight"), _floats(values))
        stored |= parts
    _write(path, stored)
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps({**config, "quantization_config": form.said}))
    return plain


def _write(path: Path, tensors: Stored) -> None:
    header, blocks, at = {}, [], 0
    for name, (dtype, values) in tensors.items():
        block = np.ascontiguousarray(values).tobytes()
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [at, at + len(block)]}
        blocks.append(block)
        at += len(block)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blocks))
