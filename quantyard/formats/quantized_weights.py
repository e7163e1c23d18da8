"""Recognises weights that are quantized at the source (GPTQ, AWQ, bitsandbytes, FP8, compressed-tensors, MXFP4, …).

The headers decide: which tensors a layer has, their types and shapes. config.json's `quantization_config` adds what
they do not show, and counts alone only where there are no headers. A config that speaks of quantized weights beside
plain ones is stale: scripts that merge or dequantize a model leave it behind.

What llama.cpp's converter can undo follows `dequant_model` of its conversion/base.py and the overrides in gpt_oss.py,
deepseek.py and kimi_k3.py. Standard library only: planner and builder read it.
"""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

from quantyard.formats.quantized_layers import (
    UNKNOWN,
    LayerFormat,
    Parts,
    StoredTensor,
    gptq_bits,
    layers_of_tensors,
    quantized_layer_form,
)

Config = Mapping[str, object]

QUANTIZATION_KEYS: Final = ("quantization_config", "compression_config", "quantization")
_TEXT_PARTS: Final = ("text_config", "llm_config", "language_config")
_HALVES: Final = ("BF16", "F16")
_OF_TORCH: Final = {"bfloat16": "BF16", "float16": "F16"}


@dataclass(frozen=True)
class PlainTensor:
    """A weight as the conversion has it: its shape, and its dtype; MXFP4 and NVFP4 where it is kept."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True)
class WeightQuantization:
    """How the weights of a source are quantized."""

    scheme: str  # "GPTQ", "FP8"; several are joined by " and "
    bits: float  # of a weight, scales left out; 0: not known
    problem: str = ""  # why llama.cpp's converter cannot read them, a clause; "" where it can
    kept: str = ""  # the ggml type that holds them as they are; "" where they are unpacked

    @property
    def title(self) -> str:
        """As a user knows it: "GPTQ, 4 bit"."""
        named = any(str(int(self.bits)) in word for word in re.findall(r"\d+", self.scheme))
        return self.scheme if not self.bits or named else f"{self.scheme}, {self.bits:g} bit"


def said_quantization(config: Config) -> Config:
    """What config.json says of quantized weights; empty without."""
    places = [config, *(part for name in _TEXT_PARTS if isinstance(part := config.get(name), Mapping))]
    found = (place.get(key) for place in places for key in QUANTIZATION_KEYS)
    return next((said for said in found if isinstance(said, Mapping) and said), {})


def find_quantization(config: Config, tensors: Mapping[str, StoredTensor] | None) -> WeightQuantization | None:
    """How the weights are quantized; None for plain ones.

    Args:
        config: config.json.
        tensors: of all files, by name; None where the headers are not known, so that config.json is believed.
    """
    said = said_quantization(config)
    if tensors is None:
        return _quantization_by_config(config, said) if said else None
    kinds: Counter[LayerFormat] = Counter()
    modules: dict[LayerFormat, dict[str, Parts]] = defaultdict(dict)
    for name, parts in layers_of_tensors(tensors).items():
        if kind := quantized_layer_form(parts, _packed_bits(said)):
            kinds[kind] += 1
            modules[kind][name] = parts
    if not kinds:
        return None
    scheme = " and ".join(dict.fromkeys(_named_quantization(kind.scheme, said) for kind, _ in kinds.most_common(2)))
    problems = (_unreadable_layer_form(kind, config, said, modules[kind], tensors) for kind in kinds)
    main = kinds.most_common(1)[0][0]
    bits = main.bits(next(iter(modules[main].values())))
    return WeightQuantization(scheme, bits, next((p for p in problems if p), ""), main.kept)


def plain_tensors(config: Config, tensors: Mapping[str, StoredTensor]) -> dict[str, PlainTensor]:
    """The tensors of the model that the quantized ones stand for; scales and other companions are left out.

    Unpacked weights get the 16-bit type of the weights beside them.
    """
    said, modules = said_quantization(config), layers_of_tensors(tensors)
    found = {name: kind for name, parts in modules.items() if (kind := quantized_layer_form(parts, _packed_bits(said)))}
    taken = {id(tensor) for name in found for tensor in modules[name].values()}
    rest = {name: PlainTensor(t.dtype, t.shape) for name, t in tensors.items() if id(t) not in taken}
    half = half_dtype(config, rest)
    for name, kind in found.items():
        fused = not modules[name].keys().isdisjoint(("blocks", "whole"))
        rest[name if fused else f"{name}.weight"] = PlainTensor(kind.kept or half, kind.shape(modules[name]))
    return rest


def as_sentence(problem: str) -> str:
    """A problem as a sentence of its own."""
    capital = problem if problem.startswith(("llama.cpp", "config.json")) else problem[:1].upper() + problem[1:]
    return f"{capital}."


def half_dtype(config: Config, tensors: Mapping[str, StoredTensor]) -> str:
    """The 16-bit type that the quantized weights are unpacked to: that of the others, else config.json's; "BF16"."""
    halves: Counter[str] = Counter()
    for tensor in tensors.values():
        if len(tensor.shape) > 1 and tensor.dtype in _HALVES:
            halves[tensor.dtype] += math.prod(tensor.shape)
    said = str(config.get("torch_dtype") or config.get("dtype") or "").removeprefix("torch.")
    return halves.most_common(1)[0][0] if halves else _OF_TORCH.get(said, "BF16")


