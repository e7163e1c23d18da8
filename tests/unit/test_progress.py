"""What a stage leaves when it has ended: one line, with what it found."""

from __future__ import annotations

import io

import pytest
from pydantic import JsonValue
from rich.console import Console

from quantyard.execution.live_progress import LiveReporter
from quantyard.execution.progress import LineReporter
from quantyard.execution.progress_text import RunningStep, RunningSteps
from quantyard.execution.stage_lines import stage_end_lines
from quantyard.protocol.base import ExitCode, FileEntry, Progress, StageResult

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
        ("evaluate Q4_K_M", _MANY, "4 questions, a acc 50.0 %, b acc 50.0 %, c acc 50.0 %, 1 more task in the report"),
        ("divergence BF16", {"perplexity": 21.0, "mean_kld": None}, "PPL 21.00"),
        ("divergence Q8_0", {"perplexity": 21.0, "mean_kld": 0.0312}, "PPL 21.00, mean KLD 0.0312"),
        (
            "speed Q8_0", {"prompt_tokens_per_s": 812.44, "generated_tokens_per_s": 61, "peak_memory_bytes": 1},
            "prompt 812 tokens/s, generated 61.0 tokens/s",
        ),
        ("report", _REPORT, "Q4_K_M: 3 same + 1 worse"),
        ("report", {}, "passed"),
        ("contract Q8_0", {"passed": True, "n_checks": 31, "failed": []}, "none of 31 checks failed"),
        ("contract Q8_0", {"n_checks": 31, "failed": ["chat", "tools"]}, "2 of 31 checks failed: chat, tools"),
        ("rounding", {}, "passed"),
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


