"""`init` writes quantyard.toml: valid, commented, with what was given and what was found, and never over another."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from quantyard import cli
from quantyard.cli.commands import KEPT
from quantyard.cli.init import init_command
from quantyard.cli.parser import parse_command_line
from quantyard.cli.request import read_command_request
from quantyard.cli.settings import BY_NAME, SETTINGS
from quantyard.cli.settings_file import read_settings_file
from quantyard.cli.settings_text import settings_file_text
from quantyard.paths import REPO_DIR
from quantyard.sources.presets import find_preset
from quantyard.workflows.init import FoundSetting
from tests.gguf_files import TensorSpec, gguf
from tests.released import SOURCE_REPO, SUITE, Yard, lay_out

pytestmark = pytest.mark.commands
NO_HUB = "--hf-endpoint=http://127.0.0.1:9"
# A value of each kind as a user types it.
_TYPED = {
    "text": "auto", "list": "Q4_K_M,Q8_0", "flag": "1", "integer": "3", "decimal": "0.05", "size": "16GiB",
    "path": "a b/ü.yaml", "paths": 'one.txt,"two".txt',
}  # fmt: skip


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, with no setting and no token of whoever runs the test."""
    for name in [s.name for s in SETTINGS] + ["QUANTYARD_HOME", "HF_TOKEN_PATH", "PIP_CERT", "SSL_CERT_FILE"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nobody"))
    monkeypatch.setattr("quantyard.hub.client.time.sleep", lambda seconds: None)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def init(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any]]:
    with pytest.raises(SystemExit) as ended:
        cli.main(["init", *argv, "--json"])
    return int(ended.value.code or 0), json.loads(capsys.readouterr().out)


def written(folder: Path) -> dict[str, Any]:
    return tomllib.loads((folder / "quantyard.toml").read_text())


