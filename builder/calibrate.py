"""The stage `calibrate`: llama-imatrix computes the importance matrix of a model on a recorded text.

The text is read in legs of `save_every` chunks. Each leg continues from the sums of the previous one, so an
interrupted run repeats only the current leg. The result is bit-identical to one uninterrupted run, because llama.cpp
adds in the same order. (llama-imatrix's own partial saves are unusable here: it writes them in the middle of a chunk,
when only some tensors have seen that chunk.) Legs are kept in `/out/files/.partial`, by the hash of their text.
"""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from builder.imatrix.calibration_text import bad_calibration_text, own_calibration_text, users_calibration_text
from builder.imatrix.matrix import Imatrix, check_imatrix_fits, imatrix_coverage, read_imatrix
from builder.imatrix.open import open_imatrix_reader
from builder.imatrix.reader import ImatrixLeg, LegLoss, MatrixReader, imatrix_not_finite
from builder.llama.open import open_llama_runtime
from builder.llama.runtime import LlamaRuntime
from quantyard.formats.finite_json import dump_finite_json
from quantyard.formats.gguf import GgufError, GgufHeader, read_gguf_model, why_gguf_cannot_generate
from quantyard.protocol.base import ExitCode
from quantyard.protocol.builder import CalibrateRequest
from quantyard.protocol.runner import Stage, StageFailure, StageOutcome, file_sha256, run_stage
from quantyard.sandbox.bounded_process import OverLimit
from quantyard.sandbox.chat_template import sandbox_template_failure

PARTIAL: Final = ".partial"
MATRIX: Final = "imatrix.gguf"
TEXT: Final = "calibration.txt"
_LARGEST_NATS: Final = 700.0  # exp of much more overflows
_LEAST_CHUNKS: Final = 2  # llama-imatrix refuses fewer, also when counting only what follows the skipped chunks


def calibrate(stage: Stage, request: CalibrateRequest) -> StageOutcome:
    """Compute the matrix of `/in/source/<source_file>`, continuing after the legs that an earlier run finished.

    Raises:
        StageFailure: 2 if the text cannot be used, 3 if the model cannot be calibrated or its activations overflow,
            5 if disk or memory ran out.
    """
    model = _read_gguf_to_calibrate(stage, request)
    request = request.model_copy(update={"n_ctx": min(request.n_ctx, model.context_length or request.n_ctx)})
    text = _write_calibration_text(stage, request, model)
    work = _Work(stage, request, model, text)
    matrix = work.run()
    facts = _calibration_facts(request, text, matrix, model) | work.perplexity()
    matrix.path.replace(stage.files_dir / MATRIX)
    shutil.rmtree(stage.files_dir / PARTIAL)
    facts["imatrix_sha256"] = stage.known_sha256[MATRIX] = file_sha256(stage.files_dir / MATRIX)
    return StageOutcome(facts=facts, tools={"llama.cpp": text.llama_cpp}, argv=tuple(work.argv))


# ---- the model and the text --------------------------------------------------------------------------


def _read_gguf_to_calibrate(stage: Stage, request: CalibrateRequest) -> GgufHeader:
    path = stage.in_dir / "source" / request.source_file
    try:
        model = read_gguf_model(path)
    except GgufError as error:
        raise StageFailure(ExitCode.BAD_REQUEST, "bad-gguf", f"{path.name} is not a usable GGUF: {error}") from error
    if why := why_gguf_cannot_generate(model):
        message = f"{path.name} cannot be calibrated: {why}."
        raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "calibrate", message, "Build without a matrix: IMATRIX=none")
    return model


@dataclass(frozen=True)
class _Text:
    """The calibration text as written to disk, and its length in tokens of this model."""

    path: Path
    sha256: str
    n_tokens: int
    dialogues: int  # how many were rendered with the model's own chat template
    llama_cpp: str  # version of the build that tokenized it


def _write_calibration_text(stage: Stage, request: CalibrateRequest, model: GgufHeader) -> _Text:
    """Write the text beside the matrix, so that the matrix can be reproduced from it."""
    with open_llama_runtime(stage, model, request.threads) as runtime:
        if request.text_files:
            text, dialogues = users_calibration_text([stage.in_dir / "text" / name for name in request.text_files]), 0
        else:
            text, dialogues = _our_calibration_text(runtime)
        n_tokens, build = len(runtime.tokenize(text, add_special=True)), runtime.version()
    least = _LEAST_CHUNKS * request.n_ctx
    if n_tokens < least:
        message = f"The calibration text has {n_tokens:,} tokens, and two chunks of {request.n_ctx} need {least:,}."
        hint = "Give a longer text (50,000 words or more is best), or leave CALIBRATION out to use Quantyard's own."
        raise bad_calibration_text(message, hint)
    path = stage.files_dir / TEXT
    path.write_text(text, encoding="utf-8")  # no newline at the end: llama-imatrix would cut one off
    return _Text(path, file_sha256(path), n_tokens, dialogues, build)


