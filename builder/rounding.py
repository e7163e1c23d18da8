"""The stage `rounding`: measures the rounding error of each type on each tensor, with ggml, on a sample of rows.

The search of tensor types uses these errors. A fixed table would not do: weights that were quantized before lie on a
grid, and the type of that grid represents them exactly, while a type with more bits may not.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final

from builder.llama.ggml_rows import open_ggml, sample_rounded_rows
from quantyard.formats.finite_json import dump_finite_json
from quantyard.formats.gguf import GgufError, GgufHeader, read_gguf_model
from quantyard.formats.tensor_patterns import may_change_tensor_type, tensor_type_for_row
from quantyard.protocol.base import ExitCode
from quantyard.protocol.builder import RoundingRequest
from quantyard.protocol.runner import Stage, StageFailure, StageOutcome, run_stage

ERRORS: Final = "rounding.json"


def rounding(stage: Stage, request: RoundingRequest) -> StageOutcome:
    """Write `rounding.json`: tensor → type → sum of squared errors, relative to the sum of squared weights.

    Raises:
        StageFailure: 2 if the source cannot be read or is quantized, 3 if ggml's library is not found.
    """
    header = _read_gguf_to_round(stage.in_dir / "source" / request.source_file)
    ggml, found = open_ggml(stage), {}
    tensors = [tensor for tensor in header.tensors if may_change_tensor_type(tensor)]
    for number, tensor in enumerate(tensors, 1):
        weights = sample_rounded_rows(ggml, tensor, request.rows)
        kinds = dict.fromkeys(tensor_type_for_row(kind, tensor.shape[0]) for kind in request.types)
        found[tensor.name] = {kind: ggml.error(weights, kind) for kind in kinds}
        stage.progress(number, len(tensors), "tensors", tensor.name)
    (stage.files_dir / ERRORS).write_text(dump_finite_json(found, indent=1) + "\n")
    return StageOutcome(facts={"tensors": len(found), "rows": request.rows})


def _read_gguf_to_round(path: Path) -> GgufHeader:
    try:
        header = read_gguf_model(path)
    except (GgufError, FileNotFoundError) as error:
        raise StageFailure(ExitCode.BAD_REQUEST, "bad-gguf", f"{error}.", "Give an unquantized GGUF.") from error
    if header.is_quantized:
        message = f"{path.name} is quantized already, so the rounding errors of its weights cannot be measured."
        raise StageFailure(ExitCode.BAD_REQUEST, "requantize", message, "Give the unquantized GGUF it was made from.")
    return header


def main() -> None:
    """Entry point of the stage."""
    run_stage(RoundingRequest, rounding)


if __name__ == "__main__":
    main()
