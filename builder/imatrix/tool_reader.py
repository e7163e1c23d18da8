"""llama-imatrix as a `MatrixReader`, for the containers.

llama-imatrix exits without waiting for its log thread (llama.cpp pull request 22273), so its last lines may be missing.
A missing line is told from NaN.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from builder.imatrix.reader import ImatrixLeg, LegLoss, imatrix_not_finite
from builder.llama.run_tool import ToolRun, refuse_exhausted_tool, run_llama_tool
from builder.llama.toolchain import llama_tools
from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import Stage, StageFailure

_STARTED: Final = "computing over"
_ESTIMATE: Final = re.compile(r"\[(\d+)\](-?(?:[\d.]+|nan|inf))(?=,)")  # of all chunks so far
_NOT_FINITE: Final = re.compile(r"(\S*(?:nan|inf)) detected in (\S+)", re.IGNORECASE)
_UNTOLD: Final = "llama-imatrix stopped at a chunk, most likely at NaN or infinity; its last line is missing"


@dataclass(frozen=True)
class ToolReader:
    """Runs llama-imatrix as a subprocess, once per leg."""

    stage: Stage
    model: Path
    threads: int
    n_ctx: int

    def leg_argv(self, text: Path, leg: ImatrixLeg) -> tuple[str, ...]:
        """See `MatrixReader`: the command line."""
        llama_bin, n_ctx = llama_tools(self.stage).llama_bin, str(self.n_ctx)
        assert llama_bin is not None
        argv = [str(llama_bin / "llama-imatrix"), "--model", str(self.model), "--file", str(text)]
        # The frequency is out of reach, so that llama-imatrix never saves in the middle of a leg.
        argv += ["--parse-special", "--no-escape", "--output-frequency", "1000000"]
        argv += ["--ctx-size", n_ctx, "--batch-size", n_ctx, "--ubatch-size", n_ctx]
        argv += ["--chunks", str(leg.end - leg.start)]
        argv += ["--chunk", str(leg.start), "--in-file", str(leg.before)] if leg.before else []
        argv += ["--threads", str(self.threads)] if self.threads else []
        return (*argv, "--output-file", str(leg.out))

    def read(self, text: Path, leg: ImatrixLeg) -> LegLoss:
        """See `MatrixReader`."""
        log = ImatrixLog()
        run = run_llama_tool(self.leg_argv(text, leg), llama_tools(self.stage).clean_env, log.read)
        if run.exit_code != 0 or not leg.out.exists():
            raise self.failure(run, log)
        return log.loss

    def failure(self, run: ToolRun, log: ImatrixLog) -> StageFailure:
        if log.not_finite:
            return imatrix_not_finite(log.not_finite, run.tail)
        refuse_exhausted_tool(run, self.stage.out_dir, "llama-imatrix")
        if run.exit_code == 1 and log.is_reading:
            return imatrix_not_finite(_UNTOLD, run.tail)
        message = f"llama-imatrix cannot read this model ({run.end})."
        hint = "Its last output says why. Build without a matrix: IMATRIX=none"
        return StageFailure(ExitCode.UNSUPPORTED_MODEL, "calibrate", message, hint, run.tail)


@dataclass
class ImatrixLog:
    """What the lines of llama-imatrix said so far."""

    loss: LegLoss = field(default_factory=LegLoss)
    not_finite: str = ""
    is_reading: bool = False  # it has started on the text, and no line since reports a failure

    def read(self, line: str) -> None:
        """The next line."""
        for chunks, value in _ESTIMATE.findall(line):
            self.loss = LegLoss(int(chunks), math.log(float(value)))
        if match := _NOT_FINITE.search(line):
            self.not_finite = f"{match[1]} in the inputs of {match[2]}"
        if _STARTED in line:
            self.is_reading = True
        elif "fail" in line.lower():
            self.is_reading = False
