"""Artifacts, manifests and releases that earlier versions wrote are read, checked, chosen from and published as they
are. `tests/data/README.md` says how they were made.
"""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from quantyard.forecast.samples import read_forecast_book
from quantyard.hub.client import HubAccess
from quantyard.protocol.exit_codes import Answer
from quantyard.sources.resolve import find_source
from quantyard.store.hash_cache import HashCache
from quantyard.store.manifest import Manifest, read_manifest
from quantyard.store.stages import ModelStore
from tests.hub_server import HubServer
from tests.released import Said, Yard, alone

pytestmark = pytest.mark.commands

DATA = Path(__file__).parents[1] / "data"
VERSIONS = sorted(path.name for path in DATA.glob("written-by-*.tar.xz"))  # to hold another version: add its archive
REPO = "me/Pebble-GGUF"
FILES = ("Pebble-Q4_0.gguf", "Pebble-Q8_0.gguf", "Pebble.imatrix.gguf")


@pytest.fixture
def hub() -> Iterator[HubServer]:
    with HubServer() as running:
        yield running


@pytest.fixture(params=VERSIONS)
def yard(request: pytest.FixtureRequest, tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> Yard:
    """What that version left, and a Hub of today's."""
    with tarfile.open(DATA / request.param) as archive:
        archive.extractall(tmp_path, filter="data")
    alone(monkeypatch, tmp_path, hub)
    model = tmp_path / "models" / "Pebble-F32.gguf"
    access, hashes = HubAccess(hub.endpoint, hub.writer), HashCache(tmp_path / "artifacts" / ".hashes.json")
    source = find_source(str(model), access, hashes, allow_pickle=False, gguf_file=None)
    return Yard(tmp_path, hub, monkeypatch, source, str(model))


def run(yard: Yard, command: str, *argv: str) -> Said:
    """A command on both files of the model."""
    return yard.run(command, f"--model={yard.model}", "--quant=Q4_0,Q8_0", *argv)


def test_an_archive_of_an_earlier_version_is_there() -> None:
    assert "written-by-0.1.0.tar.xz" in VERSIONS


def test_nothing_of_a_manifest_is_lost(yard: Yard) -> None:
    written = json.loads((yard.folder / "manifest.json").read_bytes())
    read = read_manifest(yard.folder / "manifest.json")
    assert read is not None
    assert json.loads(read.model_dump_json()) == written
    stages = {record.request["stage"] for record in read.stages.values()}
    assert {"convert", "evaluate", "report"} - stages == {"convert"}


def test_every_finished_stage_counts(yard: Yard) -> None:
    store, records = ModelStore(yard.artifacts, yard.source.model), yard.manifest().stages
    for label, record in records.items():
        finished = store.finished(label, record.key)
        assert finished is not None, label
        assert list(finished.result.outputs) == record.outputs
    assert not store.changed and len(records) >= 18


def test_a_stage_with_a_file_that_was_changed_counts_no_more(yard: Yard) -> None:
    store, record = ModelStore(yard.artifacts, yard.source.model), yard.manifest().stages["speed Q4_0"]
    path = next(yard.folder.glob("stages/speed-Q4_0-*/files/speed.json"))
    path.write_bytes(path.read_bytes().replace(b"1", b"2"))
    assert store.finished("speed Q4_0", record.key) is None
    assert "speed.json was changed after it was made" in store.changed[0]


def test_past_times_are_read(yard: Yard) -> None:
    written = json.loads((yard.artifacts / ".rates.json").read_bytes())
    book = read_forecast_book(yard.artifacts)
    assert len(book.samples) == len(written["samples"]) > 0
    assert [sample.seconds for sample in book.samples] == [sample["seconds"] for sample in written["samples"]]
    assert len(book.runs) == len(written["runs"])


@pytest.mark.parametrize("what", ["published", "release", *FILES])
def test_what_was_published_is_verified(yard: Yard, what: str) -> None:
    path = {"published": yard.root / "published", "release": yard.release}.get(what, yard.root / "published" / what)
    said = yard.verify(f"--file={path}", "--json")
    assert said.code == 0, said.out + said.err
    found = {check["what"]: check["state"] for check in said.json["checks"]}
    assert found.pop("source") == "not checked"  # it was a local model
    assert set(found.values()) == {"ok"} and found["card"] == "ok"


def test_a_published_repo_is_verified_from_the_hub(yard: Yard) -> None:
    yard.hub.add_repo(REPO, folder=yard.root / "published")
    said = yard.verify(f"--repo={REPO}")
    assert said.code == 0, said.out + said.err


def test_a_byte_that_was_changed_is_still_found(yard: Yard) -> None:
    path = yard.root / "published" / "Pebble-Q4_0.gguf"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    said = yard.verify(f"--file={path}")
    assert said.code == Answer.VERIFY_FAILED and "SHA-256" in said.out


def test_a_number_that_was_changed_on_the_card_is_still_found(yard: Yard) -> None:
    card = yard.root / "published" / "README.md"
    text = card.read_text()
    written, other = (value.replace(" ", "\N{NO-BREAK SPACE}") for value in ("+0.19 ± 0.13 %", "+0.09 ± 0.13 %"))
    assert written in text
    card.write_text(text.replace(written, other))
    said = yard.verify(f"--file={yard.root / 'published'}")
    assert said.code == Answer.VERIFY_FAILED and "+0.09" in said.out and "on the card" in said.out


def test_a_file_is_chosen_from_what_was_measured(yard: Yard) -> None:
    said = run(yard, "choose", "--json")
    assert said.code == 0, said.err
    assert said.json["choice"] == "Q4_0"


def test_the_gate_judges_what_was_measured(yard: Yard) -> None:
    said = run(yard, "gate", yard.budgets("defaults: {max_mean_kld: 0.05}\n"), "--json")
    assert said.code == 0, said.err
    assert said.json["gate"]["outcome"] == "passed"
    assert run(yard, "gate", yard.budgets("defaults: {max_mean_kld: 0.00001}\n")).code == 40


def test_the_report_is_written_again_from_what_was_measured(yard: Yard) -> None:
    shutil.rmtree(yard.release)
    said = run(yard, "report")
    assert said.code == 0, said.err
    assert {"README.md", "report.html", "manifest.json", *FILES} <= {path.name for path in yard.release.iterdir()}
    assert (yard.release / FILES[0]).samefile(yard.folder / FILES[0])
    assert yard.verify(f"--file={yard.release}").code == 0


def test_a_built_and_measured_model_is_published_without_running_a_stage(yard: Yard) -> None:
    before = {path: path.stat().st_mtime_ns for path in (yard.folder / "stages").iterdir()}
    budgets = yard.budgets("defaults: {max_mean_kld: 5}\n")
    said = run(yard, "publish", "--yes", f"--repo={REPO}", "--license=apache-2.0", budgets)
    assert said.code == 0, said.err
    assert {path: path.stat().st_mtime_ns for path in (yard.folder / "stages").iterdir()} == before
    head = yard.hub.repos[REPO].at("main")
    assert head is not None and {"README.md", "manifest.json", *FILES} <= set(head.files)
    manifest = Manifest.model_validate_json(b"".join(head.files["manifest.json"].blocks()))
    assert manifest.evaluations == yard.manifest().evaluations
