"""OpenVINO as a second runtime: what is planned, how its process is spoken to, and how it is shown."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import quantyard
from eval.analysis.greedy_texts import share_before_difference
from eval.rendering.openvino_table import markdown_openvino_section
from eval.runtimes.openvino_process import (
    OpenVinoModel,
    OpenVinoRefused,
    openvino_refused,
    openvino_worker_argv,
    refuse_openvino_rows,
)
from quantyard.card.render import card_differences, render_card
from quantyard.cli.parser import add_command_options
from quantyard.cli.render.openvino_table import terminal_openvino_files
from quantyard.cli.request import read_command_request
from quantyard.engines.local import LocalEngine
from quantyard.errors import BadRequest
from quantyard.formatting.numbers import DASH
from quantyard.protocol.estimates import Estimate
from quantyard.protocol.measurements import EvalReport
from quantyard.protocol.openvino import OpenVinoSettings
from quantyard.protocol.openvino_results import OpenVinoMeasurement
from quantyard.protocol.runner import StageFailure
from quantyard.report_page.openvino_table import page_openvino_sentence, page_openvino_table
from quantyard.report_page.render import render_report_page
from quantyard.report_page.tables import PageFile
from quantyard.requests import MeasureRequest, RunEnvironment
from quantyard.sources.resolve import Source
from quantyard.workflows import planning
from tests.cards import CONTEXT
from tests.manifests import manifest_of
from tests.unit.fake_engine import FakeEngine

# ---- the setting and the plan --------------------------------------------------------------------------


def _asked(**environment: str) -> MeasureRequest:
    parser = argparse.ArgumentParser()
    add_command_options(parser)
    found = read_command_request(parser.parse_args([]), environment).measure
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("typed", "taken"), [("", None), ("llama.cpp", None), ("openvino", "openvino"), (" OpenVINO ", "openvino")]
)
def test_a_second_runtime_is_read_as_people_write_it(typed: str, taken: str | None) -> None:
    assert _asked(RUNTIME=typed).runtime == taken


@pytest.mark.parametrize("typed", ["vllm", "openvino,mlx", "1"])
def test_another_runtime_is_refused_with_the_one_that_there_is(typed: str) -> None:
    with pytest.raises(BadRequest, match="RUNTIME=") as refused:
        _asked(RUNTIME=typed)
    assert "openvino" in refused.value.hint


def _evaluated(monkeypatch: pytest.MonkeyPatch, folder: Path, source: Source, engine: FakeEngine, **more: Any) -> Any:
    monkeypatch.setattr(planning, "_source_of_request", lambda _request: source)
    monkeypatch.setattr(planning, "choose_engine", lambda *_: (engine, "asked for"))
    monkeypatch.setenv("ARTIFACTS", str(folder / "artifacts"))
    return quantyard.evaluate("x", quant="Q4_K_M,Q8_0", suite="smoke", limit=3, **more)


@pytest.mark.commands
def test_every_file_but_the_baseline_is_measured_in_it_in_a_report_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_source: Source
) -> None:
    engine = FakeEngine()
    engine.name = "local"
    built = _evaluated(monkeypatch, tmp_path, local_source, engine, runtime="openvino")
    assert [label for label in engine.ran if label.startswith("openvino")] == ["openvino Q4_K_M", "openvino Q8_0"]
    assert built.report.suite.name == "smoke+limit-3+openvino" and "openvino" in engine.prepared
    record = built.manifest.stages["openvino Q8_0"]
    assert set(record.inputs) == {"model", "baseline"} and record.request["machine"]
    assert {"openvino-Q4_K_M", "openvino-Q8_0"} <= set(built.manifest.stages["report"].inputs)


@pytest.mark.commands
def test_an_engine_without_it_is_refused_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_source: Source
) -> None:
    engine = FakeEngine()
    with pytest.raises(BadRequest, match="ENGINE=local"):
        _evaluated(monkeypatch, tmp_path, local_source, engine, runtime="openvino")
    assert engine.ran == [] and engine.prepared == []


def test_its_environment_counts_for_its_own_stage_alone(tmp_path: Path) -> None:
    engine = LocalEngine(RunEnvironment(tmp_path))
    (tmp_path / ".venv-local").mkdir()
    (tmp_path / ".venv-local/.ready").write_text("local 1\n")
    alone = engine.identity("eval")
    assert alone is not None and engine.identity("openvino") is None
    (tmp_path / ".venv-openvino").mkdir()
    (tmp_path / ".venv-openvino/.ready").write_text("openvino 1\n")
    first = engine.identity("openvino")
    assert engine.identity("eval") == alone and first is not None and first.startswith(alone)
    (tmp_path / ".venv-openvino/.ready").write_text("openvino 2\n")
    assert engine.identity("openvino") not in (first, None)


# ---- its process ---------------------------------------------------------------------------------------

_WORKER = """
import json, sys
import numpy as np
print("a library speaks", file=sys.stderr)
print(json.dumps({"versions": {"openvino": "1"}, "weight_bytes": {"u4": 8}}), flush=True)
for line in sys.stdin:
    ask = json.loads(line)
    if ask["generate"]:
        answer = {"tokens": ask["tokens"][:1] * ask["generate"], "prompt_s": 0.5, "token_s": 0.25}
    else:
        if len(ask["tokens"]) == 3:
            print("no memory left", file=sys.stderr); sys.exit(9)
        rows = np.arange(len(ask["tokens"]) - 1 - ask["first"], dtype=np.float16)[:, None] * np.ones(4, np.float16)
        np.save(ask["rows_file"], rows)
        answer = {"computes": {"KV_CACHE_PRECISION": "u8"}}
    print(json.dumps(answer), flush=True)
