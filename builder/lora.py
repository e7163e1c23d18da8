"""The stage `lora`: an adapter in PEFT format becomes one GGUF that llama-server puts on top of its base model.

llama.cpp's own `convert_lora_to_gguf.py` does the work, as a subprocess of the Python that has what it needs. What
it would leave out or scale wrongly without a word is refused first (`lora_adapter.py`), and the file it wrote is
held against the adapter: what kind of file it says it is, and that not a weight of the adapter is missing.
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
from builder.llama.run_tool import ToolRun, refuse_exhausted_tool, run_llama_tool
from builder.llama.toolchain import LlamaTools, llama_tools
from quantyard.formats.gguf import GgufError, GgufHeader, TensorInfo, read_gguf_header
from quantyard.formats.safetensors import SafetensorsError, read_safetensors_file
from quantyard.protocol.base import ExitCode
from quantyard.protocol.builder import LoraRequest
from quantyard.protocol.runner import Stage, StageFailure, StageOutcome, run_stage

_WEIGHTS: Final = "adapter_model.safetensors"
_PICKLE: Final = "adapter_model.bin"
_QUANTIZATION: Final = "quantization_config"
_MAX_NAMED: Final = 5


def lora(stage: Stage, request: LoraRequest) -> StageOutcome:
    """Convert `/in/adapter`, trained on the model whose config.json is in `/in/base`, to `/out/files/adapter.gguf`.

    Raises:
        StageFailure: 2 if the adapter is not usable, cannot be represented or does not fit the base model, 3 if the
            converter does not support the base model or leaves something out, 5 if disk or memory ran out.
    """
    tools, target = llama_tools(stage), stage.files_dir / "adapter.gguf"
    _refuse_without_converter(tools)
    folder, base_folder = stage.in_dir / "adapter", _base_without_quantization(stage)
    config = read_lora_config(folder)
    shapes = _shapes(folder, request)
    base = _ask_base(stage, tools, base_folder, None if shapes else folder / _PICKLE)
    adapter = LoraAdapter(config, lora_pairs(shapes or base.pickle))
    check_lora_fit(adapter.pairs, base)
    run = _run_converter(stage, request, tools, folder, base_folder)
    if run.exit_code != 0 or not target.exists():
        raise _failure(stage, base, run)
    facts = {**_adapter_facts(adapter, base), **check_lora_result(_read(target), adapter, base.architecture)}
    return StageOutcome(facts=facts, tools=base.versions, argv=(run.argv,))


def _refuse_without_converter(tools: LlamaTools) -> None:
    if not tools.lora_converter.is_file():
        message = f"The builder has no convert_lora_to_gguf.py: nothing is at {tools.lora_converter}."
        hint = (
            "The stand-in for the base image was made without it. Type: scripts/base-images.sh --force builder; "
            "or: make lora … ENGINE=local"
        )
        raise StageFailure(ExitCode.BAD_REQUEST, "no-lora-converter", message, hint)


def _base_without_quantization(stage: Stage) -> Path:
    """A copy of the base's small files that says nothing of how its weights are stored.

    An adapter trained on a 4-bit copy of a model fits the model itself, but the converter refuses such a base.
    """
    source, copy = stage.in_dir / "base", stage.scratch_dir / "base"
    copy.mkdir()
    for path in source.iterdir():
        if path.suffix in (".json", ".model", ".txt", ".jinja") and path.name != "config.json":
            shutil.copyfile(path, copy / path.name)
    try:
        config = json.loads((source / "config.json").read_bytes())
        (copy / "config.json").write_text(json.dumps({k: v for k, v in config.items() if k != _QUANTIZATION}))
    except (OSError, ValueError, RecursionError, AttributeError) as error:
        message = f"BASE's config.json cannot be read: {error}"
        raise StageFailure(ExitCode.BAD_REQUEST, "bad-base", message, "Download the base model again.") from error
    return copy


def _shapes(folder: Path, request: LoraRequest) -> dict[str, tuple[int, ...]]:
    """The adapter's tensors from its checked header; none for a pickle file that was allowed."""
    if not (folder / _WEIGHTS).is_file():
        if not ((folder / _PICKLE).is_file() and request.allow_pickle):
            message = f"The adapter holds no {_WEIGHTS}."
            hint = f"A {_PICKLE} of a source you trust is read with ALLOW_PICKLE=1."
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


def _ask_base(stage: Stage, tools: LlamaTools, folder: Path, pickle: Path | None) -> BaseSide:
    """What the converter calls the base model, and the shapes of its tensors."""
    path, script = stage.scratch_dir / "base.json", Path(__file__).parent / "checks" / "lora_base.py"
    argv = [str(tools.converter_python), str(script), "--converter", str(tools.lora_converter)]
    argv += ["--folder", str(folder), "--out", str(path), *(["--pickle", str(pickle)] if pickle else [])]
    run = run_llama_tool(argv, tools.clean_env, lambda _line: None)
    if run.exit_code != 0:
        refuse_exhausted_tool(run, stage.out_dir, "Reading the base model's configuration")
        raise _unreadable(run, pickle)
    try:
        base = BaseSide.model_validate_json(path.read_bytes())
    except ValidationError as error:
        raise StageFailure(ExitCode.BUG, "base", f"base.json is not valid: {error}") from error
    if not base.architecture:
        message = f"llama.cpp's converter does not support the architecture {base.model_class}."
        hint = "A newer llama.cpp may: LLAMA_CPP_TAG=full-bNNNN picks one."
        raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "architecture", message, hint)
    return base


