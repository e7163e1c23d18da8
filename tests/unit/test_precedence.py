"""An option wins over a variable, a variable over the file, the file over the default; `config` says which it was."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from quantyard import cli
from quantyard.cli.commands import COMMANDS
from quantyard.cli.parser import parse_command_line
from quantyard.cli.precedence import compose_environment_of_settings, resolve_settings
from quantyard.cli.request import read_command_request
from quantyard.cli.settings import SETTINGS
from quantyard.cli.settings_file import SettingsFile
from quantyard.errors import BadRequest
from quantyard.paths import REPO_DIR, local_venv_path

FILE = SettingsFile("quantyard.toml", {"THREADS": "1", "QUANT": "Q8_0"})


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to be in, with no setting in the environment."""
    for name in [s.name for s in SETTINGS] + ["QUANTYARD_HOME", "HF_TOKEN_PATH"]:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "nobody"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


@pytest.mark.parametrize(
    ("argv", "environment", "text", "origin"),
    [
        (["--threads", "3"], {"THREADS": "2"}, "3", "option"),
        ([], {"THREADS": "2"}, "2", "variable"),
        ([], {"THREADS": ""}, "1", "file"),  # `make build THREADS=` sets nothing
        ([], {}, "1", "file"),
    ],
)
def test_the_nearest_word_wins(argv: list[str], environment: dict[str, str], text: str, origin: str) -> None:
    given = resolve_settings(parse_command_line(["build", *argv]), environment, FILE)["THREADS"]
    assert (given.text, given.origin) == (text, origin)
    assert resolve_settings(parse_command_line(["build"]), {})["THREADS"].origin == "default"


def test_the_file_reaches_the_request() -> None:
    request = read_command_request(parse_command_line(["build"]), {}, FILE)
    assert ([quant.name for quant in request.quants], request.threads) == (["Q8_0"], 1)


def test_a_value_of_the_file_that_cannot_be_names_the_file() -> None:
    with pytest.raises(BadRequest, match=r"^quantyard.toml: THREADS=5000 is not a whole number from 0 to 1024"):
        read_command_request(parse_command_line(["build"]), {}, SettingsFile("quantyard.toml", {"THREADS": "5000"}))
    with pytest.raises(BadRequest, match=r"^THREADS=5000"):
        read_command_request(parse_command_line(["build"]), {"THREADS": "5000"}, FILE)


def test_results_go_to_quantyard_home_where_it_is_set(tmp_path: Path) -> None:
    home = {"QUANTYARD_HOME": str(tmp_path)}
    assert read_command_request(parse_command_line(["build"]), home).artifacts == tmp_path / "artifacts"
    assert (
        read_command_request(parse_command_line(["build"]), home | {"ARTIFACTS": str(tmp_path / "b")}).artifacts
        == tmp_path / "b"
    )


def test_the_tools_of_the_local_engine_are_in_the_checkout_or_in_the_users_data(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert local_venv_path({"QUANTYARD_HOME": "/q"}) == REPO_DIR / ".venv-local"
    monkeypatch.setattr("quantyard.paths.IN_CHECKOUT", False)
    assert local_venv_path({"QUANTYARD_HOME": "/q", "XDG_DATA_HOME": "/d"}) == Path("/q/venv-local")
    assert local_venv_path({"XDG_DATA_HOME": "/d", "HOME": "/h"}) == Path("/d/quantyard/venv-local")
    assert local_venv_path({"HOME": "/h"}) == Path("/h/.local/share/quantyard/venv-local")


def test_compose_gets_what_options_and_the_file_say_of_serving(here: Path) -> None:
    given = resolve_settings(parse_command_line(["serve", "--port", "9000"]), {"THREADS": "2", "PATH": "/bin"}, FILE)
    told = compose_environment_of_settings(here / "artifacts", given, {"THREADS": "2", "PATH": "/bin"})
    assert told == {
        "PATH": "/bin", "THREADS": "2", "PORT": "9000",
        "MODEL_FILE": str(here / "artifacts/served"), "KEYS_DIR": str(here / "artifacts/keys"),
    }
    unset = resolve_settings(parse_command_line(["serve"]), {})
    assert compose_environment_of_settings(REPO_DIR / "artifacts", unset, {}) == {}
    given = resolve_settings(parse_command_line(["serve", "--model-file", "a.gguf"]), {})
    assert compose_environment_of_settings(REPO_DIR / "artifacts", given, {}) == {"MODEL_FILE": str(here / "a.gguf")}


# ---- config ------------------------------------------------------------------------------------------


def _config(capsys: pytest.CaptureFixture[str], *argv: str) -> str:
    with pytest.raises(SystemExit) as ended:
        cli.main(["config", *argv])
    assert ended.value.code == 0
    return capsys.readouterr().out


def test_config_shows_each_value_with_where_it_comes_from(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "quantyard.toml").write_text('quant = "Q8_0"\n')
    monkeypatch.setenv("THREADS", "2")
    told = json.loads(_config(capsys, "--json", "--port", "9000"))
    rows = {row["name"]: row for row in told["settings"]}
    assert told["file"] == "quantyard.toml" and set(rows) == {setting.name for setting in SETTINGS}
    assert rows["QUANT"] == {"name": "QUANT", "option": "--quant", "value": "Q8_0", "source": "quantyard.toml"}
    assert (rows["THREADS"]["value"], rows["THREADS"]["source"]) == ("2", "variable THREADS")
    assert (rows["PORT"]["value"], rows["PORT"]["source"]) == ("9000", "option --port")
    assert (rows["ENGINE"]["value"], rows["ENGINE"]["source"]) == ("auto", "default")
    lines = _config(capsys).splitlines()
    assert next(line for line in lines if line.startswith("QUANT ")).split() == ["QUANT", "Q8_0", "quantyard.toml"]


def test_config_never_shows_a_secret(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("HTTPS_PROXY", "http://me:hf_secret@proxy.example:3128")
    for argv in ((), ("--json",)):
        out = _config(capsys, *argv)
        assert "hf_secret" not in out and "variable HF_TOKEN" in out and out.count("(set)") == 2


def test_config_knows_the_token_that_hf_stored(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "token").write_text("hf_secret")
    monkeypatch.setenv("HF_TOKEN_PATH", str(here / "token"))
    row = next(row for row in json.loads(_config(capsys, "--json"))["settings"] if row["name"] == "HF_TOKEN")
    assert (row["value"], row["source"]) == ("(set)", "hf auth login")


def test_a_broken_file_ends_every_command_that_reads_settings(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (here / "quantyard.toml").write_text("qaunt = 1")
    for argv in (["config"], ["quants"], ["build", "--model", "x"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(argv)
        assert ended.value.code == 2
        assert "quantyard.toml: the key 'qaunt' is unknown." in capsys.readouterr().err


def test_an_error_is_json_where_the_file_asks_for_json(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "quantyard.toml").write_text("json = true")
    with pytest.raises(SystemExit):
        cli.main(["build", "--engine", "local"])
    assert json.loads(capsys.readouterr().out)["error"]["exit_code"] == 2


def test_every_setting_is_an_option_of_some_command() -> None:
    used = {name for command in COMMANDS for name in command.settings or ()}
    assert {s.name for s in SETTINGS} == used | {"HF_TOKEN"} - used
