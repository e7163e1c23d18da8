"""The stage `rounding` where it cannot work: what it refuses, and what it says. What it measures: tests/measure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from builder.llama import ggml_rows as stage_module
from builder.rounding import rounding
from quantyard.errors import BadRequest, QuantyardError
from quantyard.formats.gguf import read_gguf_header
from quantyard.protocol.base import ExitCode
from quantyard.protocol.builder import RoundingRequest
from quantyard.protocol.runner import Stage, StageFailure
from quantyard.quants.recipe import NEED_IMATRIX
from quantyard.tune.type_errors import LADDER, read_rounding_errors, tuning_type_error, tuning_type_ladder
from tests.gguf_files import SMALL_METADATA, TensorSpec, gguf
from tests.rounding import write_model

REQUEST = RoundingRequest(types=LADDER)


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A stage whose tools are in a folder that holds none, on a machine that has no ggml either."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setattr(stage_module.ctypes.util, "find_library", lambda _name: None)
    monkeypatch.setattr(stage_module, "_SYSTEM", tmp_path / "usr")
    made = Stage("rounding", tmp_path / "in", tmp_path / "out", {"LLAMA_BIN": str(tmp_path / "bin")})
    made.files_dir.mkdir(parents=True)
    (made.in_dir / "source").mkdir(parents=True)
    write_model(made.in_dir / "source" / "model.gguf")
    return made


def _refusal(stage: Stage) -> StageFailure:
    with pytest.raises(StageFailure) as failed:
        rounding(stage, REQUEST)
    assert not list(stage.files_dir.iterdir())
    return failed.value


def test_a_model_that_is_quantized_already_is_refused(stage: Stage) -> None:
    tensors = [TensorSpec("blk.0.attn_q.weight", (64, 64), "Q4_0")]
    (stage.in_dir / "source" / "model.gguf").write_bytes(gguf(SMALL_METADATA, tensors))
    failure = _refusal(stage)
    assert (failure.exit_code, failure.error.kind) == (ExitCode.BAD_REQUEST, "requantize")
    assert "quantized already" in failure.error.message and failure.error.hint


@pytest.mark.parametrize("data", [b"", b"GGUF", b"\x00" * 4096, None])
def test_a_source_that_is_no_gguf_is_refused(data: bytes | None, stage: Stage) -> None:
    path = stage.in_dir / "source" / "model.gguf"
    path.unlink() if data is None else path.write_bytes(data)
    failure = _refusal(stage)
    assert (failure.exit_code, failure.error.kind) == (ExitCode.BAD_REQUEST, "bad-gguf")
    assert "model.gguf" in failure.error.message


def test_where_ggml_is_not_to_be_found_it_says_what_to_type(stage: Stage) -> None:
    failure = _refusal(stage)
    assert (failure.exit_code, failure.error.kind) == (ExitCode.UNSUPPORTED_MODEL, "no-ggml")
    assert "libggml-base" in failure.error.message and "make images" in failure.error.hint


def test_a_library_that_is_not_ggml_is_refused_by_its_name(stage: Stage, tmp_path: Path) -> None:
    library = tmp_path / "bin" / "libggml-base.so"
    library.write_bytes(b"not a library")
    assert str(library) in _refusal(stage).error.message


def test_the_tools_own_library_comes_before_the_systems(stage: Stage, tmp_path: Path) -> None:
    for folder in (tmp_path / "bin", tmp_path / "usr" / "x86_64-linux-gnu"):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "libggml-base.so.0").touch()
    assert str(tmp_path / "bin") in _refusal(stage).error.message
    (tmp_path / "bin" / "libggml-base.so.0").unlink()
    assert "x86_64-linux-gnu" in _refusal(stage).error.message


# ---- what is made of it ------------------------------------------------------------------------------


@pytest.mark.parametrize("text", [None, "", "[]", '{"a": {"Q4_0": "much"}}'])
def test_a_result_that_cannot_be_read_is_an_error_that_names_the_file(text: str | None, tmp_path: Path) -> None:
    if text is not None:
        (tmp_path / "rounding.json").write_text(text)
    with pytest.raises(QuantyardError, match=r"rounding\.json is not a result of the stage rounding"):
        read_rounding_errors(tmp_path)


def test_the_error_of_tensors_counts_each_by_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "two.gguf"
    path.write_bytes(gguf(SMALL_METADATA, [TensorSpec("a.weight", (256, 3)), TensorSpec("b.weight", (96, 8))]))
    (tmp_path / "rounding.json").write_text(json.dumps({"a.weight": {"Q4_K": 0.5}, "b.weight": {"Q5_0": 0.1}}))
    errors = read_rounding_errors(tmp_path)  # Q4_K ends as Q5_0 where rows have 96 weights
    assert tuning_type_error("Q4_K", read_gguf_header(path).tensors, errors) == pytest.approx(0.3)


def test_no_type_of_the_search_needs_an_importance_matrix() -> None:
    assert not set(LADDER) & set(NEED_IMATRIX)


def test_types_to_choose_from_are_those_that_were_asked_for() -> None:
    assert tuning_type_ladder(()) == LADDER
    assert tuning_type_ladder(("Q8_0", "Q4_K")) == ("Q4_K", "Q8_0")
    with pytest.raises(BadRequest, match="Q6_KM is not a tensor type") as refused:
        tuning_type_ladder(("Q8_0", "Q6_KM"))
    assert refused.value.hint.startswith("Did you mean Q6_K?")
