"""A folder of the user's that somebody else filled: links, pipes, lies and names in it do no harm.

Every case goes through the real command line, in this process; `plan` reads a model just as `build` does.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from quantyard.engines.local import LocalEngine
from quantyard.hub.client import HubAccess
from quantyard.protocol.builder import ConvertRequest
from quantyard.requests import RunEnvironment
from quantyard.sources.resolve import Source, find_source
from quantyard.store.artifact import Workspace
from quantyard.store.hash_cache import HashCache
from tests.gguf_files import SMALL_METADATA, TensorSpec, gguf
from tests.hostile.sampling import sampled
from tests.hub_server import HubServer
from tests.released import SOURCE_REPO, Said, Yard, lay_out
from tests.tiny_model import write_safetensors

SECRET = "nobody's business"
LONG = "x" * 5000
TENSORS = {"model.embed_tokens.weight": (32, 8)}


@pytest.fixture(scope="module")
def yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        yield lay_out(tmp_path_factory.mktemp("yard"), hub, patch)


@pytest.fixture
def folder(yard: Yard, tmp_path: Path) -> Path:
    """A model, as somebody gave it to the user."""
    assert yard.source.local is not None
    return shutil.copytree(yard.source.local.folder, tmp_path / "models" / "Lagoon")


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    path = tmp_path / "home" / "secret"
    path.parent.mkdir()
    path.write_text(SECRET)
    return path


def planned(yard: Yard, model: Path | str, *argv: str) -> Said:
    started = time.monotonic()
    said = yard.run("plan", f"--model={model}", *argv)
    assert time.monotonic() - started < 20
    assert "Traceback" not in said.err and said.code != 70, said.err
    assert SECRET not in said.out + said.err and len(said.err) < 8000
    return said


def refused(yard: Yard, model: Path | str, says: str, *argv: str) -> None:
    said = planned(yard, model, *argv)
    assert said.code == 2 and says in " ".join(said.err.split()), said.err


def source(model: Path, root: Path) -> Source:
    return find_source(str(model), HubAccess(), HashCache(root / "hashes"), allow_pickle=False, gguf_file=None)


def cached(model: Path, cache: Path) -> Path:
    """The snapshot of a model in the Hub's cache, a folder of links."""
    repo = cache / "models--org--Lagoon"
    snapshot = repo / "snapshots" / ("a" * 40)
    snapshot.mkdir(parents=True)
    (repo / "blobs").mkdir()
    for file in sorted(path for path in model.iterdir() if path.is_file()):
        blob = repo / "blobs" / hashlib.sha256(file.read_bytes()).hexdigest()
        shutil.copy(file, blob)
        (snapshot / file.name).symlink_to(os.path.relpath(blob, snapshot))
    return snapshot


# ---- links -------------------------------------------------------------------------------------------


NEEDED = ["LICENSE", "NOTICE", "README.md", "config.json", "tokenizer.json", "tokenizer_config.json",
          "model.safetensors", "chat_template.jinja", "model.safetensors.index.json", "USE_POLICY.md"]  # fmt: skip


@pytest.mark.parametrize("name", sampled(NEEDED[:-2] + NEEDED[-1:], 6))
@pytest.mark.parametrize("relative", [False, True])
def test_a_file_that_leads_out_of_its_folder_is_refused_and_its_place_named(
    name: str, relative: bool, yard: Yard, folder: Path, secret: Path
) -> None:
    (folder / name).unlink(missing_ok=True)
    (folder / name).symlink_to(os.path.relpath(secret, folder) if relative else secret)
    refused(yard, folder, f"{name} is a link that leads out of its folder, to {secret}.")


