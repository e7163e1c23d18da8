"""What a stage leaves when it has ended: one line, with what it found."""

from __future__ import annotations

import pytest
from pydantic import JsonValue
from rich.progress import Progress

from quantyard.execution.live_progress import _Amount
from quantyard.execution.stage_lines import stage_end_lines
from quantyard.protocol.base import ExitCode, FileEntry, StageResult

_EVALUATE: dict[str, JsonValue] = {
    "n_questions": 160, "n_requests": 640, "requests_per_s": 41.3,
    "tasks": {"arc_easy": {"acc": 0.475, "acc_norm": 0.45}},
}  # fmt: skip
_MANY: dict[str, JsonValue] = {"n_questions": 4, "tasks": {name: {"acc": 0.5} for name in "abcd"}}
_REPORT: dict[str, JsonValue] = {"files": {"BF16": {}, "Q4_K_M": {"verdicts": {"same": 3, "worse": 1}}}}


@pytest.mark.parametrize(
    ("label", "facts", "says"),
    [
        ("evaluate Q4_K_M", _EVALUATE, "160 questions, arc_easy acc 47.5 %"),
        ("evaluate Q4_K_M", _MANY, "4 questions, a acc 50.0 %, b acc 50.0 %, c acc 50.0 %, …"),
        ("divergence BF16", {"perplexity": 21.0, "mean_kld": None}, "PPL 21.00"),
        ("divergence Q8_0", {"perplexity": 21.0, "mean_kld": 0.0312}, "PPL 21.00, mean KLD 0.0312"),
        (
            "speed Q8_0", {"prompt_tokens_per_s": 812.44, "generated_tokens_per_s": 61, "peak_memory_bytes": 1},
            "prompt 812 t/s, generated 61.0 t/s",
        ),
        ("report", _REPORT, "Q4_K_M: 3 same + 1 worse"),
        ("report", {}, "271 MB"),
        ("convert", {}, "271 MB"),
        ("verify Q8_0", {"bits_per_weight": 8.5, "probes": 565, "chats": 10}, "271 MB (565 probes, 10 conversations)"),
    ],
)
def test_the_line_of_a_stage_says_what_it_found(label: str, facts: dict[str, JsonValue], says: str) -> None:
    outputs = (FileEntry(path="file", size_bytes=271_000_000),)
    name = label.split(maxsplit=1)[0]
    result = StageResult(stage=name, exit_code=ExitCode.DONE, outputs=outputs, facts=facts, duration_s=12.34)
    assert stage_end_lines(label, result) == [f"[{label}] {says} in 12.3 s"]


def test_what_is_worth_knowing_of_a_conversion_follows_its_line() -> None:
    result = StageResult(
        stage="convert", exit_code=ExitCode.DONE, duration_s=1.0, facts={"notes": ["lm_head.weight differs."]}
    )
    assert stage_end_lines("convert", result)[1:] == ["  note: lm_head.weight differs."]


@pytest.mark.parametrize(
    ("unit", "says"), [("questions", "20 of 40 questions, 5.00/s"), ("tensors", "20 of 40 tensors"), ("", "")]
)
def test_what_people_wait_for_is_shown_with_its_pace(unit: str, says: str) -> None:
    clock = [0.0]
    bars = Progress(get_time=lambda: clock[0])
    task = bars.add_task("evaluate", total=40, unit=unit)
    for second in (1, 2, 3, 4):
        clock[0] = float(second)
        bars.update(task, completed=5 * second)
    assert str(_Amount().render(bars.tasks[0])) == says
