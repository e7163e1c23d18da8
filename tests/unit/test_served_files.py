"""What is served: the files that `serve` named, the key, and what is refused before a server starts."""

from __future__ import annotations

import argparse
import os
import socket
from pathlib import Path
from typing import TYPE_CHECKING, cast

import pytest

import quantyard
from quantyard import cli
from quantyard.cli.request import read_command_request
from quantyard.errors import BadRequest
from quantyard.execution.manifest_writer import BuiltFile
from quantyard.serve.context import ServedContext, decide_served_context
from quantyard.serve.model_image import check_served_image_tag
from quantyard.serve.run import serve_local
from quantyard.serve.served_files import (
    are_served_files,
    is_nothing_served,
    note_unserved,
    put_served_files,
    served_api_key,
    served_files,
    served_model_name,
    served_note,
)
from quantyard.sources.resolve import Source
from quantyard.workflows import planning
from quantyard.workflows import serve as serving
from quantyard.workflows.reporter import LinesReporter
from quantyard.workflows.run import offer_built_files
from tests.tiny_gguf import write_tiny
from tests.unit.fake_engine import FakeEngine

if TYPE_CHECKING:
    from quantyard.store.manifest import QuantRecord


def model(folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_bytes(b"GGUF" + name.encode())
    return path


def test_what_is_served_are_these_files_alone_and_no_byte_is_copied(tmp_path: Path) -> None:
    first, second = model(tmp_path / "org", "a-Q4_K_M.gguf"), model(tmp_path / "org", "a-Q8_0.gguf")
    folder = tmp_path / "served"
    assert is_nothing_served(tmp_path) and not are_served_files(tmp_path, [first])
    assert put_served_files(tmp_path, [first, second]) and are_served_files(tmp_path, [second])
    assert [path.name for path in served_files(tmp_path, None)] == ["a-Q4_K_M.gguf", "a-Q8_0.gguf"]
    assert (folder / first.name).samefile(first)
    put_served_files(tmp_path, [second])
    assert served_files(tmp_path, None) == [folder / second.name]
    assert first.exists()


def test_a_file_that_was_built_anew_replaces_the_one_that_was_served(tmp_path: Path) -> None:
    path = model(tmp_path / "org", "a.gguf")
    put_served_files(tmp_path, [path])
    path.unlink()
    path.write_bytes(b"GGUF new")
    put_served_files(tmp_path, [path])
    assert served_files(tmp_path, None)[0].read_bytes() == b"GGUF new"


def test_what_cannot_be_linked_is_not_served_and_what_was_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = model(tmp_path / "org", "old.gguf")
    put_served_files(tmp_path, [old])

    def refuse(*_paths: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    assert not put_served_files(tmp_path, [model(tmp_path / "org", "new.gguf")])
    assert [path.name for path in served_files(tmp_path, None)] == ["old.gguf"]


def test_a_model_in_several_parts_is_not_served_by_its_first_alone(tmp_path: Path) -> None:
    part = model(tmp_path / "org", "big-00001-of-00002.gguf")
    assert not put_served_files(tmp_path, [part, model(tmp_path / "org", "whole.gguf")])
    assert not list((tmp_path / "served").iterdir())


def test_an_importance_matrix_in_a_folder_is_no_model_to_serve(tmp_path: Path) -> None:
    folder = tmp_path / "release"
    quant, *_ = [model(folder, f"tiny{end}.gguf") for end in ("-Q4_K_M", ".imatrix", ".imatrix-0a1b")]
    assert served_files(tmp_path, folder) == [quant]


def test_of_a_model_in_parts_the_first_is_served_under_the_name_of_all(tmp_path: Path) -> None:
    first, *_ = [model(tmp_path / "big", f"m-Q4_K_M-0000{part}-of-00003.gguf") for part in (1, 2, 3)]
    assert served_files(tmp_path, tmp_path / "big") == [first]
    assert served_model_name(first) == "m-Q4_K_M"
    assert served_model_name(tmp_path / "a.b-Q8_0.gguf") == "a.b-Q8_0"


@pytest.mark.parametrize(
    ("asked", "memory_bytes", "context"),
    [
        ({}, 1 << 40, ServedContext(8192, 4, 1)), ({"parallel": 1}, 1 << 40, ServedContext(2048, 1, 1)),
        ({"parallel": 64}, 1 << 40, ServedContext(32768, 64, 1)), ({}, 4_000_000, ServedContext(2048, 1, 1)),
        ({}, 0, ServedContext(512, 1, 1)), ({"context_size": 4096}, 1 << 40, ServedContext(4096, 2, 1)),
    ],
)
def test_the_context_is_as_trained_for_each_request_at_most_32768_and_half_of_the_free_memory(
    tmp_path: Path, asked: dict[str, int], memory_bytes: int, context: ServedContext
) -> None:
    found = write_tiny(None, tmp_path / "tiny.gguf")
    assert decide_served_context([found], memory_bytes=memory_bytes, **asked) == context


@pytest.mark.parametrize(("memory_bytes", "kept", "parallel"), [(1 << 40, 2, 4), (8_000_000, 1, 3), (0, 1, 1)])
def test_several_models_share_the_memory_or_fewer_stay_loaded(
    tmp_path: Path, memory_bytes: int, kept: int, parallel: int
) -> None:
    both = [write_tiny(None, tmp_path / f"{name}.gguf") for name in "ab"]
    found = decide_served_context(both, memory_bytes=memory_bytes)
    assert (found.kept, found.parallel) == (kept, parallel)
    assert decide_served_context([*both, model(tmp_path, "no.gguf")], memory_bytes=1 << 40).context_size == 8192


def test_nothing_built_and_a_wrong_file_say_what_to_type(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="Nothing is built yet") as caught:
        served_files(tmp_path, None)
    assert "make build MODEL=" in caught.value.hint
    with pytest.raises(BadRequest, match=r"MODEL_FILE=.*typo\.gguf is not a GGUF"):
        served_files(tmp_path, tmp_path / "typo.gguf")


def test_the_key_is_made_once_and_readable_to_its_owner_alone(tmp_path: Path) -> None:
    key = served_api_key(tmp_path)
    assert key == served_api_key(tmp_path) and key.startswith("qy-") and len(key) == 51
    assert (tmp_path / "keys" / "api-key").stat().st_mode & 0o777 == 0o600


def test_a_key_of_ones_own_is_taken_comments_and_blank_lines_apart(tmp_path: Path) -> None:
    (tmp_path / "keys").mkdir()
    path = tmp_path / "keys" / "api-key"
    path.write_text("# mine\n\n  secret \nother\n")
    assert served_api_key(tmp_path) == "secret"
    path.write_text("# nothing\n")
    with pytest.raises(BadRequest, match="is empty") as caught:
        served_api_key(tmp_path)
    assert f"rm {path}" in caught.value.hint


def test_a_port_that_is_taken_is_named_with_another_to_try(tmp_path: Path) -> None:
    model(tmp_path / "served", "a.gguf")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        request = read_command_request(argparse.Namespace(PORT=None), {"ARTIFACTS": str(tmp_path), "PORT": str(port)})
        with pytest.raises(BadRequest, match=f"Port {port} of 127.0.0.1 is taken") as caught:
            serve_local(request, Path("/no/python"), {})
    assert f"PORT={port + 1}" in caught.value.hint


def test_a_build_says_what_is_not_served_and_whose_earlier_build_is_until_serve_is_used(tmp_path: Path) -> None:
    request = read_command_request(argparse.Namespace(), {"ARTIFACTS": str(tmp_path), "MODEL": "org/m"})
    first = model(tmp_path / "org", "m-Q4_K_M.gguf")
    told: list[str] = []
    reporter = LinesReporter(told.append)

    def offer(*paths: Path) -> None:
        files = [BuiltFile(path.stem.removeprefix("m-"), path, cast("QuantRecord", None)) for path in paths]
        offer_built_files(request, files, (), reporter)

    offer(first)
    assert not told and not served_note(tmp_path)

    first.unlink()
    first.write_bytes(b"GGUF again")
    second = model(tmp_path / "org", "m-Q8_0.gguf")
    offer(first, second)
    (said,) = told
    assert "Not served yet: m-Q4_K_M.gguf, m-Q8_0.gguf. An earlier build is served as m-Q4_K_M.gguf." in said
    assert said.endswith("make serve MODEL=org/m QUANT=Q4_K_M,Q8_0") and served_note(tmp_path) == said
    assert served_files(tmp_path, None)[0].read_bytes() != b"GGUF again", "serve alone changes what is served"

    assert put_served_files(tmp_path, [first, second])
    note_unserved(tmp_path, "")
    offer(first)
    assert len(told) == 1 and not served_note(tmp_path)


# ---- what `serve` serves from now on -------------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, local_source: Source) -> Path:
    """A store with two built files."""
    monkeypatch.setattr(planning, "_source_of_request", lambda _request: local_source)
    monkeypatch.setattr(planning, "choose_engine", lambda *_: (FakeEngine(), "asked for"))
    monkeypatch.setenv("ARTIFACTS", str(tmp_path / "artifacts"))
    quantyard.build("tiny", quant=["Q8_0", "Q4_K_M"])
    return tmp_path / "artifacts"


def _serve(monkeypatch: pytest.MonkeyPatch, *argv: str) -> tuple[int, list[bool]]:
    """The exit code, and for each start of compose whether containers begin anew."""
    started = list[bool]()

    def up(*_argv: object, anew: bool) -> int:
        started.append(anew)
        return 0

    docker = FakeEngine()
    docker.name = "docker"
    monkeypatch.setattr(serving, "workflow_engine", lambda _request: (docker, "asked for"))
    monkeypatch.setattr(serving, "serve_compose", up)
    with pytest.raises(SystemExit) as ended:
        cli.main(["serve", *argv])
    return int(ended.value.code or 0), started


def test_serve_changes_what_is_served_and_begins_running_containers_anew(
    store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    names = [path.name.removesuffix(".gguf")[-4:] for path in served_files(store, None)]
    assert names == ["_K_M", "Q8_0"]
    assert _serve(monkeypatch) == (0, [False])
    assert _serve(monkeypatch, "--model=tiny", "--quant=Q8_0") == (0, [True])
    assert [path.name[-9:] for path in served_files(store, None)] == ["Q8_0.gguf"]
    assert _serve(monkeypatch, "--model=tiny", "--quant=Q8_0") == (0, [False])
    assert _serve(monkeypatch, "--model=tiny") == (0, [True]) and len(served_files(store, None)) == 2


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--model=tiny", "--quant=Q2_K"), "Q2_K is not built"),
        (("--quant=Q8_0",), "QUANT is given without MODEL"),
        (("--model=tiny", "--model-file=a.gguf"), "MODEL and MODEL_FILE are both given"),
    ],
)
def test_what_cannot_be_served_is_refused_and_changes_nothing(
    argv: tuple[str, ...], says: str, store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = served_files(store, None)
    assert _serve(monkeypatch, *argv) == (2, [])
    assert says in capsys.readouterr().err and served_files(store, None) == before


@pytest.mark.parametrize("tag", ["model", "team/model:q4", "localhost:5000/team/model:Q4_K_M", "a.b-c/d_e:1.0"])
def test_the_name_of_an_image_may_be_what_docker_takes(tag: str) -> None:
    check_served_image_tag(tag)


@pytest.mark.parametrize("tag", ["", "Upper/case", "a b", "-a", "a:", "a:-b", "a//b$"])
def test_what_docker_would_refuse_is_refused_at_once(tag: str) -> None:
    with pytest.raises(BadRequest, match="TAG"):
        check_served_image_tag(tag)


@pytest.mark.parametrize("name", ["big-00001-of-00002.gguf", "big-00002-of-00002.gguf"])
def test_a_part_given_as_model_file_is_refused_with_the_folder(tmp_path: Path, name: str) -> None:
    with pytest.raises(BadRequest, match="one part of a model") as refused:
        served_files(tmp_path, model(tmp_path, name))
    assert refused.value.hint == f"Give the folder that holds them: MODEL_FILE={tmp_path}"
    assert served_files(tmp_path, model(tmp_path, "small-00001-of-00001.gguf"))
