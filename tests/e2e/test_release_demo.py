"""`make release` of the demo model, to a repo, a card and an artifact in a registry; then `verify`."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from quantyard.plan.report_step import plan_suite_folder
from tests.conftest import lend, run, run_json
from tests.docker.registry import Registry, registry, registry_program
from tests.e2e.conftest import Measured, write_example
from tests.hub_server import HubServer

GATE = """
defaults: {min_schema_conformance: 0.5}
quants:
  4-bit: {max_ppl_change: 50, max_mean_kld: 0.5}
"""
REPO = "me/SmolLM2-135M-Instruct-GGUF"


@dataclass(frozen=True)
class Released:
    """One release: how it was asked for, what was said, and where it went."""

    asked: dict[str, str]
    said: dict[str, Any]
    hub: HubServer
    registry: Registry


@pytest.fixture(scope="module")
def hub() -> Iterator[HubServer]:
    with HubServer() as server:
        yield server


@pytest.fixture(scope="module")
def registry_here(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Registry]:
    if registry_program() is None:
        pytest.skip("docker-registry is not installed: apt-get install docker-registry")
    with registry(tmp_path_factory.mktemp("registry")) as running:
        yield running


@pytest.fixture(scope="module")
def released_before() -> dict[str, Released]:
    """What was released already, by engine."""
    return {}


@pytest.fixture
def released(
    engine: str, measured_demo: Callable[[str], Measured], hub: HubServer, registry_here: Registry,
    released_before: dict[str, Released], tmp_path_factory: pytest.TempPathFactory,
) -> Released:  # fmt: skip
    """In a store of its own, to which what was built and measured is lent: contract, gate, card and upload are left."""
    if engine not in released_before:
        measured, folder = measured_demo(engine), tmp_path_factory.mktemp(f"release-{engine}")
        built = ("convert", "quantize-Q4_K_M", "verify-Q4_K_M", "evaluate", "divergence", "speed")
        lend(Path(measured.asked["ARTIFACTS"]), folder / "artifacts", *built)
        (folder / "gate.yaml").write_text(GATE)
        suite = write_example(folder / "suite")
        asked = {
            "MODEL": measured.asked["MODEL"], "QUANT": "Q4_K_M", "SUITE": str(suite), "ENGINE": engine,
            "ARTIFACTS": str(folder / "artifacts"), "REPO": f"{REPO}-{engine}", "GATE": str(folder / "gate.yaml"),
            "OCI": f"{registry_here.address}/me/smol-{engine}", "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.writer,
            "NO_PROXY": hub.host, "no_proxy": hub.host, "YES": "1",
        }
        said = run_json("release", **asked)
        released_before[engine] = Released(asked, said, hub, registry_here)
    return released_before[engine]


def _model_folder(released: Released) -> Path:
    (manifest,) = Path(released.asked["ARTIFACTS"]).glob("local/SmolLM2-135M-Instruct/*/manifest.json")
    return manifest.parent


def test_one_command_goes_from_a_model_to_a_repo_with_card_page_and_manifest(released: Released) -> None:
    repo = released.hub.repos[released.asked["REPO"]]
    assert repo.private and released.said["hub"]["created"] and released.said["gate"]["outcome"] == "passed"
    names = {change["path"] for change in released.said["files"]}
    assert {"README.md", "manifest.json", "report.html", "SmolLM2-135M-Instruct-Q4_K_M.gguf"} <= names
    suite = plan_suite_folder(released.said["gate"]["suite"])
    assert {f"{suite}/report.md", f"{suite}/lm-eval/Q4_K_M/shop_questions.json"} <= names
    assert all(change["state"] == "new" for change in released.said["files"])


def test_the_folder_release_holds_what_was_published_byte_for_byte(released: Released) -> None:
    folder = _model_folder(released) / "release"
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert there == {change["path"] for change in released.said["files"]}


def test_card_and_manifest_tell_of_the_file_that_was_published_and_of_no_path_here(released: Released) -> None:
    folder = _model_folder(released) / "release"
    manifest = json.loads((folder / "manifest.json").read_text())
    record = manifest["quants"]["Q4_K_M"]
    card = (folder / "README.md").read_text()
    assert record["sha256"] in card and "license: apache-2.0" in card and "Outlines" in card
    assert manifest["contracts"]["Q4_K_M"]["schemas"]["n"] >= 50
    for text in (card, (folder / "manifest.json").read_text(), (folder / "report.html").read_text()):
        assert released.asked["ARTIFACTS"] not in text and str(Path.home()) + "/" not in text


def test_the_registry_holds_the_same_bytes_under_the_same_hash(released: Released) -> None:
    pushed = released.registry.manifest(released.asked["OCI"].partition("/")[2], "Q4_K_M")
    record = json.loads((_model_folder(released) / "manifest.json").read_text())["quants"]["Q4_K_M"]
    layer = next(layer for layer in pushed["layers"] if "gguf" in layer["mediaType"])
    assert layer["digest"] == f"sha256:{record['sha256']}" and layer["size"] == record["size_bytes"]
    assert pushed["annotations"]["quantyard.gate"] == "passed"


def test_the_same_command_again_measures_nothing_and_sends_nothing(released: Released) -> None:
    before = released.hub.repos[released.asked["REPO"]].commit
    again = run_json("release", **released.asked)
    assert {change["state"] for change in again["files"]} == {"unchanged"}
    assert released.hub.repos[released.asked["REPO"]].commit == before


def test_the_contract_that_was_tested_is_kept_and_is_not_tested_again(released: Released) -> None:
    asked = {name: released.asked[name] for name in ("MODEL", "QUANT", "ENGINE", "ARTIFACTS")}
    before = json.loads((_model_folder(released) / "manifest.json").read_text())
    done = run("contract", JSON="1", **asked)
    (report,) = json.loads(done.stdout)["contracts"]
    after = json.loads((_model_folder(released) / "manifest.json").read_text())
    key, again = (manifest["stages"]["contract Q4_K_M"]["key"] for manifest in (before, after))
    assert (again, before["contracts"]["Q4_K_M"]) == (key, report), "it ran again"
    assert report["schemas"]["n"] >= 50
    server = {"docker": "llama-server", "local": "xllamacpp"}[asked["ENGINE"]]
    assert report["server"].startswith(server)
    assert report["schemas"]["rate"] >= report["schemas"]["gate"] and done.returncode == 0, done.stdout


@pytest.mark.slow
def test_what_was_published_is_verified_down_to_a_second_making(released: Released, tmp_path: Path) -> None:
    network = {name: released.asked[name] for name in ("HF_ENDPOINT", "HF_TOKEN", "NO_PROXY", "no_proxy", "ENGINE")}
    asked = {**network, "ARTIFACTS": str(tmp_path), "REPO": released.asked["REPO"], "MODEL": released.asked["MODEL"]}
    found = run_json("verify", REBUILD="1", **asked)
    assert found["state"] == "ok" and not [c for c in found["checks"] if c["state"] == "failed"]
    (rebuilt,) = [c for c in found["checks"] if c["what"].startswith("rebuilt")]
    assert (rebuilt["state"], rebuilt["finding"]) == ("ok", "the same bytes")


def test_a_budget_that_is_exceeded_ends_with_its_exit_code_and_nothing_is_sent(
    released: Released, tmp_path: Path
) -> None:
    (tmp_path / "strict.yaml").write_text("defaults: {max_mean_kld: 0.0001}\n")
    changes = {"GATE": str(tmp_path / "strict.yaml"), "REPO": f"{REPO}-refused", "OCI": "", "SUITE": ""}
    done = run("publish", **{**released.asked, **changes})
    assert done.returncode == 40 and "max_mean_kld is exceeded" in done.stderr, done.stderr
    assert f"{REPO}-refused" not in released.hub.repos
