"""Importance matrices of a release: published beside their files, verified, and used to make the files again."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from quantyard.plan.imatrix import Calibration, plan_with_imatrix
from quantyard.protocol.base import files_digest
from quantyard.protocol.builder import QuantizeRequest
from quantyard.protocol.exit_codes import Answer
from quantyard.protocol.runner import file_sha256
from quantyard.sources.resolve import Source
from quantyard.store.manifest import ImatrixRecord, Manifest, parse_manifest, read_manifest
from tests.gguf_files import TensorSpec, gguf
from tests.hub_server import HubServer
from tests.released import REPO, Said, Yard, lay_out
from tests.unit.conftest import MakeRunner, Notes
from tests.unit.fake_engine import FakeEngine, writes
from tests.unit.release_engine import engine_of

pytestmark = pytest.mark.commands

MATRIX, Q4 = "Lagoon.imatrix.gguf", "Lagoon-Q4_K_M.gguf"


@pytest.fixture
def engine(yard: Yard) -> FakeEngine:
    return engine_of(yard)


def matrix(yard: Yard, name: str = "mine.gguf", seen: int = 512) -> Path:
    """An importance matrix of somebody's."""
    path = yard.root / name
    path.write_bytes(gguf({"general.type": "imatrix", "imatrix.chunk_count": seen}, [TensorSpec("a", (32,), "F32")]))
    return path


def published(yard: Yard) -> Manifest:
    return parse_manifest(yard.published()["manifest.json"], "manifest.json")


@pytest.fixture(scope="module")
def released_once(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Yard, FakeEngine]]:
    """A release of two files, one of which a matrix can change, and the engine that made them."""
    with HubServer() as hub, pytest.MonkeyPatch.context() as patch:
        yard = lay_out(tmp_path_factory.mktemp("released"), hub, patch)
        engine = engine_of(yard)
        said = yard.publish("--suite=smoke", f"--imatrix={matrix(yard)}", command="release")
        assert said.code == 0, said.err
        yield yard, engine


@pytest.fixture
def shared(released_once: tuple[Yard, FakeEngine], tmp_path: Path) -> Iterator[Yard]:
    """A copy of it, to be spoiled."""
    yard, engine = released_once
    repos = dict(yard.hub.repos)
    engine.ran.clear()
    yield replace(yard, root=shutil.copytree(yard.root, tmp_path / "shared"))
    yard.hub.repos = repos


@pytest.fixture
def shared_engine(released_once: tuple[Yard, FakeEngine]) -> FakeEngine:
    return released_once[1]


# ---- what is published -------------------------------------------------------------------------------


def test_the_matrix_is_published_beside_the_files_with_its_hash_and_what_it_was_used_for(shared: Yard) -> None:
    content, manifest = matrix(shared).read_bytes(), published(shared)
    assert shared.published()[MATRIX] == content
    assert list(manifest.imatrices) == [MATRIX]
    record = manifest.quants["Q4_K_M"].imatrix
    assert record is not None and (record.size_bytes, record.sha256) == (len(content), file_sha256(matrix(shared)))
    assert manifest.stages["quantize Q4_K_M"].inputs["imatrix"] == files_digest(tuple(record.given))
    assert manifest.quants["Q8_0"].imatrix is None, "8 bits round every weight the same"
    card = shared.published()["README.md"].decode()
    assert f"`Q4_K_M`: made with the importance matrix `{MATRIX}`, made elsewhere" in card
    assert f"| `{MATRIX}` | {len(content):,} | `{record.sha256}` |" in card


def test_a_release_of_files_without_a_matrix_has_none(shared: Yard) -> None:
    assert shared.run("report", f"--model={shared.model}", "--quant=Q8_0", "--suite=smoke", "--only").code == 0
    assert [path.name for path in shared.release.glob("*.gguf")] == ["Lagoon-Q8_0.gguf"]
    assert "imatrix" not in json.loads((shared.release / "manifest.json").read_bytes())["stages"]["convert"]


def test_what_becomes_of_the_users_file_later_does_not_matter(shared: Yard) -> None:
    before = matrix(shared).read_bytes()
    matrix(shared, seen=3)
    assert (shared.folder / MATRIX).read_bytes() == before
    (shared.root / "mine.gguf").unlink()
    assert shared.publish().code == 0