def test_what_leads_out_is_never_published(yard: Yard, folder: Path, secret: Path) -> None:
    """The licence of the very model that was built and measured, changed to a link before it is published."""
    assert yard.source.local is not None
    licence = yard.source.local.folder / "LICENSE"
    content = licence.read_text()
    licence.unlink()
    licence.symlink_to(secret)
    try:
        for command in ("report", "publish"):
            said = yard.publish("--dry-run" if command == "publish" else "--json", command=command)
            assert said.code == 2 and "leads out" in said.err
        assert not any(SECRET in path.read_text(errors="replace") for path in yard.folder.rglob("*") if path.is_file())
    finally:
        licence.unlink()
        licence.write_text(content)


@pytest.mark.parametrize("place", ["secret", "../secret", "blobs"])
def test_a_cache_of_the_hub_is_no_way_out(place: str, yard: Yard, folder: Path, secret: Path, tmp_path: Path) -> None:
    """Neither through a blob that is a link itself, nor through blobs that are elsewhere."""
    snapshot = cached(folder, tmp_path / "cache")
    repo = snapshot.parents[1]
    if place == "blobs":
        (repo / "blobs").rename(tmp_path / "elsewhere")
        (repo / "blobs").symlink_to(tmp_path / "elsewhere")
    else:
        blob = repo / "blobs" / "0"
        blob.symlink_to(secret) if place == "secret" else (repo / "secret").write_text(SECRET)
        (snapshot / "LICENSE").unlink()
        (snapshot / "LICENSE").symlink_to("../../blobs/0" if place == "secret" else "../../secret")
    refused(yard, snapshot, "leads out of its folder")


def test_a_snapshot_of_the_cache_is_the_model_that_it_links_to(folder: Path, tmp_path: Path) -> None:
    """Below a hidden folder too, where the cache is; every file is given by where it really is."""
    snapshot = cached(folder, tmp_path / ".cache" / "huggingface" / "hub")
    found = source(snapshot, tmp_path)
    assert found.files == source(folder, tmp_path).files and found.license == "apache-2.0"
    assert (found.repo_id, found.model.commit) == ("org/Lagoon", "a" * 40)
    assert found.local is not None and not found.local.whole_folder
    blobs = snapshot.parents[1] / "blobs"
    assert {found.local.place_of(entry.path).parent for entry in found.files} == {blobs}


def test_the_local_engine_gives_a_stage_the_files_of_a_snapshot_by_their_names(folder: Path, tmp_path: Path) -> None:
    """Not the folder: what else comes to lie in it later is never seen. The docker engine: tests/docker."""
    local = source(cached(folder, tmp_path / "cache"), tmp_path).local
    assert local is not None
    space = Workspace(tmp_path / "in", tmp_path / "out", ConvertRequest(name="Lagoon"))
    space.in_dir.mkdir()
    LocalEngine(RunEnvironment(tmp_path))._link_inputs(space, {"source": local})
    given = space.in_dir / "source"
    assert {path.name: path.read_bytes() for path in given.iterdir()} == {
        entry.path: (folder / entry.path).read_bytes() for entry in local.files
    }
    assert {path.resolve().parent.name for path in given.iterdir()} == {"blobs"}


def test_links_within_a_folder_and_a_link_that_the_user_names_are_followed(folder: Path, tmp_path: Path) -> None:
    (folder / "weights").mkdir()
    (folder / "model.safetensors").rename(folder / "weights" / "w")
    (folder / "model.safetensors").symlink_to("weights/w")
    (tmp_path / "current").symlink_to(folder)
    named = source(tmp_path / "current", tmp_path)
    assert named.model.name == "current" and named.model.commit == source(folder, tmp_path).model.commit


def shards(folder: Path) -> tuple[Path, Path]:
    folder.mkdir(parents=True)
    paths = tuple(folder / f"m-BF16-0000{n}-of-00002.gguf" for n in (1, 2))
    for number, path in enumerate(paths):
        metadata = {**SMALL_METADATA, "split.count": 2, "split.no": number, "split.tensors.count": 2}
        path.write_bytes(gguf(metadata, [TensorSpec(f"blk.{number}.ffn_up.weight", (256, 2), "BF16")]))
    return paths[0], paths[1]


