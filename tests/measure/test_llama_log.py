"""llama.cpp has one log for the process; whoever set it may be gone when a line comes."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import gc, sys
import llama_cpp
from quantyard.llama.library import LogTail

for _ in range(3):
    LogTail(llama_cpp)
last = LogTail(llama_cpp)
keep = last if sys.argv[1] == "held" else None
del last
gc.collect()
blocks = [bytes(64) for _ in range(1000)]  # over what was freed
llama_cpp.llama_model_load_from_file(b"no-such-file.gguf", llama_cpp.llama_model_default_params())
print(keep.words() if keep else "went on")
"""


def run(held: str) -> str:
    ended = subprocess.run([sys.executable, "-c", PROGRAM, held], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_the_last_lines_are_kept_for_the_error_message() -> None:
    assert "no-such-file.gguf" in run("held")


def test_a_log_that_nobody_holds_any_more_does_not_end_the_process() -> None:
    assert run("dropped") == "went on\n"