def _unreadable(run: ToolRun, pickle: Path | None) -> StageFailure:
    """What `lora_base.py` cannot read: the adapter's pickle file, or else the configuration."""
    if pickle and "weights_only" in run.tail:  # torch's own words
        message = f"{pickle.name} holds more than tensors, or is damaged; torch refuses to open it."
        hint = "Save the adapter again as safetensors: save_pretrained(folder, safe_serialization=True)"
        return StageFailure(ExitCode.BAD_REQUEST, "pickle", message, hint, run.tail)
    message = "llama.cpp's converter cannot read the base model's configuration."
    hint = "Its last lines say why. Name the model itself, in Hugging Face format: make lora ADAPTER=… BASE=org/name"
    return StageFailure(ExitCode.UNSUPPORTED_MODEL, "base", message, hint, run.tail)


def _run_converter(stage: Stage, request: LoraRequest, tools: LlamaTools, folder: Path, base: Path) -> ToolRun:
    """F32 holds what any adapter holds. The folder's name becomes the name in the metadata."""
    named = stage.scratch_dir / request.name
    named.symlink_to(folder, target_is_directory=True)
    argv = [str(tools.converter_python), str(tools.lora_converter), str(named), "--base", str(base)]
    argv += ["--outfile", str(stage.files_dir / "adapter.gguf"), "--outtype", "f32"]
    return run_llama_tool(argv, tools.clean_env, lambda _line: None)


def _failure(stage: Stage, base: BaseSide, run: ToolRun) -> StageFailure:
    refuse_exhausted_tool(run, stage.out_dir, "The converter")
    message = f"llama.cpp's converter failed on this adapter of {base.model_class} (exit code {run.exit_code})."
    return StageFailure(ExitCode.UNSUPPORTED_MODEL, "convert-failed", message, MERGE, run.tail)


def _read(path: Path) -> GgufHeader:
    try:
        return read_gguf_header(path)
    except GgufError as error:
        message = f"The converter left no usable GGUF: {error}."
        raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "verify-header", message, MERGE) from error


def check_lora_result(header: GgufHeader, adapter: LoraAdapter, architecture: str) -> dict[str, JsonValue]:
    """Hold the GGUF against the adapter it was made of; what was counted.

    Raises:
        StageFailure: 3, it is not a LoRA adapter of this architecture, or not the whole of the adapter.
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
    wrong += _wrong_tensors({tensor.name: tensor for tensor in header.tensors}, adapter.pairs)
    if wrong:
        message = f"The GGUF is not the adapter: {'; '.join(wrong[:_MAX_NAMED])}. ({len(wrong)} differences in all.)"
        raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "verify-adapter", message, MERGE)
    return {"tensors": len(header.tensors), "n_params": header.n_params, "alpha": adapter.config.lora_alpha}


def _wrong_tensors(tensors: Mapping[str, TensorInfo], pairs: Mapping[str, LoraPair]) -> list[str]:
    """Each lora_a with its lora_b, of the same rank; and no weight lost.

    One module may become several tensors, and many experts one: what stays is the number of weights on the side of
    the output, since only that side is ever cut or stacked (the other is repeated).
    """
    names = {name.removesuffix(".lora_a").removesuffix(".lora_b") for name in tensors}
    wrong = [f"{n} is alone" for n in sorted(names) if not {n + ".lora_a", n + ".lora_b"} <= tensors.keys()]
    if wrong:
        return wrong
    ranks = {name: (_rank_a(tensors[name + ".lora_a"]), tensors[name + ".lora_b"].shape[0]) for name in sorted(names)}
    wrong = [f"{name} has the ranks {a} and {b}" for name, (a, b) in ranks.items() if a != b]
    if {b for _, b in ranks.values()} != {pair.rank for pair in pairs.values()}:
        wrong.append(f"its ranks are {sorted({b for _, b in ranks.values()})}")
    written = sum(tensors[name + ".lora_b"].n_params for name in names)
    expected = sum(math.prod(pair.b) for pair in pairs.values())
    if written != expected:
        wrong.append(f"{written:,} weights of lora_b were written, of {expected:,}")
    return wrong


def _rank_a(tensor: TensorInfo) -> int:
    """The rank of a lora_a in ggml's order. That of the token embeddings lies on its side: rows are looked up."""
    dimension = 0 if tensor.name.startswith("token_embd.") else 1
    return tensor.shape[dimension] if len(tensor.shape) > dimension else 1


def _adapter_facts(adapter: LoraAdapter, base: BaseSide) -> dict[str, JsonValue]:
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
