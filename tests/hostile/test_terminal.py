"""Nothing prints another's control characters: every message that carries foreign text, on a terminal and in a log."""

from __future__ import annotations

import ast
import io
import json
import re
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console, Group
from rich.panel import Panel
from rich.segment import Segment
from rich.style import Style
from rich.table import Table
from rich.text import Text

from quantyard.cli import output, parser
from quantyard.cli.json_outputs.base import ErrorFacts, ErrorOutput
from quantyard.execution.live_progress import LiveReporter
from quantyard.execution.progress import LineReporter
from quantyard.paths import REPO_DIR
from quantyard.plan.steps import StageSpec
from quantyard.protocol.base import ExitCode, Progress, StageError, StageResult
from quantyard.store.artifact import Workspace
from server.client.chat import Terminal, _say_last_in_chat
from tests.gguf_files import TensorSpec, gguf
from tests.hostile.sampling import sampled
from tests.hub_server import HubServer
from tests.released import Said, Yard, lay_out
from tests.unit.fake_engine import Behaviour, writes
from tests.unit.release_engine import engine_of

SIGNS = "\x1b]8;;https://evil.example\x07\x1b[2J\x1b[8m\x9b8m\u202e\u2066\u200f\u200b\u2028\u2029\U000e0041\ufeff\x7f\x85"
LINES = "\r\nerror: nothing of this is ours\n\t"
MARKS = "[bold]b[/bold] [link=https://evil.example]l[/link] [/nothing] :smile: \\"
WORDS = f"a{SIGNS}b{LINES}c{MARKS}d"
NO_LINES = f"a{SIGNS}b{MARKS}d"
# What rich writes on a terminal: colours, and where the cursor goes while bars move. `8`, conceal, is not among them.
_OF_RICH = re.compile(r"\x1b\[(?:[0-3]|3[0-7]|9[0-7])(?:;[0-7;]*)?m|\x1b\[\?25[lh]|\x1b\[2K|\x1b\[1A|\r")
_HIDDEN = re.compile("[\u034f\u115f\u1160\u3164\ufe00-\ufe0f\U000e0000-\U000e0fff]")


