"""llama-imatrix as a `MatrixReader`, for the containers."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from builder.imatrix.reader import ImatrixLeg, imatrix_not_finite
from builder.llama.run_tool import ToolRun, refuse_exhausted_tool, run_llama_tool
from builder.llama.toolchain import llama_tools
from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import Stage, StageFailure

_PPL: Final = re.compile(r"Final estimate: PPL = (\S+)")
_NOT_FINITE: Final = re.compile(r"(\S*(?:nan|inf)) detected in (\S+)", re.IGNORECASE)


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

    def read(self, text: Path, leg: ImatrixLeg) -> float:
        """See `MatrixReader`."""
        found: dict[str, str] = {}
        run = run_llama_tool(
            self.leg_argv(text, leg), llama_tools(self.stage).clean_env, lambda line: _read_line(line, found)
        )
        if run.exit_code != 0 or not leg.out.exists():
            raise self._failure(run, found)
        return float(found.get("perplexity", "nan"))

    def _failure(self, run: ToolRun, found: dict[str, str]) -> StageFailure:
        if "not_finite" in found:
            return imatrix_not_finite(found["not_finite"], run.tail)
        refuse_exhausted_tool(run, self.stage.out_dir, "llama-imatrix")
        message = f"llama-imatrix cannot read this model ({run.end})."
        hint = "Its last output says why. Build without a matrix: IMATRIX=none"
        return StageFailure(ExitCode.UNSUPPORTED_MODEL, "calibrate", message, hint, run.tail)


def _read_line(line: str, found: dict[str, str]) -> None:
    if match := _PPL.search(line):
        found["perplexity"] = match[1]
    elif match := _NOT_FINITE.search(line):
        found["not_finite"] = f"{match[1]} in the inputs of {match[2]}"
