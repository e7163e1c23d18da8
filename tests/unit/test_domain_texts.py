"""The texts by domain that come with the suites: their form, and that what they hold is right and their own."""

from __future__ import annotations

import itertools
import json
import re
import shutil
import sqlite3
import subprocess
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from quantyard.paths import REPO_DIR

FOLDER = REPO_DIR / "eval" / "suites" / "domains"
FILES = sorted(FOLDER.glob("*.jsonl"))
CONVERSATIONS = ("chat", "tools")
# Each language and the script that most of its letters are of, as Unicode names it.
SCRIPTS = {
    "ar": "ARABIC", "de": "LATIN", "es": "LATIN", "fr": "LATIN", "hi": "DEVANAGARI", "ja": "HIRAGANA", "ko": "HANGUL",
    "ru": "CYRILLIC", "zh": "CJK",
}  # fmt: skip


def _rows(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines()]


def _texts(name: str) -> list[str]:
    """Whatever a reader reads: documents, and the contents of messages."""
    rows = _rows(name)
    documents = [row["text"] for row in rows if "text" in row]  # long ones may be made of other domains
    return documents + [message["content"] for row in rows for message in row.get("messages", [])]


ROWS = [pytest.param(row, id=row["id"]) for name in CONVERSATIONS for row in _rows(name)]
CODE = {row["id"]: row["text"] for row in _rows("code")}


def test_the_domains_are_those_that_the_readme_lists() -> None:
    listed = re.findall(r"^\| `(\w+)\.jsonl`", (FOLDER / "README.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(listed) == [path.stem for path in FILES]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_each_line_is_a_document_or_a_conversation(path: Path) -> None:
    rows = _rows(path.stem)
    wanted = [{"id", "messages"}, {"id", "messages", "tools"}] if path.stem in CONVERSATIONS else [{"id", "text"}]
    wanted += [{"id", "interleaved"}] if path.stem == "long" else []
    assert rows
    assert all(set(row) in wanted for row in rows)
    for text in _texts(path.stem):
        assert unicodedata.is_normalized("NFC", text), "one form, so that every tokenizer meets the same text"
        assert not [c for c in text if unicodedata.category(c) in {"Cc", "Co", "Cn"} and c not in "\n\t"]


def test_ids_are_unique_over_all_domains() -> None:
    ids = [row["id"] for path in FILES for row in _rows(path.stem)]
    assert max(Counter(ids).values()) == 1
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-zA-Z0-9]+)+", name) for name in ids)


def test_no_long_line_comes_twice_or_is_in_the_smoke_suite() -> None:
    smoke = (REPO_DIR / "eval/suites/smoke/prose.jsonl").read_text(encoding="utf-8").splitlines()
    documents = [json.loads(line)["text"] for line in smoke]
    documents += [row["text"] for path in FILES if path.stem not in CONVERSATIONS for row in _rows(path.stem)
                  if "text" in row]  # fmt: skip
    lines = [{line for line in text.splitlines() if len(line) > 60} for text in documents]
    assert [line for line, times in Counter(itertools.chain(*lines)).items() if times > 1] == []


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_hosts_and_addresses_are_of_example_org(path: Path) -> None:
    text = "\n".join(_texts(path.stem)) + json.dumps([row.get("tools") for row in _rows(path.stem)])
    hosts = re.findall(r"[\w.-]+\.(?:com|net|org|io|dev|eu|info)\b(?!\.)", text)
    hosts += re.findall(r"\b[\w.]+@([\w.-]+\w)", text)
    assert [host for host in hosts if not (host == "example.org" or host.endswith(".example.org"))] == []


@pytest.mark.parametrize(("language", "script"), SCRIPTS.items())
def test_a_language_is_written_in_its_script(language: str, script: str) -> None:
    text = "".join(_texts(f"language_{language}"))
    letters = [c for c in text if c.isalpha() or unicodedata.category(c)[0] == "M"]
    scripts = Counter(unicodedata.name(c).split()[0] for c in letters)
    assert scripts.most_common(1)[0][0] == script
    foreign = {"LATIN", "ARABIC", "HANGUL", "CYRILLIC", "DEVANAGARI", "HIRAGANA"} - {script}
    assert sum(scripts[other] for other in foreign) < 0.02 * len(letters)


def test_every_language_file_is_one_of_the_table() -> None:
    assert {path.stem.removeprefix("language_") for path in FILES if path.stem.startswith("language_")} == set(SCRIPTS)


