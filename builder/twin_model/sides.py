"""The two sides of a comparison with Transformers: runs llama.cpp's, says why one ended, and reads what both wrote."""

from __future__ import annotations

from pathlib import Path
from typing import Final

import numpy as np

from builder.llama.run_tool import ToolRun, run_llama_tool
from builder.llama.toolchain import LlamaTools
from builder.twin_model.compare import TwinAgreement, compare_logits
from quantyard.llama.library import llama_library_path

SCRIPTS: Final = Path(__file__).parent
TOLD_REASON: Final = 3  # exit code of the scripts whose last line says why
LACKS_PACKAGE: Final = 4  # the same, of a package that is not installed
_MAX_REASON: Final = 600


class NotComparedError(Exception):
    """There is nothing to compare; the message says why, as the end of a sentence.

    Attributes:
        lacks_package: because a package is not installed beside the converter; another environment may compare them.
    """

    def __init__(self, reason: str, *, lacks_package: bool = False) -> None:
        super().__init__(reason)
        self.lacks_package = lacks_package


def compute_llama_side(
    tools: LlamaTools, gguf: Path, out: Path, threads: int, timeout_s: float, *, with_layers: bool = False
) -> None:
    """Write llama.cpp's logits of `out/prompts.json` to `out`, and the outputs of its layers if asked for.

    Raises:
        NotComparedError: llama.cpp cannot.
    """
    argv = [str(tools.converter_python), str(SCRIPTS / "llama_logits.py"), "--gguf", str(gguf), "--out", str(out)]
    argv += ["--library", llama_library_path(tools.llama_bin), "--prompts", str(out / "prompts.json")]
    argv += ["--threads", str(threads), *(["--layers"] if with_layers else [])]
    refuse_failed_side(run_llama_tool(argv, tools.clean_env, lambda _line: None, timeout_s), "llama.cpp")


def refuse_failed_side(run: ToolRun, who: str) -> None:
    """Raise NotComparedError if this side failed."""
    if run.exit_code == LACKS_PACKAGE:
        raise NotComparedError(last_words_of_side(run, who, LACKS_PACKAGE), lacks_package=True)
    if run.exit_code != 0:
        raise NotComparedError(last_words_of_side(run, who, TOLD_REASON))


def compare_sides(out: Path, side: str, number: int, positions: list[int]) -> TwinAgreement:
    """How far a side is from Transformers on one prompt.

    Raises:
        NotComparedError: the logits are not finite, or not of one prompt.
    """
    original, other = (np.load(out / f"{name}-{number}.npy", allow_pickle=False) for name in ("hf", side))
    try:
        return compare_logits(original, other, positions)
    except ValueError as error:
        raise NotComparedError(f"its logits cannot be compared: {error}") from error


def last_words_of_side(run: ToolRun, who: str, told: int | None = None) -> str:
    """Its own last line where its exit code is `told`, else whose it was; the end of a sentence."""
    lines = run.tail.splitlines() or ["no output"]
    if run.exit_code == told:
        return f"{'llama.cpp ' if who == 'llama.cpp' else ''}{lines[-1]}"[:_MAX_REASON]
    how = f"signal {-run.exit_code}" if run.exit_code < 0 else f"exit code {run.exit_code}"
    return f"{who} ends with {how} on it: {lines[-1]}"[:_MAX_REASON]
