"""The stage `lora`: converts a PEFT adapter to one GGUF that llama-server loads on top of its base model.

llama.cpp's own `convert_lora_to_gguf.py` does the work, as a subprocess of the converter's Python. Adapters that it
would silently truncate or scale wrongly are refused first (`lora_adapter.py`). The file it wrote is then compared with
the adapter: its metadata, and that no weight is missing.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import JsonValue, ValidationError

from builder.checks.lora_adapter import (
    MERGE,
    BaseSide,
    LoraAdapter,
    LoraPair,
    check_lora_fit,
    lora_pairs,
    read_lora_config,
)
from builder.checks.nonfinite import find_nonfinite_tensors
from builder.llama.converter import Converter, open_converter
from builder.llama.run_tool import ToolRun, refuse_exhausted_tool, run_llama_tool
from builder.llama.toolchain import LlamaTools, llama_tools
from quantyard.formats.gguf import GgufError, GgufHeader, TensorInfo, read_gguf_header
from quantyard.formats.quantized_weights import without_quantization
from quantyard.formats.safetensors import SafetensorsError, read_safetensors_file
from quantyard.protocol.base import ExitCode
from quantyard.protocol.builder import LoraRequest
from quantyard.protocol.runner import Stage, StageFailure, StageOutcome, run_stage

_WEIGHTS: Final = "adapter_model.safetensors"
_PICKLE: Final = "adapter_model.bin"
_MAX_NAMED: Final = 5


def lora(stage: Stage, request: LoraRequest) -> StageOutcome:
    """Convert `/in/adapter`, trained on the model whose config.json is in `/in/base`, to `/out/files/adapter.gguf`.

    Raises:
        StageFailure: 2 if the adapter is not usable, cannot be stored as GGUF or does not fit the base model, 3 if the
            converter does not support the base model or drops weights, 5 if disk or memory ran out.
    """
    tools, target = llama_tools(stage), stage.files_dir / "adapter.gguf"
    _refuse_without_converter(tools)
    folder, base_folder = stage.in_dir / "adapter", _lora_base_without_quantization(stage)
    config = read_lora_config(folder)
    shapes = _lora_adapter_shapes(folder, request)
    converter = open_converter(tools, base_folder, stage.scratch_dir)
    base = _ask_lora_base(stage, tools, converter, None if shapes else folder / _PICKLE)
    adapter = LoraAdapter(config, lora_pairs(shapes or base.pickle))
    check_lora_fit(adapter.pairs, base)
    run = _run_lora_converter(stage, request, tools, folder, converter)
    if run.exit_code != 0 or not target.exists():
        raise _lora_conversion_failure(stage, base, run)
    facts = {
        **_lora_adapter_facts(adapter, base),
        **check_lora_result(_read_adapter_gguf(target), adapter, base.architecture),
    }
    return StageOutcome(facts=facts, tools=base.versions, argv=(run.argv,))


def _refuse_without_converter(tools: LlamaTools) -> None:
    if not tools.lora_converter.is_file():
        message = f"The builder does not have convert_lora_to_gguf.py: {tools.lora_converter} does not exist."
        hint = (
            "The stand-in for the base image was made without it. Type: scripts/base-images.sh --force builder; "
            "or: make lora … ENGINE=local"
        )
        raise StageFailure(ExitCode.BAD_REQUEST, "no-lora-converter", message, hint)


def _lora_base_without_quantization(stage: Stage) -> Path:
    """A copy of the base's small files without `quantization_config`.

    An adapter trained on a 4-bit copy of a model (QLoRA) also fits the model itself, but the converter refuses such a
    base.
    """
    source, copy = stage.in_dir / "base", stage.scratch_dir / "base"
    copy.mkdir()
    for path in source.iterdir():
        if path.suffix in (".json", ".model", ".txt", ".jinja") and path.name != "config.json":
            shutil.copyfile(path, copy / path.name)
    try:
        config = json.loads((source / "config.json").read_bytes())
        (copy / "config.json").write_text(json.dumps(without_quantization(config)))
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        message = f"BASE's config.json cannot be read: {error}"
        raise StageFailure(ExitCode.BAD_REQUEST, "bad-base", message, "Download the base model again.") from error
    return copy


def _lora_adapter_shapes(folder: Path, request: LoraRequest) -> dict[str, tuple[int, ...]]:
    """The shapes of the adapter's tensors from its checked header; empty for a pickle file that was allowed."""
    if not (folder / _WEIGHTS).is_file():
        if not ((folder / _PICKLE).is_file() and request.allow_pickle):
            message = f"The adapter has no {_WEIGHTS}."
            hint = f"If it has an {_PICKLE} and you trust its source: ALLOW_PICKLE=1"
            raise StageFailure(ExitCode.BAD_REQUEST, "no-weights", message, hint)
        return {}
    try:
        file = read_safetensors_file(folder / _WEIGHTS)
    except SafetensorsError as error:
        hint = "The file is damaged: download or copy it again."
        raise StageFailure(ExitCode.BAD_REQUEST, "bad-safetensors", f"{error}.", hint) from error
    if damaged := find_nonfinite_tensors((file,)):
        message = f"{len(damaged)} tensors of the adapter hold NaN or infinite weights, first {damaged[0]}."
        hint = "Its training diverged or its file is damaged: take an earlier checkpoint, or download it again."
        raise StageFailure(ExitCode.BAD_REQUEST, "nonfinite-source", message, hint)
    return {name: tensor.shape for name, tensor in file.tensors.items()}