def test_a_gguf_in_the_cache_is_read_and_a_part_of_one_that_leads_out_is_refused(
    yard: Yard, tmp_path: Path
) -> None:
    first, second = shards(tmp_path / "g")
    snapshot = cached(first.parent, tmp_path / "cache")
    found = source(snapshot / first.name, tmp_path)
    assert [entry.path for entry in found.files] == [first.name, second.name]
    second.rename(tmp_path / "elsewhere.gguf")
    second.symlink_to(tmp_path / "elsewhere.gguf")
    refused(yard, first, f"{second.name} is a link that leads out", "--quant=Q8_0")


def test_only_what_the_conversion_needs_is_given_to_it(folder: Path, tmp_path: Path, secret: Path) -> None:
    (folder / "modeling_lagoon.py").write_text("import os")
    (folder / "notes.txt").symlink_to(secret)
    (folder / "more").symlink_to(secret.parent)
    (folder / ".git").mkdir()
    (folder / ".git" / "config.json").write_text("{}")
    found = source(folder, tmp_path)
    names = {entry.path for entry in found.files}
    assert names == {"config.json", "tokenizer.json", "tokenizer_config.json", "model.safetensors", "LICENSE", "NOTICE",
                     "README.md"}  # fmt: skip


def adapter(folder: Path, **config: Any) -> Path:
    folder.mkdir(parents=True)
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": "org/base"} | config))
    write_safetensors(folder / "adapter_model.safetensors", TENSORS)
    return folder


@pytest.mark.parametrize(("which", "name"), [
    ("adapter", "adapter_config.json"), ("adapter", "adapter_model.safetensors"), ("adapter", "LICENSE"),
    ("base", "config.json"), ("base", "tokenizer.json"),
])  # fmt: skip
def test_a_link_in_the_folder_of_an_adapter_or_its_base_is_held_to_the_same(
    which: str, name: str, yard: Yard, folder: Path, secret: Path, tmp_path: Path
) -> None:
    ours = adapter(tmp_path / "adapter")
    path = {"adapter": ours, "base": folder}[which] / name
    path.unlink(missing_ok=True)
    path.symlink_to(secret)
    said = yard.run("lora", f"--adapter={ours}", f"--base={folder}")
    assert said.code == 2 and "leads out of its folder" in said.err and SECRET not in said.err