def config_for_converter(config: Config, tensors: Mapping[str, StoredTensor] | None) -> Config | None:
    """config.json as the converter must see it; None: as it is.

    A stale `quantization_config` is left out, and one under an older name or inside the text part is moved to where the
    converter looks for it.
    """
    said = said_quantization(config)
    if not tensors or not said:
        return None
    if find_quantization(config, tensors) is None:
        return without_quantization(config)
    if config.get("quantization_config") == said or config.get("quantization") == said:
        return None
    return {**without_quantization(config), "quantization_config": said}


def without_quantization(config: Config) -> dict[str, object]:
    """config.json without a word of quantized weights."""
    bare = {key: value for key, value in config.items() if key not in QUANTIZATION_KEYS}
    for name in _TEXT_PARTS:
        if isinstance(part := bare.get(name), Mapping):
            bare[name] = {key: value for key, value in part.items() if key not in QUANTIZATION_KEYS}
    return bare


# ---- what the converter can undo ---------------------------------------------------------------------

_METHODS: Final[Mapping[str, str]] = {
    "gptq": "GPTQ", "awq": "AWQ", "bitsandbytes": "bitsandbytes", "fp8": "FP8",
    "compressed-tensors": "compressed-tensors", "mxfp4": "MXFP4", "hqq": "HQQ", "torchao": "torchao",
    "modelopt": "ModelOpt", "bitnet": "BitNet",
    "aqlm": "AQLM", "eetq": "EETQ", "quanto": "Quanto", "vptq": "VPTQ", "quip": "QuIP#", "higgs": "HIGGS",
    "spqr": "SpQR", "fbgemm_fp8": "FP8 (FBGEMM)", "auto-round": "AutoRound", "intel/auto-round": "AutoRound",
    "finegrained_fp8": "FP8", "exl2": "EXL2", "exl3": "EXL3", "fp_quant": "FP-Quant", "sinq": "SINQ",
}  # fmt: skip
_CONVERTED: Final = frozenset({"gptq", "fp8", "compressed-tensors", "modelopt", "bitnet"})
_GPTQ_BITS: Final = (2, 4, 8)
_UNPACKED_FORMATS: Final = ("float-quantized", "int-quantized", "naive-quantized")
_NO_NAME: Final = "config.json does not say how, so the converter would take them for plain weights"


def _packed_bits(said: Config) -> int:
    """Of compressed-tensors; 4 where config.json does not say."""
    groups = said.get("config_groups")
    group = next(iter(groups.values()), None) if isinstance(groups, Mapping) else None
    weights = group.get("weights") if isinstance(group, Mapping) else None
    bits = weights.get("num_bits") if isinstance(weights, Mapping) else None
    return bits if isinstance(bits, int) and bits in range(1, 17) else 4


def _quantization_method(said: Config) -> str:
    return str(said.get("quant_method") or "").lower()


def _named_quantization(scheme: str, said: Config) -> str:
    """The scheme, with the tool that config.json names where it is another."""
    name = _METHODS.get(_quantization_method(said), "")
    if scheme == UNKNOWN.scheme:
        return name or scheme
    tool = {"FP8": ("ModelOpt", "compressed-tensors", "FP8 (FBGEMM)"), "NVFP4": ("ModelOpt",), "GPTQ": ("AutoRound",)}
    return f"{scheme} ({name.removeprefix('FP8 (').removesuffix(')')})" if name in tool.get(scheme, ()) else scheme


def _quantization_by_config(config: Config, said: Config) -> WeightQuantization:
    """Where no headers are known."""
    method = _quantization_method(said)
    bits = said.get("bits", 4 if said.get("load_in_4bit") else 8 if said.get("load_in_8bit") or "fp8" in method else 0)
    problem = (
        "" if method in _CONVERTED or _is_gpt_oss_architecture(config) else _cannot_read(_METHODS.get(method, method))
    )
    kept = "MXFP4" if method == "mxfp4" else ""
    return WeightQuantization(_METHODS.get(method, method or "quantized"), _plausible_bits(bits), problem, kept)


