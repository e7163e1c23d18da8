"""How a stage ends: with JSON that others read, which says what is wrong with the model, not with the request."""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest

from eval.analysis.kl_divergence import perplexity_value
from quantyard.protocol.base import ExitCode
from quantyard.protocol.builder import VerifyRequest
from quantyard.protocol.estimates import Estimate
from quantyard.protocol.runner import Stage, StageOutcome, run_stage
from quantyard.protocol.stage_result import parse_stage_result


def _run(
    monkeypatch: pytest.MonkeyPatch, folder: Path, facts: object, request: str = ""
) -> tuple[int, dict[str, object]]:
    """The exit code of a stage that finds these facts, and its result."""
    request = request or VerifyRequest(model_file="a", source_file="b", quant="Q8_0").model_dump_json()
    (folder / "in").mkdir(exist_ok=True)
    (folder / "out").mkdir(exist_ok=True)
    (folder / "in" / "request.json").write_text(request)
    monkeypatch.setattr(sys, "argv", ["stage", "--in", str(folder / "in"), "--out", str(folder / "out")])

    def work(_stage: Stage, _request: VerifyRequest) -> StageOutcome:
        return StageOutcome(facts=facts() if callable(facts) else facts)  # type: ignore[arg-type]

    with pytest.raises(SystemExit) as ended:
        run_stage(VerifyRequest, work)
    text = (folder / "out" / "result.json").read_text()
    return int(ended.value.code or 0), json.loads(text, parse_constant=pytest.fail)


def _divergence(nats: float) -> dict[str, object]:
    return {"perplexity": perplexity_value(np.array([nats, nats + 1.0]))}


@pytest.mark.parametrize(
    ("facts", "says"),
    [
        (lambda: _divergence(297.0), "perplexity is 1.594"),  # the loss of a random model of large weights
        (lambda: _divergence(900.0), "perplexity is 1.0142"),
        ({"tasks": {"wikitext": {"word_perplexity": 1e129}}}, "tasks.wikitext.word_perplexity is 1e+129"),
        ({"max_delta": math.inf}, "max_delta is inf"),
        ({"max_delta": math.nan}, "max_delta is nan"),
        (lambda: Estimate(value=math.nan, stderr=0.0).model_dump(), "value is nan"),
    ],
)
def test_a_value_beyond_any_measure_is_the_models_fault(
    facts: object, says: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, result = _run(monkeypatch, tmp_path, facts)
    assert code == ExitCode.UNSUPPORTED_MODEL == result["exit_code"]
    error = result["error"]
    assert isinstance(error, dict) and error["kind"] == "not-finite"
    assert error["message"].startswith("A value computed from this model is beyond any measure: ")
    assert says in error["message"]
    assert "random or broken" in error["hint"]


def test_a_large_perplexity_is_still_a_result(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    code, result = _run(monkeypatch, tmp_path, lambda: _divergence(200.0))
    assert code == 0 and result["error"] is None
    assert parse_stage_result((tmp_path / "out" / "result.json").read_bytes()).facts == result["facts"]


@pytest.mark.parametrize("request_text", ["{}", '{"stage": "verify"}', "not json"])
def test_a_request_that_is_not_valid_says_so(
    request_text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    code, result = _run(monkeypatch, tmp_path, {}, request_text)
    error = result["error"]
    assert code == ExitCode.BAD_REQUEST and isinstance(error, dict) and "request is not valid" in error["message"]
