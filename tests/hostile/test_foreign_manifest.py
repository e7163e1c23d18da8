"""A manifest that means harm, in a folder or a repo: it writes nowhere, permits nothing, and ends in a clear refusal.

Every case goes through the real command line, in this process.
"""

from __future__ import annotations

import copy
import json
import random
import shutil
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from quantyard.protocol.exit_codes import Answer
from tests.gguf_files import TensorSpec, gguf
from tests.hostile.sampling import rounds, sampled
from tests.hub_repo import Blob, Repo
from tests.hub_server import HubServer
from tests.released import REPO, Said, Yard, lay_out
from tests.unit.fake_engine import FakeEngine
from tests.unit.release_engine import engine_of

SECRET = "nobody's business"
LONG = "x" * 5000


@dataclass
class Release:
    """A release of two files, one made with an importance matrix, and a file of the user's that is nobody's."""

    yard: Yard
    engine: FakeEngine
    folder: Path
    victim: Path

    def manifest(self) -> dict[str, Any]:
        value: dict[str, Any] = json.loads((self.folder / "manifest.json").read_bytes())
        return value

    def write(self, manifest: object) -> None:
        content = manifest if isinstance(manifest, bytes) else json.dumps(manifest).encode()
        (self.folder / "manifest.json").unlink()
        (self.folder / "manifest.json").write_bytes(content)

    def verify(self, *argv: str, on_hub: bool = False) -> Said:
        """What the command says. Wherever it leads, nothing outside of the store was written, and nobody blamed us."""
        self.engine.ran.clear()
        if on_hub:
            repo: Repo = self.yard.hub.repos[REPO]
            changed = {path.name: Blob(path.read_bytes(), lfs=path.suffix == ".gguf") for path in self.folder.iterdir()
                       if path.is_file()}  # fmt: skip
            self.yard.hub.repos[REPO] = repo.after(changed)
        self.yard.hub.requests.clear()
        around = _tree(self.victim.parent)
        said = self.yard.verify(f"--repo={REPO}" if on_hub else f"--file={self.folder}", *argv)
        assert _tree(self.victim.parent) == around and self.victim.read_text() == SECRET
        assert "Traceback" not in said.err and said.code in (0, 2, Answer.ENGINE, Answer.VERIFY_FAILED), said.err
        assert len(said.err) < 4000, "a name of others is shown by its beginning"
        return said

    def rebuild(self, *argv: str, on_hub: bool = False) -> Said:
        return self.verify("--rebuild", f"--model={self.yard.model}", *argv, on_hub=on_hub)


def _tree(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_mtime_ns) for path in folder.rglob("*"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Yard, FakeEngine]]:
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        yard = lay_out(tmp_path_factory.mktemp("yard"), hub, patch)
        engine = engine_of(yard)
        matrix = yard.root / "mine.gguf"
        matrix.write_bytes(gguf({"general.type": "imatrix"}, [TensorSpec("a", (32,), "F32")]))
        said = yard.publish("--suite=smoke", f"--imatrix={matrix}", command="release")
        assert said.code == 0, said.err
        yield yard, engine


@pytest.fixture
def release(made: tuple[Yard, FakeEngine], tmp_path: Path) -> Iterator[Release]:
    yard, engine = made
    folder = shutil.copytree(yard.release, tmp_path / "downloads" / "release")
    (tmp_path / "home").mkdir()
    victim = tmp_path / "home" / "victim"
    victim.write_text(SECRET)
    repos = dict(yard.hub.repos)
    yield Release(yard, engine, folder, victim)
    yard.hub.repos = repos


def _quant(manifest: dict[str, Any], label: str = "Q4_K_M") -> dict[str, Any]:
    found: dict[str, Any] = manifest["quants"][label]
    return found


def _asked(manifest: dict[str, Any], label: str) -> dict[str, Any]:
    found: dict[str, Any] = manifest["stages"][label]["request"]
    return found


def test_the_release_as_it_is_is_made_again(release: Release) -> None:
    assert release.rebuild().code == 0 and "quantize Q4_K_M" in release.engine.ran