def _plausible_bits(value: object) -> float:
    return float(value) if isinstance(value, int | float) and 0 < value <= 16 else 0


def _cannot_read(scheme: str) -> str:
    return f"llama.cpp's converter cannot read {scheme or 'this form'}"


def _unreadable_layer_form(
    kind: LayerFormat, config: Config, said: Config, modules: Mapping[str, Parts], tensors: Mapping[str, StoredTensor]
) -> str:
    """Why the converter cannot undo this form, a clause; "" where it can."""
    method = _quantization_method(said)
    match kind.scheme:
        case "GPTQ":
            return _gptq_problem(method, modules)
        case "FP8":
            return _fp8_layer_problem(method, config, said, modules, tensors)
        case "compressed-tensors" | "compressed-tensors INT8":
            return _compressed_layer_problem(said, tensors) if method == "compressed-tensors" else _NO_NAME
        case "MXFP4":
            return "" if _is_gpt_oss_architecture(config) else _cannot_read("MXFP4 weights of this architecture")
        case "compressed-tensors MXFP4":
            return "" if _is_architecture(config, "Kimi") else _cannot_read("MXFP4 weights of this architecture")
        case "NVFP4" | "compressed-tensors NVFP4":
            return "" if method in ("modelopt", "compressed-tensors") else _NO_NAME
        case "BitNet":
            return "" if method == "bitnet" else _NO_NAME
    return _cannot_read(f"{_named_quantization(kind.scheme, said)} weights")


def _is_architecture(config: Config, start: str) -> bool:
    names = config.get("architectures")
    return isinstance(names, list) and any(str(name).startswith(start) for name in names)


def _is_gpt_oss_architecture(config: Config) -> bool:
    return _is_architecture(config, "GptOss")


def _gptq_problem(method: str, modules: Mapping[str, Parts]) -> str:
    if method != "gptq":
        return f"llama.cpp's converter reads GPTQ's own form, not that of {_METHODS.get(method, method) or 'no name'}"
    bits = {gptq_bits(parts) for parts in modules.values()}
    if odd := sorted(bits - set(_GPTQ_BITS)):
        return f"llama.cpp's converter reads GPTQ of 2, 4 and 8 bits, not of {odd[0]:g}"
    return "" if all("g_idx" in parts for parts in modules.values()) else _cannot_read("GPTQ weights without g_idx")


def _fp8_layer_problem(
    method: str, config: Config, said: Config, modules: Mapping[str, Parts], tensors: Mapping[str, StoredTensor]
) -> str:
    scaled = {part for parts in modules.values() for part in parts if "scale" in part}
    if not scaled:
        return ""  # numbers as they are: the converter widens them
    if _is_architecture(config, "DeepseekV4"):
        return ""
    if method == "compressed-tensors":
        return _compressed_layer_problem(said, tensors)
    if method == "modelopt":
        return ""
    if method == "fp8" and scaled & {"weight_scale_inv", "qscale_weight"}:
        return ""
    if not method:
        return _NO_NAME
    form = f"FP8 with {min(scaled)}" if method == "fp8" else _METHODS.get(method, method)
    return _cannot_read(form)


def _compressed_layer_problem(said: Config, tensors: Mapping[str, StoredTensor]) -> str:
    groups, form = said.get("config_groups"), str(said.get("format"))
    if not isinstance(groups, Mapping) or not groups:
        return "config.json names no config_groups, which the converter needs"
    if len(groups) > 1:
        return _cannot_read("compressed-tensors of several config_groups")
    group = next(iter(groups.values()))
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        return "config.json does not say how its weights are quantized, which the converter needs"
    strategy = str(weights.get("strategy"))
    if form == "pack-quantized":
        wrong = strategy != "group" or weights.get("type", "int") != "int"
    elif form in _UNPACKED_FORMATS:
        block = strategy == "block" and weights.get("block_structure")
        wrong = not (strategy == "channel" or block) or weights.get("group_size") is not None
    else:
        return _cannot_read(f"compressed-tensors {form}")
    if wrong:
        return _cannot_read(f"compressed-tensors {form} with one scale for each {strategy}")
    stray = ("input_scale", "weight_g_idx", "k_scale", "v_scale", "output_scale")
    odd = next((name for name in tensors if name.endswith(stray)), "")
    return _cannot_read(f"compressed-tensors with {odd.rpartition('.')[2]}") if odd else ""