def acting(said: str) -> set[str]:
    """The characters that a terminal would obey, or hide."""
    left = _OF_RICH.sub("", said)
    found = {c for c in left if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") and c not in "\n\t"}
    return found | set(_HIDDEN.findall(left))


def check(said: str, *, lines: bool = True) -> None:
    """Nothing acts, no mark of rich was obeyed, and no line of ours is forged."""
    assert not acting(said), acting(said)
    assert "8;;" not in said.replace("]8;;", ""), "a link"
    if lines:
        assert not re.search("^error: nothing of this is ours", _OF_RICH.sub("", said), re.MULTILINE)


@pytest.fixture(params=["log", "terminal"])
def shown(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Whether a terminal is attached."""
    if request.param == "terminal":
        monkeypatch.setenv("FORCE_COLOR", "1")
    return str(request.param)


@pytest.fixture
def yard(tmp_path: Path, hub: HubServer, monkeypatch: pytest.MonkeyPatch, shown: str) -> Yard:
    monkeypatch.chdir(tmp_path)  # ARTIFACTS may be any name
    return lay_out(tmp_path, hub, monkeypatch)


# ---- what commands say of others' words --------------------------------------------------------------


def _hostile_hub(yard: Yard, said: dict[str, Any]) -> Said:
    """A repo whose files and card are WORDS, and answers that refuse in them."""
    files = {"config.json": b"{}", f"{NO_LINES}.safetensors": bytes(1000), "README.md": yaml.safe_dump(said).encode()}
    yard.hub.add_repo("org/hostile", files, license=WORDS)
    return yard.run("plan", "--model=org/hostile")


def _refusing(status: int) -> Callable[[Yard], Said]:
    def run(yard: Yard) -> Said:
        yard.hub.add_repo("org/name", {"config.json": b"{}"})
        for path in ("/api/models/org/name", "/api/models/org/name/revision/main"):
            yard.hub.fail(path, times=None, status=status, said=WORDS)
        return yard.run("plan", "--model=org/name")

    return run


def _written(content: bytes, name: str, *argv: str) -> Callable[[Yard], Said]:
    """A command on one file of the user's, which others made."""

    def run(yard: Yard) -> Said:
        path = yard.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
        return yard.run(*(part.replace("@", str(path)) for part in argv))

    return run


def _model(yard: Yard) -> tuple[str, str]:
    return f"--model={yard.model}", "--quant=Q8_0"


def _with_file(content: str, name: str, setting: str, command: str) -> Callable[[Yard], Said]:
    def run(yard: Yard) -> Said:
        (yard.root / name).write_text(content)
        return yard.run(command, *_model(yard), f"--{setting}={yard.root / name}")

    return run


def _spoiled(value: Any) -> Any:
    """The same with WORDS behind every text."""
    if isinstance(value, dict):
        return {key: _spoiled(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_spoiled(item) for item in value]
    return f"{value}{WORDS}" if isinstance(value, str) else value


def _hostile_manifest(*path: str) -> Callable[[Yard], Said]:
    """A release whose manifest is hostile in one place, or everywhere."""

    def run(yard: Yard) -> Said:
        assert yard.run("report", *_model(yard)).code == 0
        file = yard.release / "manifest.json"
        whole = json.loads(file.read_text())
        inside = whole
        for part in path[:-1]:
            inside = inside[part]
        if path:
            inside[path[-1]] = _spoiled(inside[path[-1]])
        else:
            whole = _spoiled(whole)
        file.unlink()
        file.write_text(json.dumps(whole))
        return yard.run("verify", f"--file={yard.release}")

    return run


def _hostile_store(yard: Yard) -> Said:
    """What `publish` says over a store whose manifest was filled by a hostile stage or release."""
    manifest = yard.manifest()
    manifest.source.license = WORDS
    for check_ in manifest.stages.values():
        check_.tools["tool"] = WORDS
    yard.keep(manifest)
    return yard.publish("--dry-run")


def _staged(behaviour: Behaviour, command: str = "build") -> Callable[[Yard], Said]:
    def run(yard: Yard) -> Said:
        engine = engine_of(yard)
        engine.behaviours["convert"] = behaviour
        return yard.run(command, *_model(yard))

    return run


def _fails(spec: StageSpec, _space: Workspace) -> StageResult:
    error = StageError(kind="bug", message=WORDS, hint=WORDS, detail=f"{WORDS}\nsecond line {NO_LINES}")
    return StageResult(stage=spec.row.name, exit_code=ExitCode.BUG, error=error)


def _boasts(spec: StageSpec, space: Workspace) -> StageResult:
    facts: dict[str, Any] = {"mismatches_allowed": [WORDS], "probes": WORDS, "chats": WORDS, WORDS: WORDS}
    return writes("model.gguf", "reference.json")(spec, space).model_copy(update={"facts": facts})


def _raises(spec: StageSpec, _space: Workspace) -> StageResult:
    raise RuntimeError(WORDS)


def _named(name: str, content: bytes = b"") -> Callable[[Yard], Said]:
    def run(yard: Yard) -> Said:
        (Path(yard.model) / name).write_bytes(content)
        return yard.run("build", *_model(yard))

    return run


def _card(text: str) -> Callable[[Yard], Said]:
    def run(yard: Yard) -> Said:
        (Path(yard.model) / "README.md").write_text(text)
        return yard.run("plan", *_model(yard))

    return run


def _gguf(**words: str) -> bytes:
    facts = {"general.architecture": "llama", "general.file_type": 7} | {f"general.{k}": v for k, v in words.items()}
    return gguf(facts, [TensorSpec(NO_LINES, (256, 4), "F32", bytes(4096))])


_YAML = yaml.safe_dump
MESSAGES: dict[str, Callable[[Yard], Said]] = {
    "a repo's licence and files": lambda yard: _hostile_hub(yard, {}),
    "a repo's card": lambda yard: _hostile_hub(yard, {"license": WORDS, "license_name": WORDS, "tags": [WORDS]}),
    **{f"a Hub that answers {status}": _refusing(status) for status in (400, 401, 403, 404, 429, 500)},
    "a manifest, everywhere": _hostile_manifest(),
    "a manifest's source": _hostile_manifest("source"), "a manifest's quants": _hostile_manifest("quants"),
    "a manifest's stages": _hostile_manifest("stages"), "a manifest's title": _hostile_manifest("source", "title"),
    "a manifest's licence": _hostile_manifest("source", "license"),
    "a manifest's reports": _hostile_manifest("evaluations"),
    "no manifest": _written(WORDS.encode(), "x/manifest.json", "verify", "--file=@"),
    "a store's manifest": _hostile_store,
    "a stage's error": _staged(_fails), "a stage's facts": _staged(_boasts), "a stage's exception": _staged(_raises),
    "a stage's error in a release": _staged(_fails, "release"), "a stage's error as JSON": _staged(_fails),
    "a model's file name": _named(f"{NO_LINES.replace('/', '')}.safetensors", bytes(100)),
    "a model's configuration": _named("config.json", json.dumps({"model_type": WORDS, "torch_dtype": WORDS}).encode()),
    "a model's licence": _card(f"---\n{_YAML({'license': WORDS, 'license_name': WORDS})}---\n"),
    "a card's broken YAML": _card(f"---\nlicense: [{SIGNS}\n---\n"),
    "a GGUF's metadata": _written(_gguf(name=WORDS, license=WORDS, basename=WORDS), "m.gguf", "plan", "--model=@"),
    "a GGUF's architecture": _written(_gguf(architecture=WORDS), "m.gguf", "plan", "--model=@"),
    "a GGUF's name": _written(b"GGUF", f"{MARKS.replace('/', '')}.gguf", "plan", "--model=@"),
    "a GGUF to verify": _written(_gguf(name=WORDS), "m.gguf", "verify", "--file=@"),
    "a suite": _with_file(_YAML({"name": WORDS, "tasks": [{"task": WORDS}]}), "s.yaml", "suite", "plan"),
    "a suite's fields": _with_file(_YAML({WORDS: WORDS}), "s.yaml", "suite", "plan"),
    "a suite's name alone": lambda yard: yard.run("plan", *_model(yard), f"--suite={MARKS}"),
    "budgets": _with_file(_YAML({"defaults": {WORDS: 1}, "quants": {WORDS: {}}}), "g.yaml", "gate", "gate"),
    "a recipe": _with_file(_YAML({"name": WORDS, "base": WORDS, WORDS: 1}), "r.yaml", "recipe", "plan"),
    "an option": lambda yard: yard.run(f"--{NO_LINES}", WORDS),
    "a command": lambda yard: yard.run(WORDS),
    **{
        f"a value of {name}": (lambda yard, name=name: yard.run("plan", *_model(yard), f"--{name}={WORDS}"))
        for name in ("quant", "outtype", "engine", "threads", "model", "imatrix", "memory", "suite", "hf-endpoint")
    },
    **{
        f"marks in {name}": (lambda yard, name=name: yard.run("plan", *_model(yard), f"--{name}={MARKS}"))
        for name in ("quant", "outtype", "engine", "threads", "model", "imatrix", "memory", "artifacts", "tasks")
    },
    "a registry's name": lambda yard: yard.publish(f"--oci={MARKS}"),
    "a repo's name": lambda yard: yard.run("verify", f"--repo={MARKS}"),
}


@pytest.mark.parametrize(
    ("name", "shown"), sampled([(name, to) for name in MESSAGES for to in ("log", "terminal")], 20), indirect=["shown"]
)
def test_no_message_carries_what_a_terminal_obeys(yard: Yard, name: str) -> None:
    said = MESSAGES[name](yard)
    check(said.out)
    check(said.err)
    assert said.code != 70 or "stage" in name, said.err  # a stage's own word


@pytest.mark.parametrize("name", ["a stage's error", "a manifest, everywhere", "a repo's card"])
def test_json_is_ascii_that_acts_on_nothing(yard: Yard, name: str) -> None:
    yard.monkeypatch.setenv("JSON", "1")
    said = MESSAGES[name](yard)
    assert said.out.isascii() and not acting(said.out)
    json.loads(said.out)


def test_what_is_published_carries_no_such_character_either(yard: Yard) -> None:
    manifest = yard.manifest()
    manifest.source.title = manifest.source.card.license_name = NO_LINES
    manifest.source.card.tags = [NO_LINES]
    yard.keep(manifest)
    assert yard.run("report", *_model(yard)).code == 0
    for name in ("README.md", "report.html"):
        assert not acting((yard.release / name).read_text()) - {"\n"}


# ---- the border itself -------------------------------------------------------------------------------


def _table(text: str) -> Table:
    table = Table(title=text, caption=text)
    table.add_column(text)
    table.add_row(text)
    table.add_row(Text(text))
    return table


class _Raw:
    """What writes its own segments."""

    def __rich_console__(self, console: Console, options: object) -> Iterator[Segment]:
        yield Segment(WORDS, Style(link="https://evil.example"))


RENDERED: dict[str, Any] = {
    "a line": NO_LINES, "a text": Text(NO_LINES), "a linked text": Text("x", Style(link="https://evil.example")),
    "a table": _table(NO_LINES.replace("[/nothing]", "")), "a panel": Panel(Text(NO_LINES), title=Text(NO_LINES)),
    "a group": Group(Text(NO_LINES), Text(NO_LINES)), "its own segments": _Raw(),
}  # fmt: skip


@pytest.mark.parametrize("name", sampled(list(RENDERED), 4))
@pytest.mark.parametrize("console", [output.stderr_console, output.stdout_console])
def test_nothing_gets_past_the_consoles_whatever_it_comes_in(
    name: str, console: Callable[[], Console], shown: str
) -> None:
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        made = RENDERED[name]
        console().print(made, markup=not isinstance(made, str))
    check(out.getvalue() + err.getvalue(), lines=False)
    assert out.getvalue() + err.getvalue()


@pytest.mark.parametrize("kind", [LineReporter, LiveReporter])
def test_bars_and_lines_of_a_running_stage_carry_none(kind: type[LineReporter | LiveReporter], shown: str) -> None:
    err = io.StringIO()
    with redirect_stderr(err), kind(output.stderr_console()) as reporter:
        reporter.begin(WORDS, 1, 3)
        reporter.progress(WORDS, Progress(stage=WORDS, done=1, total=2, unit="bytes"))
        reporter.note(WORDS)
        reporter.fail(WORDS, WORDS)
        reporter.begin(WORDS, 2, 3)
        facts: dict[str, Any] = {
            "n_questions": 3, "tasks": {WORDS: {WORDS: 1.0}}, "files": {WORDS: {"verdicts": {WORDS: 1}}},
            "bits_per_weight": 4.5, "mismatches_allowed": [WORDS], WORDS: {"perplexity": 1.0},
        }  # fmt: skip
        for stage in ("evaluate", "divergence", "report", "verify", WORDS):
            reporter.end(WORDS, StageResult(stage=stage, exit_code=ExitCode.DONE, facts=facts))
    check(err.getvalue())


def test_lines_of_data_are_one_line_each() -> None:
    out = io.StringIO()
    with redirect_stdout(out):
        output.print_line(WORDS)
        facts = ErrorFacts(kind="bug", message=WORDS, hint="\udcff", detail="", exit_code=70)
        output.print_json(ErrorOutput(error=facts))
    line, _, value = out.getvalue().partition("\n")
    said = json.loads(value)["error"]
    assert not acting(line) and (said["message"], said["hint"]) == (WORDS, "\\udcff")
    check(out.getvalue())


# ---- the clients of a served model -------------------------------------------------------------------


def test_a_served_models_answer_acts_on_no_terminal() -> None:
    out, notes = io.StringIO(), io.StringIO()
    terminal = Terminal(io.StringIO(), out, notes, color=True)
    for piece in (*WORDS, "میz", "\u200c", "ی", "👨", "\u200d", "👩", "a", "\u200d", WORDS):
        terminal.say(piece)
    terminal.note(WORDS)
    said = out.getvalue()
    assert "👨\u200d👩" in said and r"a\u200d" in said, "an emoji stays whole, piece by piece"
    assert not acting(said.replace("\u200d", "").replace("\u200c", "")) and not acting(notes.getvalue())
    assert "\nerror: nothing of this is ours\n\t" in said, "an answer has lines and tabs"


def test_a_servers_last_error_acts_on_no_terminal() -> None:
    err = io.StringIO()
    with redirect_stderr(err):
        _say_last_in_chat(WORDS, 4)
    check(err.getvalue(), lines=False)


# ---- nothing goes around it --------------------------------------------------------------------------


def _calls(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func)


def test_consoles_are_made_and_streams_written_at_the_border_only() -> None:
    makers, writers, markers = set(), set(), set()
    for path in (REPO_DIR / "quantyard").rglob("*.py"):
        name, calls = path.relative_to(REPO_DIR).as_posix(), set(_calls(path))
        makers |= {name} if calls & {"Console", "rich.console.Console", "rich.print", "SafeConsole"} else set()
        writers |= {name} if calls & {"sys.stdout.write", "sys.stderr.write", "os.write", "print"} else set()
        markers |= {name} if "rich.markup" in path.read_text() else set()
    # A stage, its workers and the probe of a store write to who started them, who reads lines.
    assert makers == {"quantyard/cli/output.py"}
    assert writers == {
        "quantyard/cli/output.py", "quantyard/protocol/runner.py", "quantyard/sandbox/template_worker.py",
        "quantyard/shared_store/store_probe.py",
    }
    assert markers == {"quantyard/cli/render/styled.py"}


def test_every_command_prints_through_the_border() -> None:
    assert isinstance(output.stderr_console(), output.SafeConsole) and isinstance(
        output.stdout_console(), output.SafeConsole
    )
    assert isinstance(parser.command_line_parser(), parser._Parser)
