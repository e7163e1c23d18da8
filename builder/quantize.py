"""The stage `quantize`: one unquantized GGUF becomes one GGUF of another type.

In the image `llama-quantize` does it; where llama.cpp's programs are not at hand, llama-cpp-python calls the
same function, `llama_model_quantize` (src/llama-quant.cpp), in this process. Both print the same lines.
"""

from __future__ import annotations

import re
from collections import deque
from pathlib import Path

from builder.tool import ToolRun, refuse_exhausted, run_tool
from builder.tools import tools_of
from pipeline.contract import ExitCode, QuantizeRequest
from pipeline.gguf_header import GgufError, read_model
from pipeline.stage import Outcome, Stage, StageFailure, run_stage

_TENSOR_LINE = re.compile(r"^\[\s*(\d+)/\s*(\d+)\]")
_BUILD_LINE = re.compile(r"^(?:main: build = |version: )(.+)")


def quantize(stage: Stage, request: QuantizeRequest) -> Outcome:
    """Quantize `/in/source/<source_file>` to `/out/files/model.gguf`.

    Raises:
        StageFailure: 2 if the source is quantized already or the type needs an importance matrix,
            3 if llama.cpp cannot quantize the model, 5 if disk or memory ran out.
    """
    source, target = stage.in_dir / "source" / request.source_file, stage.files_dir / "model.gguf"
    _refuse_requantizing(source, request)
    log = _Log(stage)
    if tools_of(stage).llama_bin is not None:
        run = _with_program(stage, request, source, target, log)
    else:
        run = _with_bindings(request, source, target, log)
    if run.exit_code != 0 or not target.exists():
        raise _failure(stage, request, run)
    return Outcome(facts={"quant": request.quant}, tools={"llama.cpp": log.version}, argv=(run.argv,))


class _Log:
    """Reads llama-quantize's lines: each tensor is progress, and one line tells the build."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self.version = "unknown"
        self.lines: deque[str] = deque(maxlen=15)

    def __call__(self, line: str) -> None:
        self.lines.append(line.rstrip())
        if match := _TENSOR_LINE.match(line):
            self._stage.progress(int(match[1]), int(match[2]), "tensors")
        elif self.version == "unknown" and (match := _BUILD_LINE.search(line)):
            self.version = match[1].strip()


def _refuse_requantizing(source: Path, request: QuantizeRequest) -> None:
    try:
        model = read_model(source)
    except GgufError as error:
        raise StageFailure(ExitCode.BAD_REQUEST, "bad-gguf", f"{source.name} is not a usable GGUF: {error}") from error
    if model.is_quantized and not request.allow_requantize and request.quant != "COPY":
        message = f"{source.name} is quantized already; quantizing it again loses more than its size says."
        hint = "Start from the 16-bit model, or insist with ALLOW_REQUANTIZE=1."
        raise StageFailure(ExitCode.BAD_REQUEST, "requantize", message, hint)


def _with_program(stage: Stage, request: QuantizeRequest, source: Path, target: Path, log: _Log) -> ToolRun:
    tools = tools_of(stage)
    assert tools.llama_bin is not None
    argv = [str(tools.llama_bin / "llama-quantize")]
    argv += ["--allow-requantize"] if request.allow_requantize else []
    argv += [str(source), str(target), request.quant]
    argv += [str(request.threads)] if request.threads else []
    return run_tool(argv, tools.clean_env, log)


def _with_bindings(request: QuantizeRequest, source: Path, target: Path, log: _Log) -> ToolRun:
    import ctypes

    import llama_cpp

    log.version = f"llama-cpp-python {llama_cpp.__version__}"

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]
    def on_log(_level: int, text: bytes, _user_data: object) -> None:
        log(text.decode(errors="replace"))

    llama_cpp.llama_log_set(on_log, ctypes.c_void_p(0))
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = request.ftype
    params.nthread = request.threads
    params.allow_requantize = request.allow_requantize
    params.only_copy = request.quant == "COPY"
    code = llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(params))
    argv = ("llama_model_quantize", str(source), str(target), request.quant, str(request.threads))
    return ToolRun(argv, int(code), "\n".join(log.lines))


def _failure(stage: Stage, request: QuantizeRequest, run: ToolRun) -> StageFailure:
    refuse_exhausted(run, stage.out_dir, "llama-quantize")
    if "importance matrix" in run.tail.lower() or "imatrix" in run.tail.lower():
        message = f"{request.quant} needs an importance matrix, and none was given."
        hint = "Choose another quant: make quants"
        return StageFailure(ExitCode.BAD_REQUEST, "needs-imatrix", message, hint, run.tail)
    message = f"llama.cpp cannot quantize this model to {request.quant} (exit code {run.exit_code})."
    return StageFailure(ExitCode.UNSUPPORTED_MODEL, "quantize-failed", message, "Its last lines are below.", run.tail)


def main() -> None:
    """Entry point of the stage."""
    run_stage(QuantizeRequest, quantize)


if __name__ == "__main__":
    main()