@pytest.mark.parametrize("row", ROWS)
def test_the_roles_of_a_conversation_take_turns(row: dict[str, Any]) -> None:
    roles = [message["role"] for message in row["messages"]]
    turns = roles[1:] if roles[0] == "system" else roles
    # A turn of the assistant: calls and their answers, any number of times, then what it says.
    short = "".join(role[0] for role in turns)
    assert re.fullmatch(r"(u(at+)*a)+", short), roles
    assert all(message["content"] or message.get("tool_calls") for message in row["messages"])


@pytest.mark.parametrize("row", [row for row in ROWS if row.values[0].get("tools")])
def test_calls_are_valid_against_their_tools_and_each_is_answered(row: dict[str, Any]) -> None:
    tools = {tool["function"]["name"]: tool["function"]["parameters"] for tool in row["tools"]}
    for schema in tools.values():
        Draft202012Validator.check_schema(schema)
    open_calls: list[dict[str, Any]] = []
    for message in row["messages"]:
        if message["role"] == "tool":
            call = open_calls.pop(0)
            assert (message["tool_call_id"], message["name"]) == (call["id"], call["function"]["name"])
            continue
        assert open_calls == []
        open_calls = list(message.get("tool_calls", []))
        for call in open_calls:
            Draft202012Validator(tools[call["function"]["name"]]).validate(json.loads(call["function"]["arguments"]))


def test_calls_have_the_form_that_the_strictest_templates_show() -> None:
    """Mistral's wants ids of nine letters or digits, Llama 3.1's one call a message; many drop text beside a call."""
    calling = [m for row in _rows("tools") for m in row["messages"] if m.get("tool_calls")]
    assert all(len(message["tool_calls"]) == 1 and message["content"] == "" for message in calling)
    ids = [message["tool_calls"][0]["id"] for message in calling]
    assert all(re.fullmatch(r"[a-zA-Z0-9]{9}", name) for name in ids)
    assert len(set(ids)) == len(ids)


def test_each_parameter_has_at_most_one_type() -> None:
    """The macro of the Hermes templates never ends on the type "null", nor does Transformers with it."""
    schemas = [tool["function"]["parameters"] for row in _rows("tools") for tool in row.get("tools", [])]
    types = re.findall(r'"type": (\[[^]]*\]|"\w+")', json.dumps(schemas))
    assert set(types) == {'"object"', '"array"', '"string"', '"integer"', '"number"', '"boolean"'}


def test_answers_that_are_asked_for_as_json_are_json() -> None:
    structured = [row for row in _rows("tools") if "tools" not in row]
    assert structured
    for row in structured:
        assert all(json.loads(m["content"]) for m in row["messages"] if m["role"] == "assistant")


def _run(*argv: str, cwd: Path) -> None:
    if shutil.which(argv[0]) is None:
        pytest.skip(f"there is no {argv[0]}")
    done = subprocess.run(argv, cwd=cwd, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr


@pytest.mark.commands  # compilers
@pytest.mark.parametrize("name", CODE)
def test_programs_are_right(name: str, tmp_path: Path) -> None:
    """They check themselves where they run; TypeScript and the Dockerfile are read by nothing here."""
    kind, code = name.split("-")[1], CODE[name]
    file = tmp_path / "program"
    file.write_text(code, encoding="utf-8")
    match kind:
        case "python":
            _run(sys.executable, str(file), cwd=tmp_path)
        case "c":
            _run("gcc", "-std=c11", "-Wall", "-Wextra", "-Werror", "-x", "c", str(file), "-o", "out", cwd=tmp_path)
            _run(str(tmp_path / "out"), cwd=tmp_path)
        case "rust":
            _run("rustc", "--edition", "2021", str(file), "-o", "out", cwd=tmp_path)
            _run(str(tmp_path / "out"), cwd=tmp_path)
        case "javascript":
            _run("node", str(file), cwd=tmp_path)
        case "go":
            _run("gofmt", "-e", str(file), cwd=tmp_path)
        case "shell":
            _run("bash", "-n", str(file), cwd=tmp_path)
        case "sql":
            sqlite3.connect(":memory:").executescript(code)
        case "yaml":
            assert set(yaml.safe_load(code)["services"]) == {"web", "worker", "db"}
        case _:
            assert kind in {"typescript", "dockerfile"}


def test_a_long_documents_references_have_what_they_refer_to() -> None:
    """Positions far into a document are worth measuring when what is there depends on what came long before."""
    for text in _texts("long"):
        numbered = set(re.findall(r"^(?:R )?(\d+\.\d+|[A-Z]\.\d+)\b", text, re.MULTILINE))
        cited = re.findall(r"(?:\bitem|\bitems|\bR|\bsee) (\d+\.\d+|[A-Z]\.\d+)", text)
        assert len(cited) > 60
        assert set(cited) <= numbered