# ---- a path ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sampled([
    "{victim}", "../../../../home/victim", "../victim", "..", ".", "", "a/b", "a\\b", "/", "a\0b", "a\nb", "\x1b]0;x",
    "a\u202egpj", ".bashrc", LONG, 7, None, [], {"a": 1}, True, "\ud800",
], 9))  # fmt: skip
def test_the_name_of_a_matrix_is_no_path(name: Any, release: Release) -> None:
    manifest = release.manifest()
    named = name.format(victim=release.victim) if isinstance(name, str) and "{victim}" in name else name
    _asked(manifest, "quantize Q4_K_M")["imatrix_file"] = named
    release.write(manifest)
    said = release.rebuild(on_hub=name == "{victim}")
    assert said.code == 2 and release.engine.ran == []


NAMES = [
    "/etc/x.gguf", "../x.gguf", "a/../../x.gguf", "sub/x.gguf", ".hidden.gguf", ".git/config", "README.md",
    "manifest.json", "report.html", "LICENSE", ".gguf", "x.gguf/", "a\\b.gguf", "a\x1b[2J.gguf", "a\u202e.gguf",
    "a\x85.gguf", "a\n.gguf", "", ".", "..", f"{LONG}.gguf", "é" * 130 + ".gguf", "\ud800.gguf", 5, None, ["x.gguf"],
]


@pytest.mark.parametrize("name", sampled(NAMES, 8))
@pytest.mark.parametrize("where", ["file", "parts", "imatrix"])
def test_a_file_of_a_release_is_a_gguf_in_its_folder(name: Any, where: str, release: Release) -> None:
    manifest = release.manifest()
    record = _quant(manifest)
    if where == "parts":
        record["parts"] = [{"path": name, "size_bytes": 1, "sha256": "0" * 64}]
    else:
        (record if where == "file" else record["imatrix"])["file"] = name
    release.write(manifest)
    said = release.verify(on_hub=True)
    assert said.code == 2 and "is not a manifest of Quantyard" in said.err
    taken = {request.path.rsplit("/", 1)[-1] for request in release.yard.hub.requests if request.method == "GET"}
    assert not {name for name in taken if name.endswith(".gguf") or name in ("README.md", "LICENSE", "config")}


def _same(manifest: dict[str, Any]) -> None:
    _quant(manifest)["file"] = _quant(manifest, "Q8_0")["file"]


def _same_but_for_case(manifest: dict[str, Any]) -> None:
    _quant(manifest)["file"] = _quant(manifest, "Q8_0")["file"].upper()


def _a_matrix_too(manifest: dict[str, Any]) -> None:
    _quant(manifest, "Q8_0")["file"] = _quant(manifest)["imatrix"]["file"]


def _a_part_twice(manifest: dict[str, Any]) -> None:
    part = {"path": "a-00001-of-00002.gguf", "size_bytes": 1, "sha256": "0" * 64}
    _quant(manifest)["parts"] = [part, part]


def _renamed(name: str) -> Any:
    def change(manifest: dict[str, Any]) -> None:
        manifest["quants"][name] = manifest["quants"].pop("Q8_0")

    return change


def _crowd(manifest: dict[str, Any]) -> None:
    for number in range(1000):
        manifest["quants"][f"Q{number}"] = _quant(manifest) | {"file": f"{number}.gguf", "imatrix": None}


@pytest.mark.parametrize("change", [
    _same, _same_but_for_case, _a_matrix_too, _a_part_twice, _crowd, *map(_renamed, ("../x", "a b", "", "-x", LONG)),
])  # fmt: skip
def test_names_that_collide_or_are_none_are_refused(change: Any, release: Release) -> None:
    manifest = release.manifest()
    change(manifest)
    release.write(manifest)
    said = release.verify()
    assert said.code == 2 and "is not a manifest of Quantyard" in said.err


