"""The stage `quantize`: converts one unquantized GGUF to one quant.

In the image `llama-quantize` does it; where llama.cpp's programs are not installed, llama-cpp-python calls the
same function, `llama_model_quantize` (src/llama-quant.cpp), in this process. Both print the same lines.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import JsonValue

from builder.imatrix.matrix import Floats, Imatrix, check_imatrix_fits, read_imatrix
from builder.llama.run_tool import ToolRun, refuse_exhausted_tool, run_llama_tool
from builder.llama.toolchain import llama_tools
from quantyard.formats.ggml_types import TYPE_BY_NAME
from quantyard.formats.gguf import GgufError, GgufHeader, read_gguf_model
from quantyard.formats.tensor_patterns import EMBEDDING, OUTPUT, PatternProblem, resolve_tensor_patterns
from quantyard.llama.library import set_llama_log
from quantyard.protocol.base import ExitCode
from quantyard.protocol.builder import QuantizeRequest
from quantyard.protocol.runner import Stage, StageFailure, StageOutcome, run_stage

_OPTIONS = {f"{OUTPUT}.weight": "--output-tensor-type", f"{EMBEDDING}.weight": "--token-embedding-type"}
_KEEPS = {"MXFP4_MOE": {"MXFP4"}}  # types that a quant leaves as they are
_TENSOR_LINE = re.compile(r"^\[\s*(\d+)/\s*(\d+)\]\s*([\w.-]*)")
_BUILD_LINE = re.compile(r"^(?:main: build = |version: )(.+)")


def quantize(stage: Stage, request: QuantizeRequest) -> StageOutcome:
    """Quantize `/in/source/<source_file>` to `/out/files/model.gguf`.

    Raises:
        StageFailure: 2 if the source is quantized already, if the type needs an importance matrix and there is none,
            or if `/in/imatrix/<imatrix_file>` is not a matrix of this model; 3 if llama.cpp cannot quantize the model,
            5 if disk or memory ran out.
    """
    source, target = stage.in_dir / "source" / request.source_file, stage.files_dir / "model.gguf"
    model = _refuse_requantizing(source, request)
    imatrix = None
    if request.imatrix_file is not None:
        imatrix = read_imatrix(stage.in_dir / "imatrix" / request.imatrix_file)
        check_imatrix_fits(imatrix, model)
    types = _recipe_types_to_quantize(model, request)
    log = _Log(stage)
    if llama_tools(stage).llama_bin is not None:
        run = _quantize_with_program(stage, request, source, target, imatrix, types, log)
    else:
        run = _quantize_with_bindings(request, source, target, imatrix, types, log)
    if run.exit_code != 0 or not target.exists():
        raise _quantize_failure(stage, request, run)
    facts: dict[str, JsonValue] = {"quant": request.label}
    if types:
        facts["recipe_tensors"] = len(types)
    if imatrix is not None:
        facts |= {"imatrix_chunks": imatrix.n_chunks, "imatrix_tensors": len(imatrix.entries)}
    return StageOutcome(facts=facts, tools={"llama.cpp": log.version}, argv=(run.argv,))


class _Log:
    """Reads llama-quantize's output: a line per tensor, which is progress, and one with the version of the build."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.version = "unknown"
        self.lines: deque[str] = deque(maxlen=15)

    def __call__(self, line: str) -> None:
        self.lines.append(line.rstrip())
        if match := _TENSOR_LINE.match(line):
            self._stage.progress(int(match[1]), int(match[2]), "tensors", match[3])
        elif self.version == "unknown" and (match := _BUILD_LINE.search(line)):
            self.version = match[1].strip()


def _refuse_requantizing(source: Path, request: QuantizeRequest) -> GgufHeader:
    try:
        model = read_gguf_model(source)
    except GgufError as error:
        raise StageFailure(ExitCode.BAD_REQUEST, "bad-gguf", f"{source.name} is not a usable GGUF: {error}") from error
    quantized = {tensor.type.name for tensor in model.tensors if tensor.type.is_quantized}
    if quantized - _KEEPS.get(request.quant, set()) and not request.allow_requantize and request.quant != "COPY":
        message = f"{source.name} is quantized already; quantizing it again loses more quality than usual."
        hint = "Start from the 16-bit model, or insist with ALLOW_REQUANTIZE=1."
        raise StageFailure(ExitCode.BAD_REQUEST, "requantize", message, hint)
    return model


def _recipe_types_to_quantize(model: GgufHeader, request: QuantizeRequest) -> dict[str, str]:
    """The type of each tensor that the recipe names; empty without a recipe."""
    try:
        return resolve_tensor_patterns(
            model.tensors, request.tensor_types, request.output_type, request.token_embedding_type
        )
    except PatternProblem as problem:
        message = f"The recipe {request.recipe} does not fit this model. {problem.message}"
        raise StageFailure(ExitCode.BAD_REQUEST, "recipe", message, problem.hint) from problem


def _quantize_with_program(
    stage: Stage, request: QuantizeRequest, source: Path, target: Path, imatrix: Imatrix | None,
    types: Mapping[str, str], log: _Log,
) -> ToolRun:
    tools = llama_tools(stage)
    assert tools.llama_bin is not None
    argv = [str(tools.llama_bin / "llama-quantize")]
    argv += ["--allow-requantize"] if request.allow_requantize else []
    argv += ["--imatrix", str(imatrix.path)] if imatrix else []
    argv += _tensor_type_options(types)
    argv += [str(source), str(target), request.quant]
    argv += [str(request.threads)] if request.threads else []
    return run_llama_tool(argv, tools.clean_env, log)