def test_without_a_model_there_is_a_file_to_fill_in(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, said = init(capsys)
    assert code == 0 and said["file"] == str(here / "quantyard.toml")
    assert written(here) == {"quant": "Q4_K_M", "suite": "quick"}
    text = (here / "quantyard.toml").read_text()
    for key in ("model", "repo", "gate", "imatrix", "engine"):
        assert f"\n# {key} = " in text


def test_every_line_that_is_a_comment_is_valid_when_it_is_none(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    init(capsys)
    text = (here / "quantyard.toml").read_text()
    (here / "quantyard.toml").write_text(re.sub(r"^# ([a-z-]+ = )", r"\1", text, flags=re.MULTILINE))
    values = read_settings_file(here).values
    assert {"MODEL", "QUANT", "SUITE", "REPO", "GATE", "IMATRIX", "LICENSE", "ENGINE", "ARTIFACTS"} == set(values)
    (here / "gate.yaml").write_text("defaults: {}\n")
    read_command_request(parse_command_line(["release"]), {}, read_settings_file(here))


@pytest.mark.parametrize("name", KEPT)
def test_what_is_written_reads_back_as_it_was_typed(here: Path, name: str) -> None:
    typed = _TYPED[BY_NAME[name].kind]
    (here / "quantyard.toml").write_text(settings_file_text([FoundSetting(name, typed, "given")], "a\nmodel", ()))
    assert read_settings_file(here).values == {name: typed}


def test_what_was_given_is_written_and_wins_over_what_was_found(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("THREADS", "4")
    code, said = init(capsys, "--model=SmolLM2-135M-Instruct", "--quant=Q6_K", "--imatrix=auto", "--public", NO_HUB)
    assert code == 0
    assert written(here) == {
        "model": "SmolLM2-135M-Instruct", "quant": "Q6_K", "imatrix": "auto", "suite": "quick", "threads": 4,
        "public": True,
    }  # fmt: skip
    whys = {row["name"]: row["why"] for row in said["settings"]}
    assert (whys["QUANT"], whys["THREADS"]) == ("given as an option", "given as a variable")


def test_where_the_hub_does_not_answer_the_file_says_what_was_not_looked_up(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_token")
    code, said = init(capsys, "--model=org/some-model", NO_HUB)
    assert code == 0 and written(here)["model"] == "org/some-model" and "repo" not in written(here)
    model, account = said["not_looked_up"]
    assert "whether org/some-model exists" in model and "your account" in account
    assert (here / "quantyard.toml").read_text().count("# Not looked up: ") == 2
    assert "hf_token" not in (here / "quantyard.toml").read_text()


def test_the_quants_of_the_list_of_models_need_no_network(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    init(capsys, "--model=smollm2-135m-instruct", NO_HUB)
    assert written(here)["quant"] == list(find_preset("SmolLM2-135M-Instruct").quants)


def test_a_model_that_is_none_is_refused_and_nothing_is_written(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for model, said in (("no-such-name", "is not a model folder"), ("./gone.gguf", "There is no file")):
        code, answer = init(capsys, f"--model={model}", NO_HUB)
        assert code == 2 and said in answer["error"]["message"] and not (here / "quantyard.toml").exists()


def test_a_gguf_in_the_folder_is_the_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tensors = [TensorSpec("blk.0.weight", (256, 4), "Q8_0")]
    (here / "mine.gguf").write_bytes(gguf({"general.architecture": "llama", "general.file_type": 7}, tensors))
    (here / "mmproj-mine.gguf").write_bytes(b"")
    (here / "gate.yaml").write_text("defaults: {}\n")
    code, _said = init(capsys, NO_HUB)
    assert code == 0
    assert written(here) == {"model": "./mine.gguf", "quant": "COPY", "suite": "quick", "gate": "gate.yaml"}


def test_a_model_of_the_hub_gets_a_repo_of_the_tokens_account(
    tmp_path: Path, hub: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    yard = lay_out(tmp_path, hub, monkeypatch, on_hub=True)
    folder = _empty(yard, monkeypatch)
    assert yard.run("init", f"--model={SOURCE_REPO}").code == 0
    assert written(folder)["repo"] == "me/Lagoon-GGUF"
    said = yard.run("init", "--model=org/gone", "--yes")
    assert said.code == 4 and written(folder)["model"] == SOURCE_REPO, "a name that the Hub does not know"


def test_what_is_built_and_measured_already_is_taken_over(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = _empty(yard, monkeypatch)
    said = yard.run("init", f"--model={yard.model}")
    assert said.code == 0, said.err
    assert written(folder)["quant"] == list(yard.manifest().quants) and written(folder)["suite"] == SUITE
    assert yard.run("gate", yard.budgets("defaults: {max_mean_kld: 5}\n")).code == 0, "the file names the model"


def _empty(yard: Yard, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = yard.root / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


# ---- an existing file --------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "text", "says"), [
    ("quantyard.toml", 'quant = "Q6_K"\n', "exists already"),
    ("pyproject.toml", '[tool.quantyard]\nquant = "Q6_K"\n', "no longer counts"),
], ids=["its own", "a project's"])  # fmt: skip
def test_an_existing_file_is_replaced_only_after_a_yes_and_keeps_its_settings(
    here: Path, capsys: pytest.CaptureFixture[str], name: str, text: str, says: str
) -> None:
    (here / name).write_text(text)
    code, said = init(capsys)
    assert code == 2 and says in said["error"]["message"] and "YES=1" in said["error"]["hint"]
    assert (here / name).read_text() == text and [path.name for path in here.glob("*.toml")] == [name]
    code, said = init(capsys, "--yes", "--suite=smoke")
    assert code == 0 and written(here) == {"quant": "Q6_K", "suite": "smoke"}
    assert next(row for row in said["settings"] if row["name"] == "QUANT")["why"].startswith("as in ")


def test_at_a_terminal_the_question_is_asked(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "quantyard.toml").write_text('quant = "Q6_K"\n')
    for answer, is_written in (("no\n", False), ("\n", False), ("yes\n", True)):
        monkeypatch.setattr("sys.stdin", _Terminal(answer))
        monkeypatch.setattr("quantyard.cli.init.is_terminal_here", lambda: True)
        code, _said = init(capsys, "--suite=smoke")
        assert (code == 0) is is_written and ("suite" in written(here)) is is_written


class _Terminal:
    def __init__(self, answer: str) -> None:
        self.answer = answer

    def isatty(self) -> bool:
        return True

    def readline(self) -> str:
        return self.answer


def test_init_is_a_command_of_make_and_its_file_is_nobody_elses() -> None:
    assert init_command.__doc__
    assert "\ninit: .ready ##" in (REPO_DIR / "Makefile").read_text()
    assert "/quantyard.toml" in (REPO_DIR / ".gitignore").read_text().splitlines()


# ---- what the file means to other commands -----------------------------------------------------------


def test_a_file_that_is_typed_is_verified_although_the_settings_name_a_repo(here: Path) -> None:
    (here / "quantyard.toml").write_text('repo = "me/name-GGUF"\n')
    for argv, repo in ((["--file=a.gguf"], ""), ([], "me/name-GGUF"), (["--repo=me/x", "--file=a.gguf"], "me/x")):
        request = read_command_request(parse_command_line(["verify", *argv]), {}, read_settings_file(here))
        assert request.check is not None and request.check.repo_id == repo
