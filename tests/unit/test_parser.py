"""What `--help` shows, and what is answered to a command or an option that is not there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from quantyard import __version__, cli
from quantyard.cli.command_names import as_typed_command
from quantyard.cli.commands import COMMAND_GROUPS, COMMANDS, Command, find_command
from quantyard.cli.parser import help_overview, parse_command_line
from quantyard.cli.settings import BY_NAME, GROUPS, SETTINGS
from quantyard.errors import BadRequest
from quantyard.paths import REPO_DIR


def _run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as ended:
        cli.main(argv)
    captured = capsys.readouterr()
    return int(ended.value.code or 0), captured.out, captured.err


@pytest.mark.parametrize("argv", [(), ("--help",), ("-h",)])
def test_without_a_command_all_are_shown_in_groups(
    argv: tuple[str, ...], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = _run(capsys, *argv)
    assert (code, err) == (0, "")
    assert all(f"\n{title}:\n" in out for title in COMMAND_GROUPS.values())
    assert all(f"\n  {command.name} " in out for command in COMMANDS)
    assert max(len(line) for line in out.splitlines()) <= 80


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_the_version_is_one_line(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert _run(capsys, option) == (0, f"quantyard {__version__}\n", "")


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_help_of_a_command_shows_typical_options_first_and_each_once(
    command: object, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _err = _run(capsys, command.name, "--help")
    assert code == 0 and out.startswith(f"usage: quantyard {command.name} ")
    names = command.settings if command.settings is not None else [s.name for s in SETTINGS]
    for name in names:
        if option := BY_NAME[name].option:
            assert sum(line.split()[:1] == [option] for line in out.splitlines()) == 1, option
    headings = [line[:-1] for line in out.splitlines() if line.endswith(":") and not line.startswith(" ")]
    assert next(h for h in headings if h != "positional arguments") == "typical options"
    has_words = command.name in ("completion", "node")
    assert has_words or headings[1:] == [group for group in GROUPS if group in headings[1:]]
    first = out.partition("typical options:")[2]
    assert all(f"{BY_NAME[name].option} " in first for name in command.typical)
    assert max(len(line) for line in out.splitlines()) <= 80


def test_the_typical_options_of_a_command_are_options_of_it() -> None:
    for command in COMMANDS:
        assert command.group in COMMAND_GROUPS
        assert command.settings is None or set(command.typical) <= set(command.settings), command.name


@pytest.mark.parametrize(
    ("argv", "says", "hint"),
    [
        (("biuld",), "'biuld' is not a command.", "Did you mean build?"),
        (("zebra",), "'zebra' is not a command.", "List them: quantyard --help"),
        (("--verison",), "'--verison' is not an option of quantyard itself.", "Did you mean --version?"),
        (("build", "--modle", "x"), "'--modle' is not an option of build.", "Did you mean --model?"),
        (("build", "--mod=x"), "'--mod' is not an option of build.", "quantyard build --help"),
        (("quants", "extra"), "'extra' is not an option of quants.", "quantyard quants --help"),
    ],
)
def test_what_is_not_there_is_answered_with_what_was_meant(
    argv: tuple[str, ...], says: str, hint: str, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = _run(capsys, *argv)
    assert (code, out) == (2, "")
    assert says in err and hint in err


def test_an_option_may_follow_its_value_after_an_equals_sign_or_a_blank() -> None:
    assert (
        parse_command_line(["build", "--quant=Q8_0"]).QUANT
        == parse_command_line(["build", "--quant", "Q8_0"]).QUANT
        == "Q8_0"
    )
    with pytest.raises(BadRequest):
        parse_command_line(["build", "--quan", "Q8_0"])  # an abbreviation would change its meaning with the next option


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_every_command_leads_to_a_function(command: object) -> None:
    assert callable(find_command(command.function))


# ---- how commands are called -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "typed"),
    [
        ("See what is missing: make doctor", "See what is missing: quantyard doctor"),
        (
            "Name one: make build MODEL=org/name QUANT=Q4_K_M, or try: make demo",
            "Name one: quantyard build --model org/name --quant Q4_K_M, or try: quantyard demo",
        ),
        ("make serve PORT=8081.", "quantyard serve --port 8081."),
        ("`make images ENGINE=local` once", "`quantyard images --engine local` once"),
        ("make eval MODEL=… QUANT=Q4_0,Q8_0 SUITE=quick", "quantyard eval --model … --quant Q4_0,Q8_0 --suite quick"),
        ("make a model; make it again; remake build", "make a model; make it again; remake build"),
        ("make base-images", f"{REPO_DIR / 'scripts' / 'base-images.sh'}"),
        ("make verify FILE=path REBUILD=1", "quantyard verify --file path --rebuild"),
        ("Serve it:  MODEL_FILE=/a/b.gguf docker compose up", "Serve it:  quantyard serve --model-file /a/b.gguf"),
        ("LORA_FILE=a.gguf docker compose up", "LORA_FILE=a.gguf quantyard serve"),
    ],
)
def test_outside_a_checkout_commands_are_named_as_the_program_has_them(text: str, typed: str) -> None:
    assert as_typed_command(text, in_checkout=True) == text
    assert as_typed_command(text, in_checkout=False) == typed


def test_hints_are_named_so_too(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "as_typed_command", lambda text: as_typed_command(text, in_checkout=False))
    code, _out, err = _run(capsys, "build", "--engine", "local", "--model", "")
    assert code == 2 and "quantyard build --model org/name" in err and "make " not in err


# ---- completion --------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_is_told_how_to_complete(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _err = _run(capsys, "completion", shell)
    assert code == 0 and "quantyard" in out and "_ARGCOMPLETE" in out


def _completed(line: str, folder: Path) -> set[str]:
    environment = {
        "PATH": os.environ["PATH"], "PYTHONPATH": str(REPO_DIR), "_ARGCOMPLETE": "1", "_ARGCOMPLETE_IFS": "\n",
        "COMP_LINE": line, "COMP_POINT": str(len(line)), "_ARGCOMPLETE_STDOUT_FILENAME": str(folder / "out"),
        "_ARGCOMPLETE_SUPPRESS_SPACE": "1", "_ARGCOMPLETE_SHELL": "bash",
    }  # fmt: skip
    code = "import sys; sys.argv[0] = 'quantyard'; from quantyard.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", code], env=environment, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return set((folder / "out").read_text().split("\n"))


@pytest.mark.commands
@pytest.mark.parametrize(
    ("line", "some", "none"),
    [
        ("quantyard bu", {"build"}, {"eval"}),
        ("quantyard build --al", {"--allow-pickle", "--allow-mismatch"}, {"--model"}),
        ("quantyard build --quant q4_k", {"Q4_K_M", "Q4_K_S"}, {"Q8_0"}),
        ("quantyard build --quant Q4_K_M,Q8", {"Q4_K_M,Q8_0"}, {"Q8_0"}),
        ("quantyard build --engine ", {"auto", "docker", "local"}, {"build"}),
    ],
)
def test_commands_options_and_values_are_completed(line: str, some: set[str], none: set[str], tmp_path: Path) -> None:
    found = _completed(line, tmp_path)
    assert some <= found and not none & found


# ---- quick to start ----------------------------------------------------------------------------------

HEAVY = {
    "pydantic", "rich", "huggingface_hub", "docker", "jinja2", "yaml", "httpx2", "requests", "lm_eval", "numpy",
    "torch", "transformers", "llama_cpp", "matplotlib", "argcomplete", "filelock", "asyncio", "email", "ssl",
    "subprocess", "http",
}  # fmt: skip


def _loaded(code: str) -> set[str]:
    code = f"import sys\ntry:\n    {code}\nexcept SystemExit: pass\nprint(*sys.modules, file=sys.stderr)"
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPO_DIR), "PYTHONSAFEPATH": "1"}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    return set(done.stderr.split())


@pytest.mark.parametrize("argv", [["--help"], ["--version"], [], ["build", "--help"]], ids=" ".join)
def test_help_loads_nothing_heavy(argv: list[str]) -> None:
    before = _loaded("pass")
    assert (_loaded(f"from quantyard.cli import main; main({argv})") - before) & HEAVY == set()


@pytest.mark.commands
def test_a_build_loads_neither_the_hub_nor_what_publishes() -> None:
    loaded = _loaded("import quantyard.cli.build, quantyard.workflows.build")
    assert loaded & {"huggingface_hub", "jinja2", "yaml", "httpx2", "numpy", "argcomplete"} == set()
    rooms = {name for name in loaded if name.startswith("quantyard.")}
    unneeded = ("publish", "card", "report_page", "gate", "choose", "tune")
    assert {name for name in rooms if name.split(".")[1] in unneeded} == set()


def test_the_overview_is_what_the_help_is() -> None:
    assert help_overview().startswith("usage: quantyard COMMAND")


def test_what_stands_for_a_value_does_not_repeat_the_option() -> None:
    for setting in SETTINGS:
        words = re.findall(r"[a-z]+", setting.placeholder.lower())
        assert not set(words) & set(setting.key.split("-")), setting.name


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_the_help_of_a_command_fits_the_terminal_and_ends_with_what_is_seldom_set(
    command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    for argv in (["help", command.name], [command.name, "--help"]):
        with pytest.raises(SystemExit) as ended:
            parse_command_line(argv)
        text = capsys.readouterr().out
        assert not ended.value.code and text.startswith(f"usage: quantyard {command.name}")
        assert max(map(len, text.splitlines())) <= 80
        heads = [line.rstrip(":") for line in text.splitlines() if line.endswith(":") and not line.startswith(" ")]
        assert [head for head in heads if head in GROUPS] == [head for head in GROUPS if head in heads]
        assert heads[-1] in ("base images", "network", "typical options", "looking up", "positional arguments")


@pytest.mark.parametrize("argv", [["help"], ["help", "help"], ["help", "--help"], ["--help"], ["-h"]])
def test_help_without_a_command_is_the_overview(argv: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        parse_command_line(argv)
    assert not ended.value.code and "quantyard help COMMAND" in capsys.readouterr().out