@pytest.mark.parametrize(("spoil", "says"), [
    (lambda path: path.unlink(), "is gone"),
    (lambda path: path.write_bytes(b"GGUF"), "was changed after it was verified"),
])  # fmt: skip
def test_a_matrix_that_is_gone_or_was_changed_is_not_published(
    shared: Yard, spoil: Callable[[Path], object], says: str
) -> None:
    spoil(shared.folder / MATRIX)
    said = shared.publish()
    assert said.code == 2 and MATRIX in said.err and says in " ".join(said.err.split())


def test_one_matrix_has_one_name_and_another_one_does_not_take_it(yard: Yard, engine: FakeEngine) -> None:
    engine.behaviours["quantize Q6_K"] = engine.behaviours["quantize Q4_K_M"]
    first, second = matrix(yard, "one.gguf"), matrix(yard, "two.gguf", seen=7)
    other = f"Lagoon.imatrix-{file_sha256(second)[:12]}.gguf"

    def names(quant: str, given: Path) -> dict[str, str]:
        assert yard.run("build", f"--model={yard.model}", f"--quant={quant}", f"--imatrix={given}").code == 0
        found = {name: record.imatrix for name, record in yard.manifest().quants.items() if record.imatrix}
        assert all(file_sha256(yard.folder / record.file) == record.sha256 for record in found.values())
        return {name: record.file for name, record in found.items()}

    assert names("Q4_K_M", first) == {"Q4_K_M": MATRIX}
    assert names("Q6_K", second) == {"Q4_K_M": MATRIX, "Q6_K": other}
    assert names("Q4_K_M", second) == {"Q4_K_M": other, "Q6_K": other}


# ---- one that the build makes ------------------------------------------------------------------------


def test_a_matrix_that_the_build_makes_lies_beside_its_files_as_a_hard_link(
    local_source: Source, make_runner: MakeRunner, notes: Notes
) -> None:
    behaviours = {"calibrate": writes("imatrix.gguf", "calibration.txt")}
    builder = make_runner(local_source, FakeEngine(behaviours=behaviours), "Q4_K_M,Q6_K,Q8_0")
    builder.plan = plan_with_imatrix(builder.plan, Calibration(), ["Q4_K_M", "Q6_K"])
    builder.run(notes)
    manifest = read_manifest(builder.store.folder / "manifest.json")
    assert manifest is not None
    assert (builder.store.folder / "tiny.imatrix.gguf").samefile(builder.output("calibrate") / "imatrix.gguf")
    records = [manifest.quants[name].imatrix for name in ("Q4_K_M", "Q6_K", "Q8_0")]
    assert records[0] == records[1] and records[2] is None and records[0] is not None
    assert records[0].given == manifest.stages["calibrate"].outputs


# ---- verify ------------------------------------------------------------------------------------------


def states(said: Said) -> dict[str, str]:
    return {check["what"]: check["state"] for check in said.json["checks"]}


def checked(yard: Yard, name: str = "") -> Said:
    return yard.verify(f"--file={yard.release / name}", "--json")


def test_verify_checks_the_matrix_of_a_folder_of_a_repo_and_alone(shared: Yard) -> None:
    for said in (checked(shared), shared.verify(f"--repo={REPO}", "--json"), checked(shared, MATRIX)):
        assert said.code == 0, said.out
        assert (states(said)[MATRIX], states(said)[f"type of {MATRIX}"]) == ("ok", "ok")
    assert Q4 not in states(checked(shared, MATRIX)) and MATRIX not in states(checked(shared, Q4))


def test_a_matrix_with_other_bytes_or_none_at_all_is_named(shared: Yard) -> None:
    path = shared.release / MATRIX
    content = path.read_bytes()
    path.unlink()
    assert states(checked(shared))[MATRIX] == "failed"
    path.write_bytes(content[:-1] + b"x")
    said = checked(shared)
    assert said.code == Answer.VERIFY_FAILED
    assert [what for what, state in states(said).items() if state == "failed"] == [MATRIX]
    path.write_bytes(gguf({"general.type": "model"}, []))
    assert states(checked(shared))[f"type of {MATRIX}"] == "failed"


def _other_digest(manifest: dict[str, Any]) -> None:
    manifest["stages"]["quantize Q4_K_M"]["inputs"]["imatrix"] = "0" * 64


