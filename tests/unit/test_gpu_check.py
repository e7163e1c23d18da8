"""scripts/check-gpu.sh: its table tells a right GPU build from a wrong one, and what is missing is said."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from quantyard.paths import REPO_DIR

pytest.importorskip("numpy")
SCRIPT = REPO_DIR / "scripts" / "check-gpu.sh"
_REPORT = {"checks": [{"name": name, "status": "passed", "finding": ""} for name in ("chat", "stream")]}


def _measured(noise: float = 0.0, speed: float = 10.0) -> dict[str, Any]:
    random, more = np.random.default_rng(0), np.random.default_rng(1)
    logits = 4 * random.standard_normal((64, 200)).astype(np.float32)
    logits += np.float32(noise) * more.standard_normal(logits.shape).astype(np.float32)
    return {
        "loglikelihoods": -50 + random.standard_normal(8) + 12 * noise, "logits": logits,
        "targets": np.arange(64, dtype=np.int32), "greedy": np.arange(8, dtype=np.int32).reshape(2, 4),
        "evaluation": np.array(speed), "prompt": np.array(speed), "generation": np.array(speed),
        "backend": np.array("a backend"),
    }  # fmt: skip


def _table(folder: Path, gpu: dict[str, Any], api: dict[str, Any] | None = None) -> tuple[int, str]:
    for name in ("F16", "Q4_K_M"):
        np.savez(folder / f"{name}-cpu.npz", **_measured())
        np.savez(folder / f"{name}-gpu.npz", **gpu)
    (folder / "api-cpu.json").write_text(json.dumps(_REPORT))
    (folder / "api-gpu.json").write_text(json.dumps(api or _REPORT))
    done = subprocess.run(
        [sys.executable, "scripts/gpu_check/compare.py", str(folder)], cwd=REPO_DIR, check=False,
        env=os.environ | {"PYTHONPATH": str(REPO_DIR)}, capture_output=True, text=True,
    )  # fmt: skip
    assert not done.stderr
    return done.returncode, done.stdout


def test_two_right_builds_differ_within_the_bounds_and_the_speed_is_a_ratio(tmp_path: Path) -> None:
    code, table = _table(tmp_path, _measured(noise=0.005, speed=250.0))
    assert code == 0 and "WRONG" not in table
    assert "F16: prompt                        25.0 × (10 → 250 tokens/s)" in table


@pytest.mark.commands
def test_the_most_likely_faults_of_a_gpu_build_are_found(tmp_path: Path) -> None:
    shuffled = _measured()
    shuffled["logits"] = shuffled["logits"][:, ::-1].copy()
    silent = _measured() | {"logits": np.zeros((64, 200), np.float32)}
    other_text = _measured() | {"greedy": np.full((2, 4), 77, np.int32)}
    other_scores = _measured() | {"loglikelihoods": _measured()["loglikelihoods"] * 2}
    for number, gpu in enumerate((shuffled, silent, other_text, other_scores, _measured(noise=1.0))):
        (tmp_path / str(number)).mkdir()
        code, table = _table(tmp_path / str(number), gpu)
        assert code == 1 and "WRONG" in table, number


@pytest.mark.commands
def test_a_promise_that_only_the_gpu_breaks_is_named(tmp_path: Path) -> None:
    broken = {"checks": [_REPORT["checks"][0], {"name": "stream", "status": "failed", "finding": "no end of stream"}]}
    code, table = _table(tmp_path, _measured(), broken)
    assert code == 1 and "no end of stream" in table
    assert _table(tmp_path, _measured(), _REPORT)[0] == 0


@pytest.mark.parametrize(
    ("arguments", "tools", "code", "words"),
    [
        (["--gpu"], "", 2, "Unknown argument '--gpu'"),
        ([], "cmake c++ python3", 45, "nvcc is missing"),
        (["--cpu"], "cmake c++ python3", 45, "has no sources"),
        (["--cpu"], "c++ python3", 45, "cmake is missing"),
    ],
)
def test_what_is_missing_is_said_with_what_to_type(
    tmp_path: Path, arguments: list[str], tools: str, code: int, words: str
) -> None:
    for tool in (*tools.split(), "bash", "dirname", "env"):
        program = tmp_path / tool
        if tool in ("bash", "dirname", "env"):
            program.symlink_to(f"/usr/bin/{tool}")
        else:
            program.write_text("#!/bin/sh\n")
            program.chmod(0o755)
    environment = {"PATH": str(tmp_path), "PACK": str(tmp_path / "none"), "WORK": str(tmp_path / "work")}
    done = subprocess.run([SCRIPT, *arguments], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == code and words in done.stderr, done.stderr


def test_what_is_left_out_for_the_proxy_are_checks_of_the_api_test() -> None:
    from scripts.gpu_check.api import OF_THE_PROXY
    from server.api_checks.table import CHECKS

    assert {check.name for check in CHECKS} >= OF_THE_PROXY
