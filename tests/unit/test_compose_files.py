"""Which service of compose.yaml `serve` starts for a file."""

from __future__ import annotations

from pathlib import Path

from quantyard.paths import REPO_DIR
from quantyard.serve.compose_files import compose_environment
from tests.gguf_files import TensorSpec, gguf


def _file(folder: Path, architecture: str) -> Path:
    path = folder / f"{architecture}.gguf"
    path.write_bytes(gguf({"general.architecture": architecture}, [TensorSpec("t", (32, 2))]))
    return path


def test_make_serve_starts_the_service_that_the_file_needs(tmp_path: Path) -> None:
    t5, llama = _file(tmp_path, "t5"), _file(tmp_path, "llama")
    files = "compose.yaml:compose.encoder-decoder.yaml"
    assert compose_environment({"A": "b"}, [t5]) == {"A": "b", "COMPOSE_FILE": files}
    assert compose_environment({"COMPOSE_FILE": "compose.yaml:compose.cuda.yaml"}, [t5])["COMPOSE_FILE"] == files
    assert all((REPO_DIR / name).is_file() for name in files.split(":"))
    assert compose_environment({"A": "b"}, [llama]) == {"A": "b"}
