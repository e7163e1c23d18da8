"""The stage `projector`: what lets a model read pictures or sound becomes a GGUF of its own (mmproj).

llama.cpp keeps it apart from the text model, which stays what it is without it. The file is made in F16, in which
projectors are published, and in Q8_0 where that is as good: no tensor's relative RMS difference from F16 is above
`Q8_0_BOUND`. Both are checked against the text model that they will be served with, and against the source's values.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from builder.checks.projector_values import Traced, q8_0_error, trace_projector
from builder.checks.tensors import count_nonfinite_blocks
from builder.llama.conversion import (
    converter_architecture,
    converter_failure,
    converter_versions,
    read_converter_config,
    read_converter_weights,
    run_converter,
)
from builder.llama.converter import Converter, open_converter
from builder.llama.converter_input import ConverterInput, open_converter_input
from builder.llama.toolchain import llama_tools
from quantyard.formats.gguf import GgufHeader, read_gguf_header, read_gguf_model
from quantyard.formats.safetensors import SafetensorsFile
from quantyard.formatting.numbers import format_percent
from quantyard.protocol.base import ExitCode
from quantyard.protocol.builder import ProjectorRequest
from quantyard.protocol.runner import Stage, StageFailure, StageOutcome, run_stage

Q8_0_BOUND: Final = 0.01  # of the relative RMS difference of a tensor; weights of a bell curve have 0.005
_LEAST_TRACED: Final = 0.5  # of the weights; a converter computes some, never most
_NAMED_AT_MOST: Final = 5


def projector(stage: Stage, request: ProjectorRequest) -> StageOutcome:
    """Make `/out/files/mmproj-F16.gguf` of `/in/source`, and `mmproj-Q8_0.gguf` where it is as good.

    Raises:
        StageFailure: 2 if the folder is not a usable model, 3 if the converter does not support its projector or the
            result is not right, 5 if disk or memory ran out.
    """
    source = stage.in_dir / "source"
    text = read_gguf_model(stage.in_dir / "model" / request.model_file)
    architecture = converter_architecture(read_converter_config(source / "config.json"))
    weights = read_converter_weights(source, allow_pickle=request.allow_pickle)
    converter = open_converter(llama_tools(stage), source, stage.scratch_dir)
    config = read_converter_config(converter.folder / "config.json")
    with open_converter_input(converter.folder, weights, config, full_projector_names(weights)) as given:
        run = _Run(stage, request, converter, given, architecture)
        exact = run.make("f16")
        if _nonfinite_projector_tensors(exact):  # the source is finite, as convert has checked: F16 cannot hold it
            exact.paths[0].unlink()
            exact = run.make("bf16")
        rounded = run.make("q8_0")
    _refuse_wrong_projector(exact, text)
    traced = trace_projector(exact, weights)
    _refuse_foreign_projector_values(traced, weights)
    error, worst = _keep_q8_0_projector(exact, rounded)
    facts: dict[str, JsonValue] = {
        "media": list(exact.media), "projection_dim": exact.projection_dim, "n_tensors": len(exact.tensors),
        "n_params": exact.n_params, "n_same": len(traced.same), "n_moved": len(traced.moved),
        "n_computed": len(traced.computed), "computed": list(traced.computed[:_NAMED_AT_MOST]),
        "q8_0_error": error, "q8_0_worst": worst, "transformers": converter.transformers,
    }
    return StageOutcome(facts=facts, tools=converter_versions(stage, converter), argv=tuple(run.argvs))


class _Run:
    """The runs of the converter on one model."""

    def __init__(
        self, stage: Stage, request: ProjectorRequest, converter: Converter, given: ConverterInput, architecture: str
    ) -> None:
        self._stage, self._name, self._architecture = stage, request.name, architecture
        self._converter, self._given = converter, given
        self.argvs: list[tuple[str, ...]] = []

    def make(self, outtype: str) -> GgufHeader:
        """The projector in this type.

        Raises:
            StageFailure: the converter failed.
        """
        target = self._stage.files_dir / f"mmproj-{outtype.upper()}.gguf"
        options = ["--mmproj", "--outtype", outtype, "--model-name", self._name]
        run = run_converter(self._stage, self._converter, self._given, target, options)
        if run.exit_code != 0 or not target.exists():
            failed = converter_failure(self._stage, self._architecture, run)
            said, hint = failed.error, "Build the text model alone: PARTS=text"
            raise StageFailure(failed.exit_code, said.kind, f"The projector: {said.message}", hint, said.detail)
        self.argvs.append(tuple(run.argv))
        return read_gguf_header(target)


def full_projector_names(weights: tuple[SafetensorsFile, ...]) -> Mapping[str, str]:
    """The names that the converter looks for, of tensors that transformers 5 saved under shorter ones."""
    names = [name for file in weights for name in file.tensors if name.startswith("vision_tower.")]
    known = ("vision_tower.embeddings.", "vision_tower.encoder.", "vision_tower.post_layernorm.")
    if not names or not all(name.startswith(known) for name in names):
        return {}
    return {name: name.replace("vision_tower.", "vision_tower.vision_model.", 1) for name in names}


def _nonfinite_projector_tensors(made: GgufHeader) -> list[str]:
    return [tensor.name for tensor in made.tensors if count_nonfinite_blocks(tensor.path, tensor)]


def _refuse_wrong_projector(made: GgufHeader, text: GgufHeader) -> None:
    """Refuse a projector that llama.cpp could not use with this text model."""
    width = text.embedding_length
    faults = [f"the tensor {name} holds NaN or infinite weights" for name in _nonfinite_projector_tensors(made)[:1]]
    if not made.media:
        faults.append("it says of itself that it reads neither pictures nor sound")
    if not made.tensors:
        faults.append("it has no tensors")
    if width and made.projection_dim and made.projection_dim != width:
        faults.append(f"it makes vectors of {made.projection_dim:,} numbers, and the text model reads {width:,}")
    if faults:
        message = f"The projector is not right: {'; '.join(faults)}."
        raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "projector", message, "Build the text model alone: PARTS=text")


def _refuse_foreign_projector_values(traced: Traced, weights: tuple[SafetensorsFile, ...]) -> None:
    """Refuse a projector most of whose weights are not those of the source. A pickle checkpoint is not looked into."""
    if weights and traced.share < _LEAST_TRACED:
        share = format_percent(traced.share, 0)
        message = f"Only {share} of the projector's weights are the source's; {traced.computed[0]} is not."
        hint = "The converter may not fit this model. Build the text model alone: PARTS=text"
        raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "projector-values", message, hint)


def _keep_q8_0_projector(exact: GgufHeader, rounded: GgufHeader) -> tuple[float | None, str]:
    """Remove the Q8_0 file unless it is as good; its error (None: it has no tensor of that type) and worst tensor."""
    error, worst = q8_0_error(exact, rounded)
    if not worst or error > Q8_0_BOUND or _nonfinite_projector_tensors(rounded):
        Path(rounded.paths[0]).unlink()
    return (error if worst else None), worst


def main() -> None:
    """Entry point of the stage."""
    run_stage(ProjectorRequest, projector)


if __name__ == "__main__":
    main()