def _other_hash(manifest: dict[str, Any]) -> None:
    manifest["quants"]["Q4_K_M"]["imatrix"]["sha256"] = "0" * 64


def _none_used(manifest: dict[str, Any]) -> None:
    del manifest["stages"]["quantize Q4_K_M"]["inputs"]["imatrix"]


def _two_of_a_name(manifest: dict[str, Any]) -> None:
    other = manifest["quants"]["Q4_K_M"]["imatrix"] | {"size_bytes": 1}
    manifest["quants"] = {"Q4_K_M": manifest["quants"]["Q4_K_M"], "Q8_0": manifest["quants"]["Q8_0"]}
    manifest["quants"]["Q8_0"]["imatrix"] = other


@pytest.mark.parametrize(("change", "says"), [
    (_other_digest, f"quantize Q4_K_M used another importance matrix than {MATRIX}"),
    (_other_hash, f"quantize Q4_K_M used an importance matrix with another hash than {MATRIX}"),
    (_none_used, "quantize Q4_K_M used no importance matrix"),
    (_two_of_a_name, f"{MATRIX} has another hash in the record of another file"),
    (lambda m: m["quants"]["Q4_K_M"].update(imatrix=None), "used an importance matrix without a record"),
])  # fmt: skip
def test_a_manifest_that_names_another_matrix_than_the_one_used_contradicts_itself(
    shared: Yard, change: Callable[[dict[str, Any]], object], says: str
) -> None:
    path = shared.release / "manifest.json"
    manifest = json.loads(path.read_bytes())
    change(manifest)
    path.write_text(json.dumps(manifest))
    said = checked(shared)
    found = next(check for check in said.json["checks"] if check["what"] == "record of Q4_K_M")
    assert said.code == Answer.VERIFY_FAILED and found["state"] == "failed" and says in found["finding"]


# ---- rebuild -----------------------------------------------------------------------------------------


def rebuilt(yard: Yard) -> Said:
    return yard.verify(f"--file={yard.release}", "--rebuild", f"--model={yard.model}", "--json")


def test_a_rebuild_takes_the_published_matrix_under_the_name_it_had(shared: Yard, shared_engine: FakeEngine) -> None:
    (shared.root / "mine.gguf").unlink()
    said = rebuilt(shared)
    assert said.code == 0, said.out
    assert states(said)[f"rebuilt {Q4}"] == states(said)["rebuilt Lagoon-Q8_0.gguf"] == "ok"
    (given,) = shared_engine.told["quantize Q4_K_M"]["imatrix"]
    assert given["path"] == "mine.gguf" and "imatrix" not in shared_engine.told["quantize Q8_0"]


def test_a_type_that_needs_a_matrix_can_be_rebuilt(yard: Yard, engine: FakeEngine) -> None:
    engine.behaviours["quantize IQ2_XS"] = engine.behaviours["quantize Q4_K_M"]
    arguments = (f"--model={yard.model}", "--quant=IQ2_XS", f"--imatrix={matrix(yard)}")
    assert yard.run("build", *arguments).code == 0
    said = yard.verify(f"--file={yard.file('IQ2_XS')}", "--rebuild", f"--model={yard.model}", "--json")
    assert states(said)["rebuilt Lagoon-IQ2_XS.gguf"] == "ok", said.out


@pytest.mark.parametrize(("spoil", "says"), [
    (lambda path: path.unlink(), "is missing, and these files were made with that importance matrix"),
    (lambda path: path.write_bytes(b"other"), "is not the importance matrix that these files were made with"),
])  # fmt: skip
def test_without_the_very_matrix_nothing_is_rebuilt(
    shared: Yard, shared_engine: FakeEngine, spoil: Callable[[Path], object], says: str
) -> None:
    path = shared.release / MATRIX
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content)  # no hard link of the store's any more
    spoil(path)
    said = rebuilt(shared)
    assert said.code == 2 and says in " ".join(said.err.split()) and shared_engine.ran == []


def test_a_record_tells_which_of_the_files_given_is_the_matrix(shared: Yard, shared_engine: FakeEngine) -> None:
    record = published(shared).quants["Q4_K_M"].imatrix
    request = published(shared).stages["quantize Q4_K_M"].request
    assert isinstance(record, ImatrixRecord)
    asked = QuantizeRequest.model_validate(request)
    assert {entry.path: entry.sha256 for entry in record.given} == {asked.imatrix_file: record.sha256}