@pytest.mark.parametrize(("repo_id", "commit"), sampled([
    ("/home/me/model", "a" * 40), ("./model", "a" * 40), ("~/model", "a" * 40), ("~nobody/model", "a" * 40),
    ("org/../..", "a" * 40), ("tinyllama", "a" * 40), ("-x/y", "a" * 40), ("org/name@main", "a" * 40),
    (LONG, "a" * 40), ("http://elsewhere/org/name", "a" * 40), ("org/name", "../../x"), ("org/name", "main"),
    ("org/name", "A" * 40), ("org/name", "a" * 39), ("org/name", ""), ("org/na\nme", "a" * 40),
], 7))  # fmt: skip
def test_a_source_is_a_repo_and_a_commit_and_no_path(repo_id: str, commit: str, release: Release) -> None:
    manifest = release.manifest()
    manifest["source"] |= {"repo_id": repo_id, "commit": commit}
    release.write(manifest)
    said = release.rebuild()
    assert said.code == 2 and release.engine.ran == []


@pytest.mark.parametrize("target", ["manifest.json", "Lagoon-Q8_0.gguf", "Lagoon.imatrix.gguf", "README.md"])
def test_a_link_in_a_downloaded_release_leads_nowhere_else(target: str, release: Release) -> None:
    path = release.folder / target
    shutil.move(path, release.victim.parent / "theirs")
    path.symlink_to(release.victim.parent / "theirs")
    said = release.rebuild()
    assert said.code in (2, Answer.VERIFY_FAILED) and "leads out of its folder" in said.out + said.err
    assert SECRET not in said.out + said.err


def test_a_pipe_in_the_place_of_a_manifest_is_not_waited_for(release: Release) -> None:
    import os

    (release.folder / "manifest.json").unlink()
    os.mkfifo(release.folder / "manifest.json")
    assert "is a pipe" in release.verify().err


# ---- consent -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(("label", "permission"), [
    ("convert", "allow_pickle"), ("quantize Q8_0", "allow_requantize"), ("verify Q4_K_M", "allow_mismatch"),
    ("verify Q8_0", "allow_pickle"), ("convert", "allow_mismatch"),
])  # fmt: skip
@pytest.mark.parametrize("value", [True, 1, "yes", [False]])
def test_a_permission_in_a_manifest_is_nobodys(label: str, permission: str, value: Any, release: Release) -> None:
    manifest = release.manifest()
    _asked(manifest, label)[permission] = value
    release.write(manifest)
    said = release.rebuild()
    assert said.code == 2 and release.engine.ran == []
    words = " ".join(said.err.split())
    typed = "ALLOW_MISMATCH=plain-text" if permission == "allow_mismatch" else f"{permission.upper()}=1"
    assert f"REBUILD=1 {typed}" in words and f"FILE={release.folder}" in words


def test_what_the_user_allows_in_this_run_is_allowed(release: Release) -> None:
    manifest = release.manifest()
    _asked(manifest, "convert")["allow_pickle"] = True
    _asked(manifest, "verify Q8_0")["allow_mismatch"] = True
    release.write(manifest)
    assert release.rebuild("--allow-pickle").code == 2 and release.engine.ran == []
    assert release.rebuild("--allow-pickle", "--allow-mismatch=plain-text").code == 0 and release.engine.ran


@pytest.mark.parametrize("permission", ["allow_everything", "allow_unsafe_code", "allow_" + LONG])
def test_a_permission_that_a_build_does_not_know_is_refused(permission: str, release: Release) -> None:
    manifest = release.manifest()
    _asked(manifest, "convert")[permission] = True
    release.write(manifest)
    assert release.rebuild().code == 2 and release.engine.ran == []


def test_a_pickle_that_build_refuses_is_not_opened_by_a_rebuild(release: Release, tmp_path: Path) -> None:
    """Whether the manifest tells of the permission or keeps it quiet."""
    folder = tmp_path / "Lagoon"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    for told in (True, False):
        manifest = release.manifest()
        _asked(manifest, "convert")["allow_pickle"] = told
        release.write(manifest)
        said = release.verify("--rebuild", f"--model={folder}")
        assert said.code == 2 and "ALLOW_PICKLE=1" in said.err and release.engine.ran == []


# ---- parameters --------------------------------------------------------------------------------------