def _our_calibration_text(runtime: LlamaRuntime) -> tuple[str, int]:
    try:
        return own_calibration_text(runtime)
    except OverLimit as error:
        raise sandbox_template_failure(str(error)) from error


# ---- the legs ----------------------------------------------------------------------------------------


def calibration_legs(n_tokens: int, n_ctx: int, n_chunks: int, save_every: int) -> list[tuple[int, int]]:
    """First chunk and end (exclusive) of each leg. A rest too short for llama-imatrix is joined to the leg before."""
    whole = n_tokens // n_ctx
    end = min(n_chunks or whole, whole)
    starts = [at for at in range(0, end, save_every) if not at or (at + _LEAST_CHUNKS) * n_ctx < n_tokens]
    return list(pairwise([*starts, end]))


@dataclass
class _Work:
    """Runs the legs of one text. `argv` lists the command of every leg, also of those an earlier run finished."""

    stage: Stage
    request: CalibrateRequest
    model: GgufHeader
    text: _Text
    argv: list[tuple[str, ...]] = field(default_factory=list)
    _losses: list[LegLoss] = field(default_factory=list)

    @property
    def _folder(self) -> Path:
        return self.stage.files_dir / PARTIAL / self.text.sha256[:16]

    def run(self) -> Imatrix:
        """The matrix after the last leg."""
        self._folder.mkdir(parents=True, exist_ok=True)
        request, before = self.request, None
        todo = calibration_legs(self.text.n_tokens, request.n_ctx, request.n_chunks, request.save_every)
        with open_imatrix_reader(self.stage, self.model, request) as reader:
            for start, end in todo:
                leg = ImatrixLeg(start, end, before, self._matrix(end))
                self.argv.append(reader.leg_argv(self.text.path, leg))
                if not self._is_finished(end):
                    self._read(reader, leg)
                self._losses.append(LegLoss(**json.loads(self._note(end).read_text())))
                before = leg.out
                self.stage.progress(end, todo[-1][1], "chunks")
        assert before is not None
        matrix = read_imatrix(before)
        check_imatrix_fits(matrix, self.model)
        return matrix

    def _matrix(self, end: int) -> Path:
        return self._folder / f"upto-{end:06d}.gguf"

    def _note(self, end: int) -> Path:
        return self._folder / f"upto-{end:06d}.json"

    def _is_finished(self, end: int) -> bool:
        """Whether an earlier run finished this leg: its matrix and its note are both readable."""
        try:
            read_imatrix(self._matrix(end))
            json.loads(self._note(end).read_text())
        except (StageFailure, OSError, ValueError):
            return False
        return True

    def _read(self, reader: MatrixReader, leg: ImatrixLeg) -> None:
        # The matrix gets its final name last, so a leg with that name is complete.
        arriving = self._folder / f"arriving-{leg.end:06d}.gguf"
        loss = reader.read(self.text.path, replace(leg, out=arriving))
        if not math.isfinite(loss.nats):
            raise imatrix_not_finite(f"the perplexity of chunks {leg.start} to {leg.end - 1} is {loss.nats}")
        self._note(leg.end).write_text(dump_finite_json(asdict(loss)))
        arriving.replace(leg.out)

    def perplexity(self) -> dict[str, JsonValue]:
        """Perplexity of the chunks whose loss is known, and their number; {} where llama-imatrix printed none."""
        n_chunks = sum(loss.chunks for loss in self._losses)
        if not n_chunks:
            return {}
        nats = sum(loss.chunks * loss.nats for loss in self._losses) / n_chunks
        return {"perplexity": math.exp(min(nats, _LARGEST_NATS)), "perplexity_chunks": n_chunks}


def _calibration_facts(
    request: CalibrateRequest, text: _Text, matrix: Imatrix, model: GgufHeader
) -> dict[str, JsonValue]:
    return {
        "text": ", ".join(request.text_files) or "Quantyard's own", "text_sha256": text.sha256,
        "text_tokens": text.n_tokens, "dialogues_in_template": text.dialogues, "chunks": matrix.n_chunks,
        "chunk_tokens": matrix.chunk_tokens, **imatrix_coverage(matrix, model),
    }


def main() -> None:
    """Entry point of the stage."""
    run_stage(CalibrateRequest, calibrate)


if __name__ == "__main__":
    main()