def _ask_lora_base(stage: Stage, tools: LlamaTools, converter: Converter, pickle: Path | None) -> BaseSide:
    """Ask the converter for its name of the base model's architecture, and for the shapes of the base's tensors."""
    path, script = stage.scratch_dir / "base.json", Path(__file__).parent / "checks" / "lora_base.py"
    argv = [str(tools.converter_python), str(script), "--converter", str(tools.lora_converter)]
    argv += ["--folder", str(converter.folder), "--out", str(path), *(["--pickle", str(pickle)] if pickle else [])]
    run = run_llama_tool(argv, converter.env, lambda _line: None)
    if run.exit_code != 0:
        refuse_exhausted_tool(run, stage.out_dir, "Reading the base model's configuration")
        raise _unreadable_lora_adapter(run, pickle)
    try:
        base = BaseSide.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise StageFailure(ExitCode.BUG, "base", f"base.json is not valid: {error}") from error
    if not base.architecture:
        message = f"llama.cpp's converter does not support the architecture {base.model_class}."
        hint = "A newer llama.cpp may: LLAMA_CPP_TAG=full-bNNNN picks one."
        raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "architecture", message, hint)
    return base


def _unreadable_lora_adapter(run: ToolRun, pickle: Path | None) -> StageFailure:
    """The failure of `lora_base.py`: it cannot read the adapter's pickle file, or else the configuration."""
    if pickle and "weights_only" in run.tail:  # torch's own words
        message = f"{pickle.name} holds more than tensors, or is damaged; torch refuses to open it."
        hint = "Save the adapter again as safetensors: save_pretrained(folder, safe_serialization=True)"
        return StageFailure(ExitCode.BAD_REQUEST, "pickle", message, hint, run.words)
    message = "llama.cpp's converter cannot read the base model's configuration."
    hint = "Its last lines say why. Name the model itself, in Hugging Face format: make lora ADAPTER=… BASE=org/name"
    return StageFailure(ExitCode.UNSUPPORTED_MODEL, "base", message, hint, run.words)


def _run_lora_converter(
    stage: Stage, request: LoraRequest, tools: LlamaTools, folder: Path, converter: Converter
) -> ToolRun:
    """Convert to F32, which is lossless for any adapter."""
    named = stage.scratch_dir / request.name  # the converter takes the model's name from the folder's
    named.symlink_to(folder, target_is_directory=True)
    argv = [str(tools.converter_python), str(tools.lora_converter), str(named), "--base", str(converter.folder)]
    argv += ["--outfile", str(stage.files_dir / "adapter.gguf"), "--outtype", "f32"]
    return run_llama_tool(argv, converter.env, lambda _line: None)


def _lora_conversion_failure(stage: Stage, base: BaseSide, run: ToolRun) -> StageFailure:
    refuse_exhausted_tool(run, stage.out_dir, "The converter")
    message = f"llama.cpp's converter failed on this adapter of {base.model_class} ({run.end})."
    return StageFailure(ExitCode.UNSUPPORTED_MODEL, "convert-failed", message, MERGE, run.words)


