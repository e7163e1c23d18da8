"""What JSON=1 prints: each command has a published schema, and prints what it says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import ValidationError

from quantyard import cli
from quantyard.cli.commands import COMMANDS
from quantyard.cli.json_outputs.base import JSON_VERSION, ErrorFacts, ErrorOutput
from quantyard.cli.json_outputs.building import ImageOutput, ImageRow
from quantyard.cli.json_outputs.schemas import OUTPUTS, SCHEMAS, output_schema, output_schema_name
from quantyard.cli.output import json_text
from quantyard.paths import REPO_DIR
from tests.outputs import FOLDER, check_named, check_output, published
from tests.released import Yard

pytestmark = pytest.mark.commands


def _said(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, dict[str, Any]]:
    with pytest.raises(SystemExit) as ended:
        cli.main([*argv, "--json"])
    value = json.loads(capsys.readouterr().out)
    assert isinstance(value, dict)
    return int(ended.value.code or 0), value


def test_every_command_that_takes_json_has_a_schema_and_no_other_does() -> None:
    takes = {command.name for command in COMMANDS if command.settings is None or "JSON" in command.settings}
    assert set(OUTPUTS) == takes


def test_every_answer_is_published_and_nothing_else_is() -> None:
    assert {path.name for path in FOLDER.iterdir()} == {f"{name}.schema.json" for name in SCHEMAS}
    page = (REPO_DIR / "docs" / "reference" / "json-output.md").read_text()
    for command, model in OUTPUTS.items():
        assert f"| `{command}` | [{output_schema_name(model)}](json/" in page


@pytest.mark.parametrize("name", SCHEMAS)
def test_a_schema_names_its_version_and_lets_later_fields_pass(name: str) -> None:
    schema = published(name).schema
    assert isinstance(schema, dict) and schema == output_schema(name)
    assert schema["$id"] == f"urn:quantyard:output:{name}:{JSON_VERSION}"
    assert schema["properties"]["schema_version"]["const"] == JSON_VERSION
    assert "schema_version" in schema["required"]
    assert '"additionalProperties": false' not in json.dumps(schema)


@pytest.mark.parametrize("argv", [
    ("quants",), ("quants", "--find=q4"), ("models",), ("config",), ("doctor", "--engine=local"),
], ids=" ".join)  # fmt: skip
def test_what_looks_things_up_prints_what_its_schema_says(
    argv: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    _code, said = _said(capsys, *argv)
    check_output(argv[0], said)


@pytest.mark.parametrize("argv", [
    ("quants", "--find=nothing-like-it"), ("build", "--model="), ("build", "--model=org/name", "--quant=Q4_KM"),
    ("verify", "--file=missing.gguf"), ("gate", "--gate=missing.yaml"), ("build", "--no-such-option"), ("bulid",),
], ids=" ".join)  # fmt: skip
def test_a_command_that_fails_prints_an_error_of_the_code_that_it_ends_with(
    argv: tuple[str, ...], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, said = _said(capsys, *argv)
    check_named("error", said)
    assert said["error"]["exit_code"] == code != 0 and said["error"]["message"] and said["error"]["kind"]


@pytest.mark.parametrize(("command", "argv"), [
    ("gate", ()), ("report", ()), ("publish", ("--dry-run",)), ("publish", ("--yes",)),
    ("choose", ("--ram=8GiB", "--context-size=1024", "--parallel=1")),
], ids=lambda value: value if isinstance(value, str) else " ".join(value))  # fmt: skip
def test_what_reads_a_store_prints_what_its_schema_says(yard: Yard, command: str, argv: tuple[str, ...]) -> None:
    given = [f"--model={yard.model}", *(["--repo=me/Lagoon-GGUF"] if command in ("publish", "report") else [])]
    if command != "choose":
        given.append(yard.budgets("defaults: {max_mean_kld: 5}\n"))
    said = yard.run(command, *given, *argv, "--json")
    assert said.code == 0, said.err
    check_output(command, said.json)


def test_a_release_that_was_written_is_verified_in_the_words_of_its_schema(yard: Yard) -> None:
    yard.run("report", f"--model={yard.model}")
    said = yard.verify(f"--file={yard.release}", "--json").json
    check_output("verify", said)
    assert said["checks"]


def test_report_prints_the_paths_of_what_it_wrote(yard: Yard) -> None:
    said = yard.run("report", f"--model={yard.model}", "--json").json
    assert Path(said["page"]).is_file() and Path(said["card"]).is_file()
    assert Path(said["folder"]) == yard.release


def test_an_image_is_told_with_the_commands_that_start_it_and_show_its_key() -> None:
    row = ImageRow(tag="a/b:c", quant="Q8_0", pushed=False, run="docker run a/b:c", key="docker exec x cat")
    check_output("image", json.loads(json_text(ImageOutput(images=[row]))))


@pytest.mark.parametrize("change", [
    {"exit_code": "2"}, {"kind": None}, {"message": 1},
], ids=str)  # fmt: skip
def test_an_object_of_another_shape_is_refused(change: dict[str, Any]) -> None:
    facts = ErrorFacts(kind="bug", message="m", hint="", detail="", exit_code=70)
    said = json.loads(json_text(ErrorOutput(error=facts)))
    check_named("error", said)
    said["error"] |= change
    with pytest.raises(ValidationError):
        check_named("error", said)


def test_a_path_that_is_not_utf_8_is_written_as_an_escape() -> None:
    facts = ErrorFacts(kind="bug", message="a\udcffb", hint="", detail="", exit_code=70)
    assert json.loads(json_text(ErrorOutput(error=facts)))["error"]["message"] == "a\\udcffb"
