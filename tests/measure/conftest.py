"""What the tests of measuring share: the demo model's files, as `make demo` leaves them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest

from quantyard.paths import REPO_DIR
from quantyard.workflows.demo import DEMO_NAME

ARTIFACTS = REPO_DIR / "artifacts"
# These run in .venv-bench (scripts/test.sh); elsewhere there is nothing to import.
collect_ignore_glob = [] if importlib.util.find_spec("llama_cpp") else ["test_*.py"]


@pytest.fixture(scope="session")
def demo_gguf() -> Callable[[str], Path]:
    """Path of the demo model in a quant, or unquantized for `BF16`; skips where it was never built."""

    def find(quant: str) -> Path:
        name = "convert-*/files/model.gguf" if quant == "BF16" else f"{DEMO_NAME}-{quant}.gguf"
        found = [path for path in ARTIFACTS.glob(f"**/{name}") if DEMO_NAME in path.parts]
        if not found:
            pytest.skip(f"no {DEMO_NAME} in {quant} under {ARTIFACTS}: run `make demo`")
        return max(found, key=lambda path: path.stat().st_mtime)

    return find


@pytest.fixture(scope="session")
def demo_f32(demo_gguf: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unquantized demo model in 32 bits: its arithmetic's noise is some 1e-4 nats where BF16's is some 1e-2."""
    llama_cpp = pytest.importorskip("llama_cpp")
    path: Path = tmp_path_factory.mktemp("f32") / f"{DEMO_NAME}-F32.gguf"
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = llama_cpp.LLAMA_FTYPE_ALL_F32
    assert llama_cpp.llama_model_quantize(str(demo_gguf("BF16")).encode(), str(path).encode(), params) == 0
    return path
