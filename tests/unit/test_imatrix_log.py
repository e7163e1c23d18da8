"""What llama-imatrix's output tells: whole, cut off before its end as it is on a busy machine, and of values that are
not numbers. Each text is the tool's own (llama.cpp 0.7.0), of a tiny model.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import cast

import pytest

from builder.imatrix.reader import LegLoss
from builder.imatrix.tool_reader import ImatrixLog, ToolReader
from builder.llama.run_tool import ToolRun
from quantyard.protocol.runner import Stage

STARTED = (
    "0.02.636 I compute_imatrix: tokenization took 23.018 ms\n"
    "0.02.639 I compute_imatrix: computing over 4 chunks, n_ctx=512, batch_size=512, n_seq=1\n"
)
ESTIMATES = "0.04.279 I compute_imatrix: 1.64 seconds per pass - ETA 0.10 minutes\n[1]817231.0729,[2]794937.0756,"
NEGATIVE = "Unexpected negative standard deviation of log(prob)\n"


def _read(output: str) -> ImatrixLog:
    log = ImatrixLog()
    for line in output.splitlines():
        log.read(line)
    return log


@pytest.mark.parametrize(
    ("end", "chunks", "perplexity"),
    [
        pytest.param(
            "[3]772899.5141,[4]727241.7713,\nFinal estimate: PPL = 727241.7713 +/- 55079.45849\n", 4, 727241.7713,
            id="whole",
        ),
        pytest.param("[3]772899.5141,[4]727241.7713,\n", 4, 727241.7713, id="without the final line"),
        pytest.param("[3]772899.5141,[4]727241.", 3, 772899.5141, id="cut off within a value"),
        pytest.param("[3]772899.5141,", 3, 772899.5141, id="without the last chunk"),
        pytest.param(f"[3]1.0000,[4]1.0000,\n{NEGATIVE}", 4, 1, id="no spread"),
    ],
)  # fmt: skip
def test_the_last_estimate_that_was_printed_counts(end: str, chunks: int, perplexity: float) -> None:
    loss = _read(STARTED + ESTIMATES + end).loss
    assert (loss.chunks, math.exp(loss.nats)) == (chunks, pytest.approx(perplexity))


def test_where_no_estimate_was_printed_the_loss_is_unknown_and_not_nan() -> None:
    assert _read(STARTED).loss == LegLoss(0, 0.0)


@pytest.mark.parametrize("value", ["-nan", "nan", "inf"])
def test_outputs_that_are_not_numbers_are_told_as_such(value: str) -> None:
    loss = _read(f"{STARTED}[1]{value},[2]{value},[3]{value},[4]{value},\n{NEGATIVE}").loss
    assert loss.chunks == 4 and not math.isfinite(loss.nats)


@pytest.mark.parametrize(
    ("output", "kind", "says"),
    [
        (STARTED + "0.1 E nan detected in blk.0.ffn_up.weight\n", "calibrate-nan", "nan in the inputs of blk.0.ffn_up"),
        (STARTED, "calibrate-nan", "its last line is missing"),
        (STARTED + "0.01.448.470 E ", "calibrate-nan", "its last line is missing"),
        (STARTED + "0.01.448 E compute_imatrix : failed to eval\n", "calibrate", "cannot read this model"),
        ("0.00.1 E main : failed to init\n", "calibrate", "cannot read this model"),
    ],
)  # fmt: skip
def test_a_run_that_failed_is_put_down_to_what_it_told_or_could_not_tell(
    output: str, kind: str, says: str, tmp_path: Path
) -> None:
    stage = cast("Stage", type("InStage", (), {"out_dir": tmp_path}))
    failure = ToolReader(stage, tmp_path, 1, 512).failure(ToolRun(("x",), 1, output), _read(output))
    assert failure.error.kind == kind and says in failure.error.message