def _tensor_type_options(types: Mapping[str, str]) -> list[str]:
    """One option for each tensor, by its whole name: llama-quantize uses the first pattern found anywhere in a name.

    The options for output and embedding do not fall back where rows do not fit a type, so `types` must fit already.
    """
    options = []
    for name, kind in types.items():
        if name in _OPTIONS:
            options += [_OPTIONS[name], kind.lower()]
        else:
            options += ["--tensor-type", f"{quantize_tensor_regex(name)}={kind.lower()}"]
    return options


def quantize_tensor_regex(name: str) -> str:
    """A regular expression (std::regex) that matches only this tensor."""
    return f"^{name.replace('.', '[.]')}$"


def _quantize_with_bindings(
    request: QuantizeRequest, source: Path, target: Path, imatrix: Imatrix | None, types: Mapping[str, str], log: _Log
) -> ToolRun:
    import ctypes

    import llama_cpp

    log.version = f"llama-cpp-python {llama_cpp.__version__}"

    def on_log(_level: int, text: bytes | None, _user_data: object) -> None:
        log((text or b"").decode(errors="replace"))

    set_llama_log(llama_cpp, on_log)
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = request.ftype
    params.nthread = request.threads
    params.allow_requantize = request.allow_requantize
    params.only_copy = request.quant == "COPY"
    named = [
        (quantize_tensor_regex(name).encode(), TYPE_BY_NAME[kind].id)
        for name, kind in types.items()
        if name not in _OPTIONS
    ]
    if types:
        params.output_tensor_type = _ggml_type_id_to_quantize(types, OUTPUT, params.output_tensor_type)
        params.token_embedding_type = _ggml_type_id_to_quantize(types, EMBEDDING, params.token_embedding_type)
        params.tt_overrides = _tensor_type_overrides(llama_cpp, named)
    values = _imatrix_for_llama(imatrix) if imatrix else []
    if values:
        params.imatrix = _imatrix_for_quantize(llama_cpp, values)
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    given = [*(("--imatrix", str(imatrix.path)) if imatrix else ()), *_tensor_type_options(types)]
    argv = ("llama_model_quantize", *given, str(source), str(target), request.quant, str(request.threads))
    return ToolRun(argv, int(code), "\n".join(log.lines))


def _ggml_type_id_to_quantize(types: Mapping[str, str], kind: str, otherwise: int) -> int:
    name = f"{kind}.weight"
    return TYPE_BY_NAME[types[name]].id if name in types else otherwise


def _tensor_type_overrides(llama_cpp: Any, named: list[tuple[bytes, int]]) -> Any:
    """Pattern and type of each tensor as a C array that ends with an empty row. It points into `named`."""
    if not hasattr(llama_cpp, "llama_model_tensor_override"):
        message = f"llama-cpp-python {llama_cpp.__version__} cannot set the types of single tensors."
        raise StageFailure(ExitCode.BAD_REQUEST, "recipe", message, "Type: ENGINE=docker, or: make images ENGINE=local")
    rows = (llama_cpp.llama_model_tensor_override * (len(named) + 1))()
    for row, (pattern, kind) in zip(rows, named, strict=False):
        row.pattern, row.type = pattern, kind
    return rows


def _imatrix_for_llama(imatrix: Imatrix) -> list[tuple[bytes, Floats]]:
    """The matrix as llama.cpp takes it: the name of each weight and the mean squares of its inputs."""
    return [(name.encode(), entry.importance()) for name, entry in imatrix.entries.items()]


def _imatrix_for_quantize(llama_cpp: Any, values: list[tuple[bytes, Floats]]) -> Any:
    """The same as a C array that ends with an empty row. It points into `values`, which must outlive it."""
    import ctypes

    rows = (llama_cpp.llama_model_imatrix_data * (len(values) + 1))()
    for row, (name, data) in zip(rows, values, strict=False):
        row.name, row.size = name, data.size
        row.data = data.ctypes.data_as(ctypes.POINTER(ctypes.c_float))
    return rows


def _quantize_failure(stage: Stage, request: QuantizeRequest, run: ToolRun) -> StageFailure:
    refuse_exhausted_tool(run, stage.out_dir, "llama-quantize")
    if "importance matrix" in run.tail.lower() or "imatrix" in run.tail.lower():
        what = "this one does not cover every tensor it must" if request.imatrix_file else "none was given"
        message = f"{request.label} needs an importance matrix, and {what}."
        hint = "Have one computed with IMATRIX=auto, or choose another quant: make quants"
        return StageFailure(ExitCode.BAD_REQUEST, "needs-imatrix", message, hint, run.tail)
    message = f"llama.cpp cannot quantize this model to {request.label} ({run.end})."
    return StageFailure(ExitCode.UNSUPPORTED_MODEL, "quantize-failed", message, "Its last output says why.", run.tail)


def main() -> None:
    """Entry point of the stage."""
    run_stage(QuantizeRequest, quantize)


if __name__ == "__main__":
    main()
