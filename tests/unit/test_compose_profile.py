"""Which service a plain `docker compose up` starts after a build."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantyard.serve.compose_profile import choose_compose_profile, compose_environment
from tests.gguf_files import TensorSpec, gguf


def _file(folder: Path, architecture: str) -> Path:
    path = folder / f"{architecture}.gguf"
    path.write_bytes(gguf({"general.architecture": architecture}, [TensorSpec("t", (32, 2))]))
    return path


@pytest.mark.parametrize(
    ("told", "profiles"),
    [
        ("# mine\nCOMPOSE_PROFILES=cpu\nPORT=9000\n", "encoder-decoder"),
        ("COMPOSE_PROFILES=cuda,monitoring\n", "encoder-decoder,monitoring"),
        ("PORT=9000\n", "encoder-decoder"),
    ],
)
def test_an_encoder_decoder_is_served_by_its_own_service_until_the_next_build(
    told: str, profiles: str, tmp_path: Path
) -> None:
    (tmp_path / "artifacts").mkdir()
    env = tmp_path / ".env"
    env.write_text(told)
    for _ in range(2):
        choose_compose_profile(tmp_path, tmp_path / "artifacts", [_file(tmp_path, "t5")])
        assert env.read_text().startswith(told)
        assert env.read_text().splitlines()[-1] == f"COMPOSE_PROFILES={profiles}"
    choose_compose_profile(tmp_path, tmp_path / "artifacts", [_file(tmp_path, "llama")])
    assert env.read_text() == told


def test_files_that_compose_does_not_serve_change_nothing(tmp_path: Path) -> None:
    env = tmp_path / ".env"
    env.write_text("COMPOSE_PROFILES=cpu\n")
    choose_compose_profile(tmp_path, tmp_path / "elsewhere", [_file(tmp_path, "t5")])
    assert env.read_text() == "COMPOSE_PROFILES=cpu\n"
    env.unlink()
    choose_compose_profile(tmp_path, tmp_path / "artifacts", [_file(tmp_path, "t5")])
    assert not env.exists()


def test_make_serve_starts_the_service_that_the_file_needs(tmp_path: Path) -> None:
    t5, llama = _file(tmp_path, "t5"), _file(tmp_path, "llama")
    assert compose_environment({"A": "b"}, [t5]) == {"A": "b", "COMPOSE_PROFILES": "encoder-decoder"}
    assert compose_environment({"COMPOSE_PROFILES": "cpu,monitoring"}, [t5])["COMPOSE_PROFILES"].endswith(",monitoring")
    assert compose_environment({"A": "b"}, [llama]) == {"A": "b"}
