"""The commands of a card that was sent are run as they stand, against the Hub and the registry that it was sent to."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from quantyard.card.render import render_card
from quantyard.plan.steps import StageSpec
from quantyard.protocol.base import FileEntry, StageResult
from quantyard.protocol.runner import file_sha256
from quantyard.store.artifact import Workspace
from quantyard.workflows import planning
from tests.cards import CONTEXT
from tests.hub_server import HubServer
from tests.manifests import manifest_of
from tests.released import REPO, Yard, lay_out, tiny
from tests.unit.fake_engine import FakeEngine, writes
from tests.unit.oci_server import OciServer, oci_server

pytestmark = pytest.mark.commands
PARTS = tuple(f"Lagoon-Q8_0-0000{n}-of-00002.gguf" for n in (1, 2))


def card_blocks(card: str, language: str = "sh") -> list[str]:
    """The blocks of code in one language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", card, re.MULTILINE | re.DOTALL)


def command_of(card: str, program: str) -> str:
    """The block with this program's command; "" without one."""
    found = [block for block in card_blocks(card) if re.search(rf"^{program}\b", block, re.MULTILINE)]
    assert len(found) <= 1, found
    return found[0] if found else ""


def sent_card(yard: Yard, *argv: str, branch: str = "main") -> str:
    """Publish, and read the card there."""
    said = yard.publish(*argv)
    assert said.code == 0, said.err
    return yard.published(branch)["README.md"].decode()


def typed(yard: Yard, block: str, folder: Path, token: str) -> subprocess.CompletedProcess[str]:
    """The block, typed into a shell by somebody with this token, who never logged in."""
    environment = {
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "HOME": str(folder),
        "HF_ENDPOINT": yard.hub.endpoint, "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1",
    }  # fmt: skip
    folder.mkdir(exist_ok=True)
    script = block.replace("hf_xxx", token)
    return subprocess.run(
        ["sh", "-ec", script], cwd=folder, env=environment, capture_output=True, text=True, timeout=100
    )


def _downloads(yard: Yard, card: str, folder: Path, token: str, branch: str = "main") -> list[str]:
    """What `hf download` of the card brings, each file as it was sent."""
    done = typed(yard, command_of(card, "hf download"), folder, token)
    assert done.returncode == 0, done.stderr
    found = sorted(folder.glob("*.gguf"))
    assert [path.read_bytes() for path in found] == [yard.published(branch)[path.name] for path in found]
    return [path.name for path in found]


def _split(yard: Yard) -> str:
    """Let Q8_0 be split in two; the option that asks for it."""

    def split(spec: StageSpec, space: Workspace) -> StageResult:
        result, files = writes(*PARTS)(spec, space), space.out_dir / "files"
        for number, name in enumerate(PARTS):
            (files / name).write_bytes(tiny("Q8_0", made_with=str(number)))
        sizes = {name: (files / name).stat().st_size for name in PARTS}
        entries = [FileEntry(path=n, size_bytes=sizes[n], sha256=file_sha256(files / n)) for n in PARTS]
        return result.model_copy(update={"outputs": tuple(entries)})

    engine = FakeEngine(behaviours={"split Q8_0": split})
    yard.monkeypatch.setattr(planning, "choose_engine", lambda *_: (engine, "asked for"))
    return f"--split-above={yard.file('Q8_0').stat().st_size - 1}"


# ---- the Hub -----------------------------------------------------------------------------------------


def test_the_commands_of_a_public_repo_need_no_token(yard: Yard, tmp_path: Path) -> None:
    card = sent_card(yard, "--public")
    assert "HF_TOKEN" not in card
    assert _downloads(yard, card, tmp_path / "got", "") == ["Lagoon-Q8_0.gguf"]


def test_every_command_that_reads_a_private_repo_takes_a_token(yard: Yard, tmp_path: Path) -> None:
    card = sent_card(yard)
    line = "export HF_TOKEN=hf_xxx  # of an account that may read this private repo\n"
    for program in ("hf download", "llama-server", "docker model run"):
        assert command_of(card, program).startswith(line), program
    assert f"Run it: `HF_TOKEN=hf_xxx llama-server -hf {REPO}:Q8_0`" in card
    assert f"HF_TOKEN=hf_xxx llama-server -hf {REPO}:Q8_0" in yard.published()["report.html"].decode()
    compose = yaml.safe_load(card_blocks(card, "yaml")[0])
    assert compose["services"]["model"]["environment"]["HF_TOKEN"].startswith("${HF_TOKEN:?")
    assert "id_ed25519.pub" in card[card.index("Ollama") : card.index("ollama run hf.co/")]
    assert not command_of(card, "lms get") and "lms import Lagoon-Q8_0.gguf" in card
    assert typed(yard, command_of(card, "hf download"), tmp_path / "stranger", yard.hub.stranger).returncode != 0
    assert _downloads(yard, card, tmp_path / "got", yard.hub.token) == ["Lagoon-Q8_0.gguf"]


