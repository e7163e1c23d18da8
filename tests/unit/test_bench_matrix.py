"""The benchmark of the matrix: what it reads from a run, and what it says of it."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from quantyard.execution.stage_lines import stage_end_lines
from quantyard.protocol.base import ExitCode, StageResult
from scripts.bench_matrix import Cores, Found, Run, stage_of, whole_walls

LABELS = ("convert", "quantize Q4_K_M", "verify Q4_K_M", "divergence BF16, Q4_K_M", "report")


def line(label: str) -> str:
    stage = label.partition(" ")[0]
    result = StageResult(stage=stage, exit_code=ExitCode.DONE, facts={"bits_per_weight": 4.5}, duration_s=1.0)
    return "\n".join(stage_end_lines(label, result)) + "\n"


def run(wall_s: float, divergence_s: float = 1.0) -> Run:
    return Run(wall_s, {"divergence": divergence_s + 1}, {"divergence": divergence_s})


def found(**other: float) -> Found:
    one = {"matrix": 50.0, "built": 20.0, "divergence": 58.0, "cores": 0.9} | other
    builds, evals = run(60.0), run(40.0, 99.0)
    return Found(run(one["built"]), run(one["matrix"], one["divergence"]), builds, evals, one["cores"])


def test_the_line_of_each_stage_is_known_and_no_other() -> None:
    names = ["convert", "quantize, verify", "quantize, verify", "divergence", "report"]
    assert [stage_of(line(label)) for label in LABELS] == names
    assert [stage_of(text) for text in ("Disk   954 MB more", "[no stage] of ours", "")] == ["", "", ""]


def test_a_stage_has_the_time_since_the_line_before_its_own() -> None:
    ended = zip((5.0, 7.0, 8.0, 20.0, 21.5), map(line, LABELS), strict=True)
    walls = {"convert": 5.0, "quantize, verify": 3.0, "divergence": 12.0, "report": 1.5}
    assert whole_walls([(0.0, "Files …\n"), *ended, (30.0, "done\n")]) == walls


def test_cores_are_watched_only_while_a_quantize_stage_has_no_result(tmp_path: Path) -> None:
    if not Path("/proc/stat").exists():
        pytest.skip("no /proc/stat")
    out = tmp_path / "org" / "name" / "commit" / "stages" / ".quantize-Q8_0-abc" / "out"
    (out / "files").mkdir(parents=True)
    cores = Cores(tmp_path)
    with cores.watching():
        time.sleep(0.4)
    assert 0.0 <= cores.share <= 1.0
    (out / "result.json").touch()
    ended = Cores(tmp_path)
    with ended.watching():
        time.sleep(0.2)
    assert ended.total == 0
    with pytest.raises(SystemExit):
        _ = ended.share


def test_each_limit_is_held_or_named() -> None:
    assert [row.holds for row in found().rows()] == [True] * 4
    assert [round(row.measured, 2) for row in found().rows()] == [0.5, 0.33, 0.58, 0.9]
    for n, over in enumerate(({"matrix": 61.0}, {"built": 25.0}, {"divergence": 63.0}, {"cores": 0.8})):
        assert [row.holds for row in found(**over).rows()] == [at != n for at in range(4)]


def test_the_table_tells_what_no_stage_did() -> None:
    assert found().lines()[-1].split()[-2:] == ["18.0", "58.0"]