@pytest.mark.parametrize("name", [
    "models/Lagoon", "/etc", "~/x", "./x", "../x", LONG, "a b", "org/x@../y", "\x1b[2J/x",
])  # fmt: skip
def test_the_base_that_an_adapter_names_is_a_repo_and_no_folder_of_this_machine(
    name: str, yard: Yard, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # where models/Lagoon is a model
    said = yard.run("lora", f"--adapter={adapter(tmp_path / 'adapter', base_model_name_or_path=name)}")
    assert said.code in (2, 4) and "Traceback" not in said.err and len(said.err) < 8000
    assert not list(yard.artifacts.glob("local/adapter/*/stages"))


def test_data_sets_from_elsewhere_hold_no_link_that_leads_out(yard: Yard, tmp_path: Path, secret: Path) -> None:
    for name, target in (("link", secret), ("folder", secret.parent)):
        brought = tmp_path / f"sets-{name}"
        brought.mkdir()
        (brought / "questions.json").write_text("{}")
        (brought / name).symlink_to(target)
        said = yard.run("plan", f"--model={yard.model}", "--suite=quick", f"--datasets={brought}")
        assert said.code == 2 and "leads out of its folder" in said.err


# ---- pipes, devices, rings, sizes --------------------------------------------------------------------


def _pipe(path: Path) -> None:
    os.mkfifo(path)


def _device(path: Path) -> None:
    path.symlink_to("/dev/zero")


def _ring(path: Path) -> None:
    path.symlink_to(path.name)


def _nowhere(path: Path) -> None:
    path.symlink_to("gone")


def _folder(path: Path) -> None:
    path.mkdir()


@pytest.mark.parametrize("make", [_pipe, _device, _ring, _nowhere, _folder])
@pytest.mark.parametrize("name", sampled(
    ["config.json", "model.safetensors", "tokenizer.json", "LICENSE", "README.md"], 3
))  # fmt: skip
def test_what_is_no_file_is_not_waited_for(
    make: Callable[[Path], None], name: str, yard: Yard, folder: Path
) -> None:
    (folder / name).unlink()
    make(folder / name)
    said = planned(yard, folder)
    assert said.code == 2 or (make is _folder and name in ("tokenizer.json", "LICENSE", "README.md"))


@pytest.mark.parametrize("name", ["config.json", "tokenizer.json", "LICENSE", "README.md", "merges.txt"])
def test_a_huge_file_of_a_model_is_refused_by_its_size(name: str, yard: Yard, folder: Path) -> None:
    with (folder / name).open("wb") as stream:
        stream.truncate(2**40)
    refused(yard, folder, "such a file has")


def test_a_folder_of_very_many_files_is_refused(
    yard: Yard, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quantyard.files.own_files.MAX_FILES", 20)
    for number in range(30):
        (folder / f"{number}.txt").touch()
    refused(yard, folder, "holds more than 20 files")


@pytest.mark.parametrize("setting", ["calibration", "recipe", "imatrix", "gate", "suite"])
@pytest.mark.parametrize("make", [_pipe, _device])
def test_a_file_that_the_user_names_is_a_file(
    make: Callable[[Path], None], setting: str, yard: Yard, tmp_path: Path
) -> None:
    path = tmp_path / "x.yaml"
    make(path)
    command = "gate" if setting == "gate" else "plan"
    started = time.monotonic()
    said = yard.run(command, f"--model={yard.model}", f"--{setting}={path}")
    assert said.code == 2 and "Traceback" not in said.err and time.monotonic() - started < 10


# ---- what is in the files ----------------------------------------------------------------------------


CONFIGS = [
    b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 100_000, b'{"a":' * 900 + b"1" + b"}" * 900, b'{"a": "\\ud800"}',
    b'{"vocab_size": NaN}', b'{"hidden_size": ' + b"9" * 5000 + b"}", b'{"hidden_size": ' + b"9" * 4000 + b"}",
    b'{"hidden_size": 1e400, "num_attention_heads": 0}', b'{"architectures": ["' + b"x" * 5000 + b'"]}',
    b'{"architectures": {"a": 1}, "model_type": []}', b'{"num_hidden_layers": "2020-01-01"}',
    b'{"num_hidden_layers": -1, "vocab_size": true, "num_key_value_heads": 0, "head_dim": -5}',
    b'{"text_config": [], "max_position_embeddings": {}}', b'{"layer_types": 7, "num_hidden_layers": 1e30}',
    b'{"num_hidden_layers": 100000000000, "hidden_size": 64, "num_attention_heads": 1}',
]  # fmt: skip


@pytest.mark.parametrize("content", sampled(CONFIGS, 9), ids=lambda content: repr(content[:24]))
def test_a_configuration_that_lies_ends_no_plan_in_our_bug(content: bytes, yard: Yard, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    planned(yard, folder, "--suite=smoke")
    planned(yard, folder)


def _tensors(header: Any, data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _tensor(**change: Any) -> bytes:
    said = {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]} | change
    return _tensors({"model.embed_tokens.weight": said}, b"0" * 4)


@pytest.mark.parametrize("content", sampled([
    b"", b"\0" * 7, struct.pack("<Q", 2**63), struct.pack("<Q", 99_999_999) + b"{", _tensors(b"[" * 100_000),
    _tensors(b'{"a":1,"a":2}'), _tensors([]), _tensors({LONG: 7}), _tensors({LONG: {"dtype": LONG}}),
    _tensor(shape=[-2]), _tensor(shape=[2.0]), _tensor(shape=[True, 2]), _tensor(shape=[10**30]), _tensor(shape=None),
    _tensor(shape=[[2]]), _tensor(data_offsets=[4, 0]), _tensor(data_offsets=[0, 10**30]), _tensor(dtype=["F16"]),
    _tensor(shape=[1] * 100_000),
    _tensors({"\ud800": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]}}, b"0" * 4),
    _tensors(b'{"a": ' + b"9" * 5000 + b"}"), _tensors(b'{"__metadata__": NaN}'),
], 10), ids=lambda content: repr(content[:20]))  # fmt: skip
def test_weights_whose_header_lies_are_refused(content: bytes, yard: Yard, folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(content)
    said = planned(yard, folder)
    assert said.code in (0, 2)


@pytest.mark.parametrize("metadata", sampled([
    {"general.architecture": LONG}, {"general.architecture": "\x1b[2J"}, {"general.architecture": 7},
    {"general.license": LONG}, {"general.license": "\x1b]0;x\x07"}, {"general.name": "../../etc"},
    {"general.type": "../x"}, {"llama.context_length": 2**32 - 1},
    {"general.file_type": 2**32 - 1}, {"split.count": 65535},
], 6))  # fmt: skip
def test_a_gguf_whose_metadata_lies_names_nothing_here(metadata: dict[str, Any], yard: Yard, tmp_path: Path) -> None:
    path = tmp_path / "m-BF16.gguf"
    path.write_bytes(gguf({**SMALL_METADATA, **metadata}, (TensorSpec("blk.0.ffn_up.weight", (256, 2), "BF16"),)))
    said = planned(yard, path, "--quant=Q8_0")
    assert said.code in (0, 2, 3) and "\x1b" not in said.out + said.err
    assert not list(yard.artifacts.rglob("etc"))


@pytest.mark.parametrize("name", sampled([
    "x" * 200, "é" * 120, "--help", "-rf", ".hidden", "a b", "a;rm", "$(id)", "a'b", "名", "...",
    "a\u202eb", "~", "~nobody",
], 8))  # fmt: skip
def test_a_folder_of_any_name_is_a_model_with_a_safe_one(name: str, folder: Path, tmp_path: Path) -> None:
    path = folder.rename(folder.parent / name)
    model = source(path, tmp_path).model
    assert len(model.folder.parts) == 3 and len(model.name) <= 96 and model.name.isascii()
    assert not model.name.startswith((".", "-")) and "/" not in model.name


@pytest.mark.parametrize("model", ["x/" + LONG, LONG, f"/{LONG}", "~nobody/x", "\udcff/x", "./" + "a/" * 3000])
def test_a_model_that_can_be_no_path_is_refused(model: str, yard: Yard) -> None:
    assert planned(yard, model).code == 2


# ---- what a Hub calls a commit -----------------------------------------------------------------------


@pytest.mark.parametrize("sha", sampled([
    "../../x", "/etc", "..", "a" * 39, "a" * 41, "A" * 40, "g" * 40, "a" * 40 + "\n", LONG, "\x1b[2J", "main", "a/b",
], 7))  # fmt: skip
@pytest.mark.parametrize("command", ["plan", "verify"])
def test_a_commit_that_is_none_names_no_folder(sha: str, command: str, yard: Yard, folder: Path) -> None:
    repo = yard.hub.add_repo(SOURCE_REPO, folder=folder, files={"manifest.json": b"{}"})
    repo.__dict__["commit"] = sha  # computed once, and kept there
    before = {path for path in yard.root.rglob("*") if "Lagoon" in path.parts}
    said = yard.run(command, f"--{'repo' if command == 'verify' else 'model'}={SOURCE_REPO}")
    assert said.code == 4 and "Traceback" not in said.err and ("commit" in said.err or "sha" in said.err)
    assert {path for path in yard.root.rglob("*") if "Lagoon" in path.parts} == before
