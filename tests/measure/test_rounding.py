"""The stage `rounding` with the ggml that llama-cpp-python brings, which is what the local engine uses."""

from __future__ import annotations

import json
from pathlib import Path

import gguf
import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from builder.llama.ggml_rows import Ggml, _ggml_library
from builder.rounding import ERRORS, rounding
from quantyard.formats.ggml_types import TYPE_BY_NAME
from quantyard.protocol.builder import RoundingRequest
from quantyard.protocol.runner import Stage
from quantyard.quants.recipe import NEED_IMATRIX, TYPES
from quantyard.tune.type_errors import LADDER
from tests.rounding import NORMAL, check_errors, weights, write_model


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    made = Stage("rounding", tmp_path / "in", tmp_path / "out", {})
    made.files_dir.mkdir(parents=True)
    (made.in_dir / "source").mkdir(parents=True)
    write_model(made.in_dir / "source" / "model.gguf")
    return made


def test_errors_are_those_that_another_implementation_finds(stage: Stage) -> None:
    outcome = rounding(stage, RoundingRequest(types=LADDER, rows=10_000))
    check_errors(json.loads((stage.files_dir / ERRORS).read_text()))
    assert outcome.facts == {"tensors": 4, "rows": 10_000}


def test_a_sample_of_the_rows_tells_what_all_of_them_tell(stage: Stage) -> None:
    found = []
    for rows in (16, 10_000):
        rounding(stage, RoundingRequest(types=LADDER, rows=rows))
        found.append(json.loads((stage.files_dir / ERRORS).read_text())[NORMAL])
    for kind in LADDER:
        assert found[0][kind] == pytest.approx(found[1][kind], rel=0.1), kind


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind not in NEED_IMATRIX])
def test_every_type_that_needs_no_matrix_can_be_rounded_to(kind: str) -> None:
    """Also those that a search does not choose from, IQ3_S among them, which needs tables that ggml makes first."""
    error = ggml().error(weights()[NORMAL], kind)
    assert 0 < error < 0.7  # one bit a weight leaves 0.36 of normally distributed weights
    assert error < 1e-6 or kind not in ("F16", "BF16")


def ggml() -> Ggml:
    return Ggml(_ggml_library(Stage("rounding", Path(), Path(), {})))


@pytest.mark.parametrize("kind", [*LADDER, "F16", "BF16"])
def test_what_was_rounded_is_read_as_the_package_gguf_reads_it(kind: str) -> None:
    row, rng = TYPE_BY_NAME[kind], np.random.default_rng(3)
    blocks = rng.integers(0, 256, (50, row.type_size_bytes), np.uint8)
    with np.errstate(all="ignore"):  # some scales that were drawn are no numbers
        expected = gguf.dequantize(blocks, gguf.GGMLQuantizationType[kind]).reshape(-1)
    found = ggml().floats(blocks.reshape(-1), row.id, 50 * row.block_size)
    usable = np.isfinite(expected)
    assert usable.sum() > len(expected) / 2
    np.testing.assert_allclose(found[usable], expected[usable], rtol=1e-5)
