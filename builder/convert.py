"""The stage `convert`: a Hugging Face folder becomes one GGUF that loses nothing of the source.

llama.cpp's own `convert_hf_to_gguf.py` does the work, as a subprocess of the Python that has what it needs.
Beside it, at the same time, the Hugging Face tokenizer and chat template answer the probes that `verify`
will hold every GGUF of this model against: they are asked once, however many quants follow.
"""

from __future__ import annotations

import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from pydantic import JsonValue, ValidationError

from builder.checks.embedding_parity import ask_original
from builder.checks.hf_reference import OVER_LIMIT, RENDERS
from builder.checks.nonfinite import find_nonfinite_tensors
from builder.checks.tensors import count_nonfinite_blocks
from builder.checks.tied_output import differs_from_tied_output, tied_output_note
from builder.checks.tokenizer_files import refuse_unconvertible_tokenizer
from builder.llama.conversion import (
    converter_architecture,
    converter_failure,
    converter_versions,
    log_tool_tail,
    read_converter_config,
    read_converter_weights,
    refuse_nonfinite_weights,
    refuse_unconvertible_weights,
    run_converter,
)
from builder.llama.converter import open_converter
from builder.llama.converter_input import open_converter_input
from builder.llama.run_tool import ToolRun, refuse_exhausted_tool, run_llama_tool
from builder.llama.toolchain import llama_tools
from quantyard.formats.gguf import GgufHeader, read_gguf_model
from quantyard.formats.quantized_weights import WeightQuantization, find_quantization, half_dtype, plain_tensors
from quantyard.formats.safetensors import SafetensorsFile, safetensors_dtype
from quantyard.protocol.base import ExitCode
from quantyard.protocol.builder import ConvertRequest
from quantyard.protocol.reference import Reference
from quantyard.protocol.runner import Stage, StageFailure, StageOutcome, run_stage
from quantyard.sandbox.bounded_process import sandbox_exit_words
from quantyard.sandbox.chat_template import sandbox_template_failure

_REFERENCE_TIMEOUT_S = 900.0  # of the whole script; the slowest real tokenizers take a minute to load

# What the default loses nothing of. To add a source dtype: add a row.
_LOSSLESS = {
    "BF16": ("bf16", "the source is bfloat16"),
    "F16": ("f16", "the source is float16, of which bf16 would drop 3 bits"),
    "F32": ("f32", "the source is float32, of which 16 bits would drop the rest"),
}
_LOSSLESS_INTO = {"BF16": {"bf16", "f32"}, "F16": {"f16", "f32"}, "F32": {"f32"}}


def convert(stage: Stage, request: ConvertRequest) -> StageOutcome:
    """Convert `/in/source` to `/out/files/model.gguf`, and write `/out/files/reference.json`.

    Raises:
        StageFailure: 2 if the folder is not a usable model, 3 if the converter does not support it,
            5 if disk or memory ran out.
    """
    source, target = stage.in_dir / "source", stage.files_dir / "model.gguf"
    config = read_converter_config(source / "config.json")
    architecture = converter_architecture(config)
    refuse_unconvertible_tokenizer(source, architecture)
    weights = read_converter_weights(source, allow_pickle=request.allow_pickle)
    tensors = {name: tensor for file in weights for name, tensor in file.tensors.items()}
    quantized = find_quantization(config, tensors) if weights else None
    refuse_unconvertible_weights(quantized)
    dtype = half_dtype(config, plain_tensors(config, tensors)) if quantized else _converted_dtype(weights)
    outtype, reason = _choose_conversion_type(request, dtype)
    options = ["--outtype", outtype, "--model-name", request.name]
    stage.begin("the converter starts")
    with ThreadPoolExecutor() as beside:  # the converter is busy with one core
        damaged = beside.submit(find_nonfinite_tensors, weights)
        untied = beside.submit(differs_from_tied_output, config, weights)
        tokenizer_class = beside.submit(_write_tokenizer_reference, stage, source)
        converter = open_converter(llama_tools(stage), source, stage.scratch_dir)
        versions = beside.submit(converter_versions, stage, converter)
        completed = read_converter_config(converter.folder / "config.json")
        with open_converter_input(converter.folder, weights, completed) as given:
            run = run_converter(stage, converter, given, target, [*converter.arguments, *options])
    if run.exit_code != 0 or not target.exists():
        raise converter_failure(stage, architecture, run)
    refuse_nonfinite_weights(damaged.result())
    model = read_gguf_model(target)
    _refuse_conversion_overflow(model, outtype, dtype)
    notes = [*converter.notes, *([tied_output_note(model)] if untied.result() else [])]
    stage.begin("the original's tokens and embeddings")
    original = ask_original(llama_tools(stage), source, converter.env, model, stage.files_dir)
    facts: dict[str, JsonValue] = {
        "architecture": architecture, "source_dtype": quantized.title if quantized else dtype, "outtype": outtype,
        "outtype_reason": reason, "lossless": _is_conversion_lossless(dtype, outtype, quantized),
        "tokenizer_class": tokenizer_class.result(),
        "n_tensors": len(model.tensors), "n_params": model.n_params, "transformers": converter.transformers,
        "notes": list(notes),
        **({"embeddings": original.why_not or original.witness} if original else {}),
    }
    return StageOutcome(facts=facts, tools=versions.result(), argv=(run.argv,))