"""


def _model(folder: Path, code: str) -> OpenVinoModel:
    (folder / "file.gguf").write_bytes(b"GGUF")
    (folder / "scratch").mkdir()
    return OpenVinoModel([sys.executable, "-c", code], folder / "file.gguf", folder / "scratch", 2)


def test_the_process_says_what_became_of_the_file_generates_and_gives_rows(tmp_path: Path) -> None:
    with _model(tmp_path, _WORKER) as model:
        assert model.loaded.weight_bytes == {"u4": 8}
        answer = model.generate([7, 8], 3)
        assert (answer.tokens, answer.prompt_s, answer.token_s) == ((7, 7, 7), 0.5, 0.25)
        rows, computes = model.read([1, 2, 3, 4, 5, 6], 2)
        assert rows.shape == (3, 4) and rows.dtype.name == "float32" and computes == {"KV_CACHE_PRECISION": "u8"}
    assert (tmp_path / "scratch/model.gguf").resolve() == tmp_path / "file.gguf"


def test_a_process_that_ends_by_itself_is_told_with_its_last_words(tmp_path: Path) -> None:
    with _model(tmp_path, _WORKER) as model, pytest.raises(OpenVinoRefused) as refused:
        model.read([1, 2, 3], 0)
    assert refused.value.reason == "CRASHED"
    assert "no memory left" in refused.value.detail and "exit code 9" in refused.value.detail


def test_a_process_that_does_not_even_start_to_speak_is_told_too(tmp_path: Path) -> None:
    with pytest.raises(OpenVinoRefused) as refused:
        _model(tmp_path, "import no_such_module")
    assert refused.value.reason == "CRASHED" and "no_such_module" in refused.value.detail


@pytest.mark.parametrize(("words", "reason"), [
    ("Exception from x.cpp:1:\nUnsupported model architecture 'gemma3'\n", "ARCHITECTURE"),
    ("[load_gguf] gguf_tensor_to_f16 failed", "TENSOR_TYPE"), ("Unsupported quantization type\n", "TENSOR_TYPE"),
    ("[load_gguf] tensor x has incompatible last dim shape: 30", "TENSOR_TYPE"), ("Something else", "NOT_LOADED"),
])  # fmt: skip
def test_what_it_cannot_load_has_a_named_reason(tmp_path: Path, words: str, reason: str) -> None:
    assert openvino_refused(words).reason == reason
    with pytest.raises(OpenVinoRefused) as refused:
        _model(tmp_path, f"import json; print(json.dumps({{'failure': {words!r}}}))")
    assert refused.value.reason == reason and refused.value.detail == words.strip()


@pytest.mark.parametrize(("logits", "reason"), [
    ([[0.0, 1.0]], "VOCABULARY"), ([[0.0, 1.0, float("nan")]], "NOT_FINITE"),
    ([[float("inf"), 0.0, 1.0]], "NOT_FINITE"),
])  # fmt: skip
def test_logits_that_cannot_be_compared_have_a_named_reason(logits: list[list[float]], reason: str) -> None:
    with pytest.raises(OpenVinoRefused) as refused:
        refuse_openvino_rows(np.array(logits, np.float32), 3)
    assert refused.value.reason == reason
    refuse_openvino_rows(np.array([[0.0, float("-inf"), 1.0]], np.float32), 3)  # a token that cannot be


@pytest.mark.parametrize("python", [None, "", "/nowhere/bin/python"])
def test_without_its_environment_the_stage_says_how_to_make_it(python: str | None) -> None:
    with pytest.raises(StageFailure) as failed:
        openvino_worker_argv(python)
    assert "scripts/setup-venv.sh openvino" in failed.value.error.hint


@pytest.mark.parametrize(("one", "other", "share"), [
    ([1, 2, 3, 4], [1, 2, 3, 4], 1.0), ([1, 2, 3, 4], [1, 2, 9, 4], 0.5), ([5], [6], 0.0), ([1, 2], [1, 2, 3, 4], 0.5),
    ([], [], 1.0),
])  # fmt: skip
def test_texts_are_the_same_until_the_first_token_that_differs(one: list[int], other: list[int], share: float) -> None:
    assert share_before_difference(one, other) == share_before_difference(other, one) == share


# ---- how it is shown -----------------------------------------------------------------------------------


def _estimate(value: float) -> Estimate:
    return Estimate(value=value, stderr=value / 10, df=7)


def _report() -> EvalReport:
    """Q4_K_M is measured in OpenVINO, the file after it is refused."""
    common: dict[str, Any] = {
        "text": "Quantyard's prose", "n_ctx": 512, "n_chunks": 4, "settings": OpenVinoSettings(),
    }  # fmt: skip
    report = manifest_of().evaluations["standard"]
    measured = OpenVinoMeasurement(
        label="Q4_K_M", n_tokens=1020, versions={"openvino": "2026.4.1"}, weight_bytes={"u4": 60, "u8": 40},
        computes={"KV_CACHE_PRECISION": "u8"}, llama_kld=_estimate(0.05), baseline_kld=_estimate(0.2),
        p99_baseline_kld=0.8, baseline_top1=_estimate(0.78), runtime_kld=_estimate(0.15), greedy_same=0.25,
        n_prompts=4, prompt_tokens_per_s=270.0, generated_tokens_per_s=33.0, **common,
    )  # fmt: skip
    found, others = {"Q4_K_M": measured}, [m.file.label for m in report.measurements[1:] if m.file.label != "Q4_K_M"]
    found[others[0]] = OpenVinoMeasurement(label=others[0], n_tokens=0, refusal="TENSOR_TYPE", **common)
    changed = [m.model_copy(update={"openvino": found.get(m.file.label)}) for m in report.measurements]
    return report.model_copy(update={"measurements": tuple(changed)})


def test_the_report_has_a_row_for_what_runs_and_a_reason_for_what_does_not() -> None:
    text = markdown_openvino_section(_report())
    assert "| Q4_K_M | 0.0500 | 0.200 | 0.800 | 78.0 % | 0.150 | 25.0 % | 270 tokens/s | 33.0 tokens/s |" in text
    assert "(`TENSOR_TYPE`)" in text and "weights became 60 % u4, 40 % u8 by bytes." in text
    assert "1,020 scored tokens" in text and "cache is of type u8" in text
    assert markdown_openvino_section(manifest_of().evaluations["standard"]) == ""


def test_terminal_and_page_have_the_same_rows() -> None:
    report = _report()
    table = terminal_openvino_files(report)
    assert table is not None and terminal_openvino_files(manifest_of().evaluations["standard"]) is None
    files = [PageFile(i, m.file.label, 1, 4.5, not i, m) for i, m in enumerate(report.measurements)]
    page = page_openvino_table(files)
    rows = {row.cells[0].text: [cell.text for cell in row.cells] for row in page.rows}
    assert len(rows) == 2 and rows["Q4_K_M"][2] == "0.200" and set(rows.pop("Q8_0")[1:]) == {DASH}
    assert "does not read a type of its tensors" in page_openvino_sentence(files)


def test_card_and_page_have_a_section_where_it_was_measured() -> None:
    manifest = manifest_of()
    assert "OpenVINO" not in render_card(manifest, CONTEXT)
    manifest.evaluations["standard"] = _report()
    card = render_card(manifest, CONTEXT)
    section = card.partition("### In OpenVINO")[2].partition("###")[0]
    assert "0.200" in section and "KLD, OpenVINO" in section and "Q8_0" not in section
    assert card_differences(card, manifest, CONTEXT) == []
    page = render_report_page(manifest, "standard")
    assert '<section id="openvino"' in page and "TENSOR_TYPE" in page
