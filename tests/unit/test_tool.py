"""Running a tool: its lines, its end, and whether it ran out of something."""

from __future__ import annotations

import errno
import sys
from pathlib import Path

import pytest

from builder.llama.run_tool import ToolRun, refuse_exhausted_tool, run_llama_tool
from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure


def test_a_progress_bar_is_read_line_by_line_and_the_last_lines_are_kept() -> None:
    lines: list[str] = []
    run = run_llama_tool([sys.executable, "-c", "print('10%\\r20%\\rdone'); raise SystemExit(3)"], {}, lines.append)
    assert lines == ["10%", "20%", "done"]
    assert (run.exit_code, run.tail) == (3, "10%\n20%\ndone")


@pytest.mark.parametrize("words", ["OSError: [Errno 28] No space left on device", "error: failed to write 4096 bytes"])
def test_a_tool_that_says_so_ran_out_of_disk(words: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left") as error:
        refuse_exhausted_tool(ToolRun(("x",), 1, words), tmp_path, "x")
    assert error.value.errno == errno.ENOSPC


@pytest.mark.parametrize(("exit_code", "tail"), [(-9, ""), (1, "MemoryError")])
def test_a_killed_tool_ran_out_of_memory(exit_code: int, tail: str, tmp_path: Path) -> None:
    with pytest.raises(StageFailure, match="memory ran out") as failure:
        refuse_exhausted_tool(ToolRun(("x",), exit_code, tail), tmp_path, "x")
    assert failure.value.exit_code == ExitCode.RESOURCES
    assert failure.value.error.hint


def test_any_other_end_is_left_to_the_stage(tmp_path: Path) -> None:
    refuse_exhausted_tool(ToolRun(("x",), 1, "ValueError: cannot map tensor"), tmp_path, "x")