def _converted_dtype(weights: tuple[SafetensorsFile, ...]) -> str:
    return safetensors_dtype(weights) if weights else "BF16"


def _is_conversion_lossless(dtype: str, outtype: str, quantized: WeightQuantization | None) -> bool:
    """Unpacked weights are products with scales, which 16 bits round; those that are kept lose nothing."""
    if quantized is not None and not quantized.kept:
        return False
    return outtype in _LOSSLESS_INTO.get(dtype, {outtype})


def _refuse_conversion_overflow(model: GgufHeader, outtype: str, dtype: str) -> None:
    """The source is finite: what is not in the result, its type cannot hold."""
    if outtype not in ("f16", "q8_0") or dtype == "F16":
        return
    if lost := [tensor.name for tensor in model.tensors if count_nonfinite_blocks(tensor.path, tensor)]:
        message = f"OUTTYPE={outtype} cannot hold {len(lost)} tensors of this model, first {lost[0]}: "
        message += "they have values beyond 65,504, which became infinite."
        hint = f"Convert to a type with a wider range: OUTTYPE={'bf16' if dtype == 'BF16' else 'f32'}"
        raise StageFailure(ExitCode.BAD_REQUEST, "outtype-overflow", message, hint)


def _choose_conversion_type(request: ConvertRequest, dtype: str) -> tuple[str, str]:
    if request.outtype != "auto":
        return request.outtype, "asked for"
    return _LOSSLESS.get(dtype, ("bf16", f"the source is {dtype}, which bf16 holds"))


def _write_tokenizer_reference(stage: Stage, source: Path) -> str:
    """Write `reference.json`, what the Hugging Face side says; returns the tokenizer's class name."""
    path, script = stage.files_dir / "reference.json", Path(__file__).parent / "checks" / "hf_reference.py"
    tools = llama_tools(stage)
    argv = [str(tools.converter_python), str(script), "--folder", str(source), "--out", str(path)]
    conversations: list[str] = []

    def on_line(line: str) -> None:
        if line.startswith(RENDERS):
            conversations[:] = [line.removeprefix(RENDERS)]

    run = run_llama_tool(argv, tools.clean_env, on_line, _REFERENCE_TIMEOUT_S)
    if run.exit_code != 0:
        raise _no_tokenizer_reference(stage, run, *conversations)
    try:
        return Reference.model_validate_json(path.read_bytes()).tokenizer_class
    except ValidationError as error:
        message = f"The model's own tokenizer gives answers that cannot be read: {error.errors()[0]['msg']}."
        raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "tokenizer", message, "Its files may be damaged.") from error


def _no_tokenizer_reference(stage: Stage, run: ToolRun, conversation: str = "") -> StageFailure:
    """Why the script ended: the template where it was at one, else the tokenizer."""
    if run.exit_code == OVER_LIMIT:
        return sandbox_template_failure(run.tail.splitlines()[-1], conversation)
    if conversation and run.exit_code < 0:
        return sandbox_template_failure(sandbox_exit_words(run.exit_code), conversation)
    if run.exit_code == -signal.SIGXCPU:
        message = f"The model's own tokenizer does not answer within {_REFERENCE_TIMEOUT_S / 60:.0f} minutes."
        hint = "Its patterns may take time without end on some texts; such a tokenizer is not used."
        return StageFailure(ExitCode.UNSUPPORTED_MODEL, "tokenizer", message, hint)
    refuse_exhausted_tool(run, stage.out_dir, "The tokenizer")
    message = "The model's own tokenizer cannot be loaded without running code from its repo."
    hint = "Its tokenizer files may be missing, or it needs remote code, which is never run."
    log_tool_tail(stage, run)
    return StageFailure(ExitCode.UNSUPPORTED_MODEL, "tokenizer", message, hint, run.words)


def main() -> None:
    """Entry point of the stage."""
    run_stage(ConvertRequest, convert)


if __name__ == "__main__":
    main()