def test_the_commands_of_a_gated_repo_say_whose_token(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard = lay_out(tmp_path, hub, monkeypatch, on_hub=True, gated="auto")
    card = sent_card(yard, "--public")
    assert f"hf_xxx  # of an account that has accepted the terms at https://huggingface.co/{REPO}\n" in card
    assert typed(yard, command_of(card, "hf download"), tmp_path / "stranger", hub.stranger).returncode != 0
    assert _downloads(yard, card, tmp_path / "got", hub.token) == ["Lagoon-Q8_0.gguf"]


@pytest.mark.parametrize("private", [True, False])
def test_a_repo_that_is_there_has_its_own_visibility(yard: Yard, private: bool) -> None:
    yard.hub.add_repo(REPO, private=private)
    assert ("HF_TOKEN" in sent_card(yard, *(["--public"] if private else []))) is private


def test_files_of_a_branch_are_had_from_the_branch(yard: Yard, tmp_path: Path) -> None:
    card = sent_card(yard, "--hub-branch=v2", branch="v2")
    assert "--revision v2 " in command_of(card, "hf download")
    assert command_of(card, "llama-server").startswith("llama-server -m Lagoon-Q8_0.gguf ")
    assert "Run it: `llama-server -m Lagoon-Q8_0.gguf`" in card
    assert not any(word in card for word in (f"-hf {REPO}", "hf.co/", "lms get"))
    assert _downloads(yard, card, tmp_path / "got", yard.hub.token, "v2") == ["Lagoon-Q8_0.gguf"]


def test_a_file_in_parts_is_had_whole_and_no_command_is_of_a_program_that_cannot(yard: Yard, tmp_path: Path) -> None:
    yard.hub.add_repo(REPO, {"Lagoon-Q8_0.gguf": b"GGUF of an earlier shape"})
    card = sent_card(yard, _split(yard), "--agree=old-files", "--quant=Q8_0")
    assert "ollama run hf.co" not in card
    assert _downloads(yard, card, tmp_path / "got", "") == list(PARTS)


def test_a_file_of_a_recipe_is_named_to_the_hub_by_its_whole_name() -> None:
    manifest = manifest_of()
    quants = {("careful-mix" if label == "Q8_0" else label): record for label, record in manifest.quants.items()}
    context = replace(CONTEXT, suite="", quants=("careful-mix",))
    card = render_card(manifest.model_copy(update={"quants": quants, "evaluations": {}}), context)
    name = quants["careful-mix"].file
    assert f"ollama run hf.co/me/Lagoon-GGUF:{name}" in card and "lms get" not in card
    assert f"docker model run hf.co/me/Lagoon-GGUF:{name}" in card


# ---- a registry --------------------------------------------------------------------------------------


@pytest.fixture
def registry() -> Iterator[OciServer]:
    with oci_server() as server:
        yield server


@pytest.mark.parametrize(
    ("tag", "quants"), [("", "Q8_0,Q4_K_M"), ("", "Q4_K_M"), (":mine", "Q8_0"), (":latest", "Q8_0")]
)
def test_the_registrys_command_names_a_tag_that_was_pushed(
    yard: Yard, registry: OciServer, tag: str, quants: str
) -> None:
    said = yard.publish("--repo=", f"--oci={registry.address}/team/lagoon{tag}", quants=quants)
    assert said.code == 0, said.err
    card = (yard.release / "README.md").read_text()
    pulled = command_of(card, "docker model run").split()[-1]
    name, _, named = pulled.rpartition(":")
    assert name == f"{registry.address}/team/lagoon" and named in registry.manifests
    layers = yaml.safe_load(registry.manifests[named])["layers"]
    assert registry.blobs[layers[0]["digest"]] == yard.file(quants.partition(",")[0]).read_bytes()
    assert f"llama-server -m {yard.file(quants.partition(',')[0]).name}" in card
