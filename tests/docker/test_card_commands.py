"""The commands of a card that need a container or a real registry, run as they stand against where it was sent."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import requests
import yaml

from tests.docker.oci_model import needs
from tests.docker.registry import registry, registry_program
from tests.hub_server import HubServer
from tests.released import REPO, lay_out
from tests.unit.test_card_commands import card_blocks, command_of, sent_card

TOKEN = "hf_abcdefghijklmnopqrstuvwxyzABCDEFGH"


@pytest.mark.parametrize("private", [True, False])
def test_llama_server_downloads_the_file_that_was_sent_with_the_cards_command(
    builder_image: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, private: bool
) -> None:
    """The tiny file is no model that it could serve; that it was asked for and sent is what counts."""
    with HubServer(token=TOKEN) as hub:
        yard = lay_out(tmp_path, hub, monkeypatch)
        card = sent_card(yard, *([] if private else ["--public"]))
        hub.requests.clear()
        script = command_of(card, "llama-server").replace("hf_xxx", TOKEN).replace("8080", "0")
        done = subprocess.run(
            ["docker", "run", "--rm", "--network=host", "-e", f"HF_ENDPOINT={hub.endpoint}/", "--entrypoint=sh",
             "-e", "LD_LIBRARY_PATH=/app", builder_image, "-ec", script.replace("llama-server", "/app/llama-server")],
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        (asked,) = [r for r in hub.requests if r.method == "GET" and not r.on_cdn and r.path.endswith("Q8_0.gguf")]
        assert asked.authorized is private, done.stderr
        assert sum(r.body_bytes for r in hub.bodies("Q8_0.gguf")) == yard.file("Q8_0").stat().st_size


def test_compose_refuses_a_private_repo_without_a_token_and_takes_one(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard = lay_out(tmp_path, hub, monkeypatch)
    path = tmp_path / "compose.yaml"
    path.write_text(card_blocks(sent_card(yard), "yaml")[0])
    argv = ["docker", "compose", "-f", path, "config"]
    monkeypatch.delenv("HF_TOKEN")
    without = subprocess.run(argv, capture_output=True, text=True)
    assert without.returncode != 0 and "a token that may read the repo" in without.stderr
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    run = subprocess.run(argv, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    model = yaml.safe_load(run.stdout)["services"]["model"]
    assert model["environment"]["HF_TOKEN"] == TOKEN and f"{REPO}:Q8_0" in model["command"]


@pytest.mark.parametrize("tag", ["", ":mine"])
def test_a_real_registry_has_what_the_cards_command_names(
    tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch, tag: str
) -> None:
    needs(registry_program(), "docker-registry")
    yard = lay_out(tmp_path / "yard", hub, monkeypatch)
    (tmp_path / "registry").mkdir()
    with registry(tmp_path / "registry") as store:
        quants = "Q8_0" if tag else "Q8_0,Q4_K_M"
        said = yard.publish("--repo=", f"--oci={store.address}/team/lagoon{tag}", quants=quants)
        assert said.code == 0, said.err
        pulled = command_of((yard.release / "README.md").read_text(), "docker model run").split()[-1]
        name, _, named = pulled.removeprefix(f"{store.address}/").rpartition(":")
        layer = store.manifest(name, named)["layers"][0]
        assert store.blob(name, layer["digest"]) == yard.file("Q8_0").read_bytes()
        missing = requests.get(f"http://{store.address}/v2/{name}/manifests/latest", timeout=20)
        assert missing.status_code == 404, "what the card names is not what a name without a tag would be"
