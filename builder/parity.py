"""The stage `parity`: does the converted file say what Transformers says of the model itself? (`PARITY=full`)

Where the twin compares formulas, this compares the model with its own weights, on some texts of ours: the mean KL
divergence of the GGUF from Transformers in 32 bits, and beside it the rounding floor, which is the same of Transformers
itself in the type that the model was converted to. It takes the memory of the model in 32 bits; where there is less,
the stage says so and passes. It writes no file.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from builder.imatrix.calibration_text import OUR_TEXT
from builder.llama.converter import open_converter
from builder.llama.run_tool import run_llama_tool
from builder.llama.toolchain import llama_tools
from builder.twin_model.compare import TwinAgreement, join_agreements
from builder.twin_model.sides import (
    SCRIPTS,
    NotComparedError,
    compare_sides,
    compute_llama_side,
    refuse_failed_side,
)
from quantyard.formats.gguf import read_gguf_model
from quantyard.formatting.numbers import format_difference, format_memory, format_percent
from quantyard.hardware.machine import machine_memory_bytes
from quantyard.protocol.base import ExitCode
from quantyard.protocol.builder import ParityRequest
from quantyard.protocol.runner import Stage, StageFailure, StageOutcome, run_stage

_BYTES_PER_WEIGHT: Final = 6  # in 32 bits, and once more in 16 while it is rounded
_MEMORY_SHARE: Final = 0.8
_TIMEOUT_S: Final = 3 * 3600.0
_TYPES: Final = {"BF16": "bfloat16", "F16": "float16"}  # of most weights; any other is not rounded
_FLOORS: Final = 10  # times the rounding floor, and at least:
_LEAST_KLD: Final = 0.01  # nats, that are a fault


def parity(stage: Stage, request: ParityRequest) -> StageOutcome:
    """Compare `/in/model` with Transformers on `/in/source`.

    Raises:
        StageFailure: 3 (`twin`), they say different things.
    """
    gguf = stage.in_dir / "model" / request.model_file
    try:
        _refuse_parity_without_memory(read_gguf_model(gguf).n_params)
        whole, floor = _compare_with_transformers(stage, request, gguf)
    except NotComparedError as error:
        said = f"The model itself was not compared: {str(error).rstrip('.')}."
        return StageOutcome(facts={"status": "unproved", "finding": said, "lacks_package": error.lacks_package})
    differs = whole.mean_kld > max(_FLOORS * floor.mean_kld, _LEAST_KLD)
    finding = (
        f"The file on {whole.n_positions} positions of text: mean KLD from Transformers "
        f"{format_difference(whole.mean_kld)} nats, top-1 {format_percent(whole.same_top)}; Transformers itself in the "
        f"file's type: {format_difference(floor.mean_kld)} nats, {format_percent(floor.same_top)}."
    )
    if differs and not request.allow_twin_mismatch:
        hint = "Its weights meet a path that the twin has not. To build it all the same: ALLOW_TWIN_MISMATCH=1"
        raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "twin", finding, hint)
    facts: dict[str, JsonValue] = {
        "status": "differs" if differs else "proved", "finding": finding, "allowed": differs,
        "mean_kld": whole.mean_kld, "same_top": whole.same_top, "positions": whole.n_positions,
        "floor_mean_kld": floor.mean_kld, "floor_same_top": floor.same_top, "max_delta": whole.max_delta,
        "spread": whole.spread,
    }  # fmt: skip
    return StageOutcome(facts=facts)


def _refuse_parity_without_memory(n_params: int) -> None:
    needed, there = _BYTES_PER_WEIGHT * n_params, int(machine_memory_bytes() * _MEMORY_SHARE)
    if needed > there:
        room = f"{format_memory(needed)} of memory in 32 bits, and {format_memory(there)} are there"
        raise NotComparedError(f"it takes {room}")


def _compare_with_transformers(stage: Stage, request: ParityRequest, gguf: Path) -> tuple[TwinAgreement, TwinAgreement]:
    """How far the file is from Transformers, and how far Transformers is from itself in fewer bits."""
    out, tools = stage.scratch_dir / "parity", llama_tools(stage)
    out.mkdir(parents=True, exist_ok=True)
    text, threads = out / "text.txt", request.threads or 2
    text.write_text("\n".join(_parity_prose()), encoding="utf-8")
    env = open_converter(tools, stage.in_dir / "source", out).env
    argv = [str(tools.converter_python), str(SCRIPTS / "real_model.py"), "--source", str(stage.in_dir / "source")]
    argv += ["--text", str(text), "--out", str(out), "--dtype", _parity_dtype(gguf), "--threads", str(threads)]
    stage.begin("Transformers reads the text")
    refuse_failed_side(run_llama_tool(argv, env, lambda _line: None, _TIMEOUT_S), "Transformers")
    stage.begin("llama.cpp reads the text")
    compute_llama_side(tools, gguf, out, threads, _TIMEOUT_S)
    positions = [prompt["positions"] for prompt in json.loads((out / "prompts.json").read_bytes())]
    return _parity_distance(out, "llama", positions), _parity_distance(out, "floor", positions)


def _parity_prose() -> list[str]:
    """Some of the text that we ship, as plain text."""
    lines = map(json.loads, OUR_TEXT.read_text(encoding="utf-8").splitlines()[:40])
    return [line["text"] for line in lines if "text" in line]


def _parity_dtype(gguf: Path) -> str:
    """The type of most weights."""
    sizes: dict[str, int] = {}
    for tensor in read_gguf_model(gguf).tensors:
        sizes[tensor.type.name] = sizes.get(tensor.type.name, 0) + tensor.size_bytes
    return _TYPES.get(max(sizes, key=lambda name: sizes[name], default=""), "float32")


def _parity_distance(out: Path, side: str, positions: Sequence[list[int]]) -> TwinAgreement:
    return join_agreements([compare_sides(out, side, number, each) for number, each in enumerate(positions)])


def main() -> None:
    """Entry point of the stage."""
    run_stage(ParityRequest, parity)


if __name__ == "__main__":
    main()