def _read_adapter_gguf(path: Path) -> GgufHeader:
    try:
        return read_gguf_header(path)
    except GgufError as error:
        message = f"The converter did not write a usable GGUF: {error}."
        raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "verify-header", message, MERGE) from error


def check_lora_result(header: GgufHeader, adapter: LoraAdapter, architecture: str) -> dict[str, JsonValue]:
    """Compare the GGUF with the adapter it was made from; returns the stage's facts about it.

    Raises:
        StageFailure: 3, the GGUF is not a LoRA adapter of this architecture, or lacks weights of the adapter.
    """
    said: dict[str, object] = {
        "general.type": "adapter", "adapter.type": "lora", "general.architecture": architecture,
    }  # fmt: skip
    wrong = [
        f"{key} is {header.metadata.get(key)!r}, not {value!r}"
        for key, value in said.items() if header.metadata.get(key) != value
    ]
    alpha = header.metadata.get("adapter.lora.alpha")
    if not (isinstance(alpha, float) and math.isclose(alpha, adapter.config.lora_alpha, rel_tol=1e-6)):
        wrong.append(f"adapter.lora.alpha is {alpha!r}, not {adapter.config.lora_alpha}")
    wrong += _wrong_lora_tensors({tensor.name: tensor for tensor in header.tensors}, adapter.pairs)
    if wrong:
        named = "; ".join(wrong[:_MAX_NAMED])
        message = f"The GGUF does not match the adapter: {named}. ({len(wrong)} differences in all.)"
        raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "verify-adapter", message, MERGE)
    return {"tensors": len(header.tensors), "n_params": header.n_params, "alpha": adapter.config.lora_alpha}


def _wrong_lora_tensors(tensors: Mapping[str, TensorInfo], pairs: Mapping[str, LoraPair]) -> list[str]:
    """Check that each lora_a has a lora_b of the same rank, and that no weight was lost.

    The converter may split one module into several tensors, or stack many experts into one. It splits or stacks only
    lora_b, and repeats lora_a, so the total number of lora_b weights stays the same.
    """
    names = {name.removesuffix(".lora_a").removesuffix(".lora_b") for name in tensors}
    wrong = [
        f"{n} lacks its lora_a or lora_b" for n in sorted(names) if not {n + ".lora_a", n + ".lora_b"} <= tensors.keys()
    ]
    if wrong:
        return wrong
    ranks = {
        name: (_rank_of_lora_a(tensors[name + ".lora_a"]), tensors[name + ".lora_b"].shape[0]) for name in sorted(names)
    }
    wrong = [f"{name} has rank {a} in lora_a and {b} in lora_b" for name, (a, b) in ranks.items() if a != b]
    if {b for _, b in ranks.values()} != {pair.rank for pair in pairs.values()}:
        wrong.append(f"its ranks are {sorted({b for _, b in ranks.values()})}, unlike the adapter's")
    written = sum(tensors[name + ".lora_b"].n_params for name in names)
    expected = sum(math.prod(pair.b) for pair in pairs.values())
    if written != expected:
        wrong.append(f"{written:,} of {expected:,} lora_b weights were written")
    return wrong


def _rank_of_lora_a(tensor: TensorInfo) -> int:
    """The rank of a lora_a, in ggml's order. For token embeddings it is transposed, since its rows are looked up."""
    dimension = 0 if tensor.name.startswith("token_embd.") else 1
    return tensor.shape[dimension] if len(tensor.shape) > dimension else 1


def _lora_adapter_facts(adapter: LoraAdapter, base: BaseSide) -> dict[str, JsonValue]:
    ranks: list[JsonValue] = [*sorted({pair.rank for pair in adapter.pairs.values()})]
    kinds: list[JsonValue] = [*sorted({name.rpartition(".")[2] for name in adapter.pairs})]
    return {
        "architecture": base.architecture, "model_class": base.model_class,
        "trained_on": adapter.config.base_model_name_or_path, "ranks": ranks, "modules": len(adapter.pairs),
        "module_kinds": kinds, "shapes": base.why_no_shapes or "fit the base model", "outtype": "f32",
    }


def main() -> None:
    """Entry point of the stage."""
    run_stage(LoraRequest, lora)


if __name__ == "__main__":
    main()