@pytest.mark.parametrize("outtype", ["../../x", "--outfile", "Q4_K_M", "BF16 ", LONG, 7, None, [], {"a": 1}])
def test_a_type_to_convert_to_is_one_of_ours(outtype: Any, release: Release) -> None:
    manifest = release.manifest()
    _asked(manifest, "convert")["outtype"] = outtype
    release.write(manifest)
    assert release.rebuild().code == 2 and release.engine.ran == []


@pytest.mark.parametrize("recipe", sampled([
    {"quant": None}, {"quant": 7}, {"quant": "../x"}, {"quant": "Q4_K_M;rm"}, {"tensor_types": []},
    {"tensor_types": {"(a+)+$": "Q4_K"}}, {"tensor_types": {"attn_v": "--flag"}}, {"tensor_types": {LONG: "Q4_K"}},
    {"tensor_types": {"attn_v": 3}}, {"tensor_types": {f"blk.{n}.attn_v": "Q4_K" for n in range(600)}},
    {"output_type": "../x"}, {"output_type": []}, {"token_embedding_type": LONG}, {},
], 8))  # fmt: skip
def test_a_recipe_in_a_manifest_is_held_against_our_types(recipe: dict[str, Any], release: Release) -> None:
    manifest = release.manifest()
    asked = _asked(manifest, "quantize Q4_K_M")
    for name in ("quant", "tensor_types", "output_type", "token_embedding_type"):
        asked.pop(name, None)
    asked |= {"recipe": "theirs"} | recipe
    manifest["quants"]["theirs"] = _quant(manifest) | {"file": "theirs.gguf", "imatrix": None}
    release.write(manifest)
    started = time.monotonic()
    assert release.rebuild().code == 2 and release.engine.ran == []
    assert time.monotonic() - started < 20


# ---- no manifest at all ------------------------------------------------------------------------------


def _text(change: str) -> bytes:
    return f'{{"schema_version": 1, "source": {change}}}'.encode()


@pytest.mark.parametrize("content", sampled([
    b"", b"{", b"null", b"7", b'"x"', b"\xff\xfe{", b"[" * 100_000, b"[" * 200 + b"]" * 200,
    _text("[" * 80 + "]" * 80), _text("NaN"), _text("-Infinity"), _text("1e999"), _text("9" * 5000), _text('"\\ud800"'),
    b'{"schema_version": 1, "schema_version": 1}', b'{"schema_version": 99999999999999999999999}',
    b'{"schema_version": true}', b" " * (17 * 2**20), b'{"schema_version": 2, "quantyard": "' + b"x" * 5000 + b'"}',
    b'{"' + b"x" * 5000 + b'": 1}', b'{"\\u001b[2J": 1}',
], 11), ids=lambda content: repr(content[:24]))  # fmt: skip
def test_what_is_no_manifest_is_refused_in_a_few_words(content: bytes, release: Release) -> None:
    release.write(content)
    started = time.monotonic()
    said = release.verify()
    assert said.code == 2 and "manifest" in said.err and "\x1b[2J" not in said.err
    assert time.monotonic() - started < 10


VALUES: list[Any] = [
    None, True, -1, 0, 2**63, 1e308, "", LONG, "\x1b[2J", "../../x", "/etc/passwd", [], {}, [[]], {"a": {}}, ["x"] * 3,
    "NaN", "\u202e", "Q4_K_M", {"allow_pickle": True},
]


def _places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*path, key)
        yield from _places(inner, (*path, key))


@pytest.mark.parametrize("seed", range(rounds(12, 400)))
def test_a_manifest_with_values_that_cannot_be_is_refused_or_found_out(seed: int, release: Release) -> None:
    """Never a traceback, never our bug, and nothing outside the store is written."""
    chance = random.Random(seed)
    manifest = copy.deepcopy(release.manifest())
    places = list(_places(manifest))
    for place in chance.sample(places, chance.randint(1, 3)):
        at: Any = manifest
        try:
            for key in place[:-1]:
                at = at[key]
            at[place[-1]] = chance.choice(VALUES)
        except (KeyError, IndexError, TypeError):  # what was changed before
            continue
    release.write(manifest)
    release.rebuild()
