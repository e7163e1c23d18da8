"""The Python API on the real stages of ENGINE=local, in this process, as a notebook runs it."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

import quantyard
from quantyard.errors import StageFailed
from tests.tiny_model import write_tiny_model


@pytest.fixture(autouse=True)
def _own_environment() -> Iterator[None]:
    """A call may tell this process of certificates and proxies."""
    before = dict(os.environ)
    yield
    os.environ.clear()
    os.environ.update(before)


@pytest.fixture
def tiny(demo_source: Path, tmp_path: Path) -> Path:
    """A model that converts in seconds."""
    return write_tiny_model(tmp_path / "tiny", demo_source)


@pytest.mark.usefixtures("local_tools")
def test_a_notebook_builds_measures_and_chooses_a_real_file(
    tiny: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    lines, artifacts = list[str](), tmp_path / "artifacts"

    async def cell() -> None:  # a notebook's cells run inside a loop
        quantyard.build(tiny, quant="Q8_0", engine="local", artifacts=artifacts, progress=lines.append)

    asyncio.run(cell())
    assert any(line.startswith("[quantize Q8_0]") for line in lines)
    built = quantyard.evaluate(tiny, quant="Q8_0", suite="smoke", limit=4, engine="local", artifacts=artifacts)
    assert "convert" not in built.ran and built.report is not None
    (measured,) = (m for m in built.report.measurements if m.file.label == "Q8_0")
    assert measured.divergence is not None and measured.divergence.mean_kld is not None
    assert built.files[0].path.read_bytes()[:4] == b"GGUF"
    speed = measured.speed
    assert speed is not None
    chosen = quantyard.choose(tiny, engine="local", artifacts=artifacts, context_size=speed.n_ctx, parallel=1)
    assert chosen.best.path == built.files[0].path
    assert quantyard.verify(file=built.files[0].path, artifacts=artifacts).state != "failed"
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("local_tools")
def test_a_model_that_cannot_be_converted_is_an_error_with_what_to_do(tiny: Path, tmp_path: Path) -> None:
    weights = tiny / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-64])  # cut off
    with pytest.raises(quantyard.QuantyardError) as refused:
        quantyard.build(tiny, quant="Q8_0", engine="local", artifacts=tmp_path / "artifacts")
    assert refused.value.message and refused.value.hint
    assert not isinstance(refused.value, StageFailed) or refused.value.stage == "convert"
