"""One run of llama.cpp's converter: what it reads, checked first, and how it ended."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from builder.llama.converter import Converter
from builder.llama.converter_input import ConverterInput
from builder.llama.run_tool import ToolRun, refuse_exhausted_tool, run_llama_tool
from builder.llama.toolchain import llama_tools
from quantyard.formats.quantized_weights import WeightQuantization, as_sentence
from quantyard.formats.safetensors import SafetensorsError, SafetensorsFile, read_safetensors_folder
from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import Stage, StageFailure

_PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")
_WRITING = re.compile(r"Writing:.*?\|\s*([\d.]+)([kMGT]?)/([\d.]+)([kMGT]?)")
_SCALE = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
_UNSUPPORTED = re.compile(r"Model (\S+) is not supported")


def read_converter_config(path: Path) -> dict[str, Any]:
    """config.json.

    Raises:
        StageFailure: 2, it is missing or not a JSON object.
    """
    if not path.is_file():
        message = "The folder has no config.json, so it is not a model in Hugging Face format."
        raise StageFailure(ExitCode.BAD_REQUEST, "no-config", message, "Give the folder that holds config.json.")
    try:
        config = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        message = f"config.json is not valid JSON: {error}"
        raise StageFailure(ExitCode.BAD_REQUEST, "bad-config", message, "Download the model again.") from error
    if not isinstance(config, dict):
        raise StageFailure(ExitCode.BAD_REQUEST, "bad-config", "config.json holds no JSON object.")
    return config


def converter_architecture(config: dict[str, Any]) -> str:
    """The class name the converter goes by; its absence is the commonest sign of a wrong folder."""
    inner = config.get("text_config")
    names = config.get("architectures") or (inner.get("architectures") if isinstance(inner, dict) else None)
    if not (isinstance(names, list) and names and isinstance(names[0], str)):
        message = "config.json names no architecture, so no converter can be chosen."
        raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "no-architecture", message, "Is this a language model?")
    return str(names[0])


def read_converter_weights(source: Path, *, allow_pickle: bool) -> tuple[SafetensorsFile, ...]:
    """The checked headers of the safetensors files; empty for a pickle checkpoint that was allowed."""
    if not any(source.glob("*.safetensors")):
        _refuse_pickle_to_convert(source, allow_pickle=allow_pickle)
        return ()
    try:
        weights = read_safetensors_folder(source)
    except SafetensorsError as error:
        hint = "The file is damaged: download or copy it again."
        raise StageFailure(ExitCode.BAD_REQUEST, "bad-safetensors", str(error), hint) from error
    return weights


def _refuse_pickle_to_convert(source: Path, *, allow_pickle: bool) -> None:
    pickles = sorted(p.name for p in source.iterdir() if p.suffix in _PICKLE_SUFFIXES)
    if not pickles:
        message = "The folder holds no weights: no *.safetensors file."
        raise StageFailure(ExitCode.BAD_REQUEST, "no-weights", message, "Give a folder that holds the weights.")
    if not allow_pickle:
        message = f"The weights are pickle files ({pickles[0]}), which can run code when they are opened."
        hint = "Use a safetensors revision of the model, or insist with ALLOW_PICKLE=1."
        raise StageFailure(ExitCode.BAD_REQUEST, "pickle", message, hint)


def refuse_unconvertible_weights(quantized: WeightQuantization | None) -> None:
    """The plan refuses it before the download; where it could not see the headers, this does."""
    if quantized is not None and quantized.problem:
        message = f"The weights are quantized already: {quantized.title}. {as_sentence(quantized.problem)}"
        hint = "Build from the model as it was before it was quantized; most cards name it (base_model)."
        raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "quantized-source", message, hint)


def refuse_nonfinite_weights(damaged: list[str]) -> None:
    """Refuse a source with such tensors, by their names."""
    if damaged:
        message = f"{len(damaged)} tensors of the source hold NaN or infinite weights, first {damaged[0]}."
        hint = "The checkpoint is damaged: download it again, or tell its authors."
        raise StageFailure(ExitCode.BAD_REQUEST, "nonfinite-source", message, hint)


def run_converter(
    stage: Stage, converter: Converter, given: ConverterInput, target: Path, options: Sequence[str]
) -> ToolRun:
    """Convert to `target`, and pass on the progress. `options`: of the converter's command line."""
    tools = llama_tools(stage)
    argv = [str(tools.converter_python), *given.launcher, str(tools.converter), str(given.folder)]
    argv += ["--outfile", str(target), *options]

    def on_line(line: str) -> None:
        if match := _WRITING.search(line):
            done, total = (int(float(match[i]) * _SCALE[match[i + 1]]) for i in (1, 3))
            stage.progress(done, total, "bytes")

    return run_llama_tool(argv, converter.env, on_line)


def converter_failure(stage: Stage, architecture: str, run: ToolRun) -> StageFailure:
    """Why a run of the converter on this architecture failed."""
    refuse_exhausted_tool(run, stage.out_dir, "The converter")
    if match := _UNSUPPORTED.search(run.tail):
        message = f"llama.cpp's converter does not support the architecture {match[1]}."
        hint = "A newer llama.cpp may: LLAMA_CPP_TAG=full-bNNNN picks one."
        return StageFailure(ExitCode.UNSUPPORTED_MODEL, "architecture", message, hint)
    log_tool_tail(stage, run)
    message = f"llama.cpp's converter failed on {architecture}: {run.error or run.end}"
    hint = "Its last output says why."
    return StageFailure(
        ExitCode.UNSUPPORTED_MODEL, "convert-failed", _converter_error_sentence(message), hint, run.words
    )


def log_tool_tail(stage: Stage, run: ToolRun) -> None:
    """All of its last lines, with any traceback, for the log."""
    for line in run.tail.splitlines():
        stage.log(line)


def _converter_error_sentence(text: str) -> str:
    return text if text.endswith((".", "!", "?")) else f"{text}."


def converter_versions(stage: Stage, converter: Converter) -> dict[str, str]:
    """Of what the converter ran with."""
    code = "from importlib.metadata import version as v; print(v('transformers'), v('torch'))"
    lines: list[str] = []
    tools = llama_tools(stage)
    run_llama_tool([str(tools.converter_python), "-c", code], converter.env, lines.append)
    transformers, torch = [*lines[-1].split(), "unknown", "unknown"][:2] if lines else ("unknown", "unknown")
    return {"transformers": transformers, "torch": torch}