class _Clock:
    """A clock that stands where it is put."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def _line(done: int, total: int | None, unit: str, what: str = "") -> Progress:
    return Progress.model_validate({"stage": "x", "done": done, "total": total, "unit": unit, "what": what})


@pytest.mark.parametrize(
    ("told", "says"),
    [
        (_line(20, 40, "questions", "arc_easy"),
         "20 of 40 questions (50 %), 5.00/s · elapsed 0:06 · about 4 s left · arc_easy"),
        (_line(20, 40, "tensors", "blk.3.attn_q.weight"),
         "20 of 40 tensors (50 %) · elapsed 0:06 · about 4 s left · blk.3.attn_q.weight"),
        (_line(200_000_000, 400_000_000, "bytes"),
         "200 MB of 400 MB (50 %), 50.0 MB/s · elapsed 0:06 · about 4 s left"),
        (_line(40, 40, "checks"), "40 of 40 checks (100 %) · elapsed 0:06 · about 1 s left"),
        (_line(0, None, "checks", "the server starts"), "elapsed 0:06 · about 5 min left · the server starts"),
        (_line(0, 0, "checks"), "0 of 0 checks · elapsed 0:06 · about 5 min left"),
    ],
)  # fmt: skip
def test_a_running_stage_says_how_far_it_is_what_is_left_and_what_runs(told: Progress, says: str) -> None:
    step = RunningStep(clock := _Clock(), expected_s=306)
    clock.now = 2.0
    step.take(told.model_copy(update={"done": 0}))
    clock.now = 6.0
    step.take(told)
    assert step.text == says


def test_what_is_left_is_said_once_it_is_known() -> None:
    step = RunningStep(clock := _Clock())
    assert step.text == "elapsed 0:00"
    clock.now = 3725.0
    assert step.text == "elapsed 1:02:05"


def test_the_whole_run_says_what_is_left_by_the_plan() -> None:
    steps = RunningSteps({"convert": 60.0, "quantize Q8_0": 120.0, "speed Q8_0": 60.0}, clock := _Clock())
    steps.begin("convert", 2, 4)
    clock.now = 20.0
    assert steps.text == "1 of 4 stages · elapsed 0:20 · about 4 min left"
    steps.end("convert")
    steps.begin("quantize Q8_0", 3, 4)
    clock.now = 80.0
    assert steps.text == "2 of 4 stages · elapsed 1:20 · about 2 min left"
    assert steps.running["quantize Q8_0"].text == "elapsed 1:00 · about 60 s left"
    clock.now = 170.0  # 30 s more than planned
    assert steps.text == "2 of 4 stages · elapsed 2:50", "what takes longer than planned has no end yet"
    steps.take("quantize Q8_0", _line(1, 40, "tensors"))
    clock.now = 180.0
    steps.take("quantize Q8_0", _line(31, 40, "tensors"))
    assert steps.text == "2 of 4 stages · elapsed 3:00 · about 63 s left"
    steps.end("quantize Q8_0")
    steps.begin("speed Q8_0", 4, 4)
    clock.now = 260.0
    assert steps.running["speed Q8_0"].text == "elapsed 1:20"


def test_the_steps_of_a_publication_are_files_whatever_the_plan_of_the_build_was() -> None:
    steps = RunningSteps({"convert": 60.0}, _Clock())
    steps.begin("model.gguf", 1, 3)
    steps.take("model.gguf", _line(1, 2, "bytes").model_copy(update={"stage": "publish"}))
    assert steps.text == "0 of 3 files · elapsed 0:00"


def test_a_log_gets_a_line_of_a_long_stage_each_minute() -> None:
    out, clock = io.StringIO(), _Clock()
    reporter = LineReporter(Console(file=out, width=200), clock)
    reporter.begin("contract Q8_0", 1, 2)
    for second in range(0, 150, 10):
        clock.now = float(second)
        reporter.progress("contract Q8_0", _line(second // 10, 31, "checks", f"check {second}"))
    reporter.progress("quantize Q8_0", _line(1, 2, "tensors"))  # it does not run
    reporter.end("contract Q8_0", StageResult(stage="contract", exit_code=ExitCode.DONE, duration_s=150.0))
    assert out.getvalue().splitlines() == [
        "[contract Q8_0] 6 of 31 checks (19 %) · elapsed 1:00 · about 4 min left · check 60",
        "[contract Q8_0] 12 of 31 checks (39 %) · elapsed 2:00 · about 3 min left · check 120",
        "[contract Q8_0] passed in 2 min",
    ]


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("label", ["evaluate Q4_K_M", "plots/a-long-name-of-what-is-sent-Q4_K_M-00001-of-00002.gguf"])
def test_bars_cut_nothing_at_any_width(label: str, width: int) -> None:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    reporter = LiveReporter(console)
    reporter.begin(label, 1, 12)
    reporter.progress(label, _line(320, 640, "questions", "leaderboard_gpqa"))
    console.print(reporter._renderable())
    lines = out.getvalue().splitlines()
    assert max(map(len, lines)) <= width - len("^C") and "…" not in out.getvalue()
    for words in ("320 of 640", "elapsed 0:00", "leaderboard_gpqa"):
        assert words in out.getvalue()


@pytest.mark.parametrize(
    ("kind", "outcome", "says"),
    [
        ("leading-space", "warn", "warning: llama.cpp tokenizes white space at the beginning of a text or after a"),
        ("leading-space", "warn", "(leading-space): 23 probes differ. Compare answers to such texts with the"),
        ("script:old-italic", "record", "recorded: llama.cpp tokenizes text in Old Italic script otherwise than"),
        ("script:old-italic", "record", "(script:old-italic): 23 probes differ. Nothing to do unless your texts hold"),
        ("plain-text", "allowed", "23 probes differ. It was permitted by ALLOW_MISMATCH, and the card says so."),
    ],
)  # fmt: skip
def test_a_finding_of_the_tokenizer_says_what_it_means_and_what_to_do(kind: str, outcome: str, says: str) -> None:
    findings: JsonValue = [{"kind": kind, "outcome": outcome, "probes": 23}]
    facts: dict[str, JsonValue] = {"bits_per_weight": 8.5, "findings": findings}
    result = StageResult(stage="verify", exit_code=ExitCode.DONE, facts=facts, duration_s=1.0)
    (line,) = stage_end_lines("verify Q8_0", result)[1:]
    assert says in line
