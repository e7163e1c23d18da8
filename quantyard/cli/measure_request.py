"""Turns the settings of what measures, chooses, tunes and serves into their parts of the request."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from quantyard.cli.values import flag_setting, integer_setting, optional_integer_setting, size_setting
from quantyard.errors import BadRequest, UnknownQuant
from quantyard.files.own_files import typed_file_path
from quantyard.protocol.cache_types import DEFAULT_CACHE, cache_type_name
from quantyard.quants.catalog import Quant, find_quant, nearest_quant_name
from quantyard.quants.selection import parse_quants
from quantyard.requests import ChooseRequest, MeasureRequest, ServeRequest, TuneRequest

if TYPE_CHECKING:  # most commands use none of these models
    from quantyard.protocol.openvino import RuntimeName


def typed_measure_request(values: Mapping[str, str]) -> MeasureRequest:
    """What is measured."""
    return MeasureRequest(
        suite=values["SUITE"],
        baseline=_typed_named_quant("BASELINE", values["BASELINE"]) if values["BASELINE"] else None,
        tasks=tuple(dict.fromkeys(name for name in re.split(r"[,\s]+", values["TASKS"]) if name)),
        limit=optional_integer_setting("LIMIT", values, 1, 10**9),
        num_fewshot=optional_integer_setting("NUM_FEWSHOT", values, 0, 1000),
        seed=optional_integer_setting("SEED", values, 0, 2**32 - 1),
        datasets=_typed_datasets_folder(values["DATASETS"]),
        allow_unsafe_code=flag_setting("ALLOW_UNSAFE_CODE", values),
        n_gpu_layers=integer_setting("N_GPU_LAYERS", values, -1, 10_000),
        mix_nodes=flag_setting("MIX_NODES", values),
        max_length=integer_setting("MAX_LENGTH", values, 0, 2**24),
        shards=optional_integer_setting("SHARDS", values, 1, 1000),
        cache_types=_typed_cache_types(values),
        runtime=_typed_runtime(values["RUNTIME"]),
    )


def _typed_runtime(text: str) -> RuntimeName | None:
    """The second runtime; None if none is given, or llama.cpp, in which all is measured anyway."""
    match text.strip().lower():
        case "" | "llama.cpp":
            return None
        case "openvino":
            return "openvino"
    from quantyard.protocol.openvino import RUNTIMES

    message = f"RUNTIME={text[:80]} is not a runtime that Quantyard measures in."
    raise BadRequest(message, f"Name one: {', '.join(RUNTIMES)}; or leave it out for llama.cpp alone.")


def _typed_named_quant(name: str, text: str) -> Quant:
    try:
        return find_quant(text)
    except UnknownQuant as error:
        raise UnknownQuant(f"{name}={text[:80]}: {error.message}", error.hint) from error


def _typed_datasets_folder(text: str) -> Path | None:
    path = typed_file_path(text).absolute() if text else None
    if path is not None and not path.is_dir():
        hint = "Give a copy of the folder `files` that the stage `datasets` left on a machine with a network."
        raise BadRequest(f"DATASETS={text} is not a folder.", hint)
    return path


def typed_choose_request(values: Mapping[str, str], quants: str) -> ChooseRequest:
    """The limits of `choose`."""
    return ChooseRequest(
        quants=tuple(quant.name for quant in parse_quants(quants)) if quants else (),
        ram_bytes=size_setting("RAM", values["RAM"], 2**20, "1 MiB") if values["RAM"] else None,
        min_tokens_per_s=_typed_decimal("MIN_TPS", values),
        max_kld=_typed_decimal("MAX_KLD", values) if values["MAX_KLD"] else None,
        context_tokens=integer_setting("CONTEXT_SIZE", values, 0, 2**24),
        parallel=integer_setting("PARALLEL", values, 1, 256), cache_type=_typed_cache_type(values),
    )


def _typed_cache_type(values: Mapping[str, str]) -> str:
    """The one type to serve with; f16 if none is given."""
    names = _typed_cache_types(values)
    if len(names) > 1:
        message = f"CACHE_TYPE={values['CACHE_TYPE'][:80]} names {len(names)} types, and a server has one."
        raise BadRequest(message, f"Name one: CACHE_TYPE={names[0]}")
    return names[0] if names else DEFAULT_CACHE


def _typed_cache_types(values: Mapping[str, str]) -> tuple[str, ...]:
    """The types in CACHE_TYPE, each in its one spelling."""
    names = [name for name in re.split(r"[,\s]+", values["CACHE_TYPE"]) if name]
    try:
        return tuple(dict.fromkeys(cache_type_name(name) for name in names))
    except ValueError as error:
        message = f"CACHE_TYPE={values['CACHE_TYPE'][:80]} is not a type of a KV cache."
        raise BadRequest(message, f"{str(error).capitalize()}.") from error


def typed_tune_request(values: Mapping[str, str]) -> TuneRequest:
    """The goal of `tune`."""
    target = values["TARGET_SIZE"]
    quant = _typed_target_quant(target) if target and not target[0].isdigit() else ""
    kld = _typed_decimal("TARGET_KLD", values) if values["TARGET_KLD"] else None
    if kld == 0:
        raise BadRequest("Only the unquantized model reaches TARGET_KLD=0.", "Type: TARGET_KLD=0.05")
    return TuneRequest(
        target_bytes=size_setting("TARGET_SIZE", target, 1, "1 byte", of_file=True) if target and not quant else None,
        target_quant=quant, target_kld=kld, parts=integer_setting("DEPTH_PARTS", values, 1, 100),
        chunks=typed_imatrix_chunks(values, 16),
        types=tuple(name.strip().upper() for name in values["TYPES"].split(",") if name.strip()),
    )


def _typed_target_quant(text: str) -> str:
    try:
        return find_quant(text).name
    except UnknownQuant as error:
        near = nearest_quant_name(text)
        meant = f" Did you mean {near!r}?" if near else ""
        message = f"TARGET_SIZE={text[:80]} is neither a size nor a quantization type.{meant}"
        hint = "Write a size: TARGET_SIZE=4GiB; or a type, for the size that it has: TARGET_SIZE=Q4_K_M"
        raise BadRequest(message, hint) from error


def typed_imatrix_chunks(values: Mapping[str, str], default: int) -> int:
    """How many chunks the importance matrix reads."""
    return integer_setting("CHUNKS", values, 0, 10_000) if values["CHUNKS"] else default


def typed_serve_request(values: Mapping[str, str]) -> ServeRequest:
    """How to serve without containers."""
    files = [
        typed_file_path(values[name]).absolute() if values[name] else None for name in ("MODEL_FILE", "MMPROJ_FILE")
    ]
    return ServeRequest(
        model_file=files[0], mmproj_file=files[1], port=integer_setting("PORT", values, 1, 65_535),
        context_size=integer_setting("CONTEXT_SIZE", values, 0, 2**24),
        n_gpu_layers=integer_setting("N_GPU_LAYERS", values, -1, 10_000), cache_type=_typed_cache_type(values),
    )


def _typed_decimal(name: str, values: Mapping[str, str]) -> float:
    if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,18})?|\.[0-9]{1,18}", values[name]):
        message = f"{name}={values[name][:80]} is not a number of at least 0."
        raise BadRequest(message, f"Write it like this: {name}=0.05")
    return float(values[name])
