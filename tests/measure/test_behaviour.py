"""The stage `behaviour` on tiny random models: its answers are their own, it goes on after a kill, and says why not."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from eval.behaviour import behaviour
from eval.llama.model import GgufModel
from eval.scenarios import scenario
from eval.scenarios.prompts import ScenarioPrompts
from quantyard.protocol.behaviour import BEHAVIOUR_NAMES, BehaviourEntry, BehaviourSettings
from quantyard.protocol.behaviour_run import BehaviourRequest, BehaviourRun
from quantyard.protocol.evaluation import Runtime
from quantyard.protocol.measuring_facts import BehaviourFacts
from quantyard.protocol.runner import Stage
from tests.tiny_gguf import write_tiny

Demo = Callable[[str], Path]
TOOLS = BehaviourEntry(suite="tool_calls", limit=4)


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short answers and blocks, since a random model never ends an answer."""
    monkeypatch.setattr(scenario, "_BLOCK_ENDS", (4, 6))
    for name in BEHAVIOUR_NAMES:
        monkeypatch.setitem(scenario.ANSWER_TOKENS, name, 12)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def tiny(demo_gguf: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(demo_gguf("BF16"), tmp_path_factory.mktemp("tiny") / "tiny.gguf", context=8192)


def asked(folder: Path, model: Path, *entries: BehaviourEntry) -> BehaviourRun:
    """Run the stage in this folder, which may hold what an earlier run left."""
    stage = Stage("behaviour", folder / "in", folder / "out", {})
    (stage.in_dir / "model").mkdir(parents=True, exist_ok=True)
    stage.files_dir.mkdir(parents=True, exist_ok=True)
    link = stage.in_dir / "model" / "model.gguf"
    if not link.exists():
        link.symlink_to(model)
    settings = BehaviourSettings(suites=entries or (TOOLS,))
    outcome = behaviour(stage, BehaviourRequest(label="Q", settings=settings, runtime=Runtime(threads=1)))
    run = BehaviourRun.model_validate_json((stage.files_dir / "behaviour.json").read_bytes())
    assert BehaviourFacts.read(outcome.facts).reason == run.reason
    return run


def texts(folder: Path, suite: str) -> dict[str, str]:
    """Every answer of a kind by its question and seed."""
    blocks = [json.loads(path.read_text()) for path in (folder / "out" / "files" / suite).iterdir()]
    return {f"{a['question']} {a['seed']}": a["text"] for block in blocks for a in block["answers"]}


def test_an_answer_is_the_same_bits_whatever_else_is_asked(tiny: Path, tmp_path: Path) -> None:
    alone = asked(tmp_path / "alone", tiny)
    more = asked(tmp_path / "more", tiny, BehaviourEntry(suite="reasoning", limit=2),
                 BehaviourEntry(suite="tool_calls", limit=5))  # fmt: skip
    few, many = texts(tmp_path / "alone", "tool_calls"), texts(tmp_path / "more", "tool_calls")
    assert len(few) == 4 and few.items() <= many.items() and any(few.values())
    assert more.outcomes[1].answers[:4] == alone.outcomes[0].answers
    assert more.outcomes[1].hashes[:4] == alone.outcomes[0].hashes
    assert len(more.outcomes[1].questions) == 5


def test_a_run_goes_on_with_the_block_it_was_in(tiny: Path, tmp_path: Path) -> None:
    entry = BehaviourEntry(suite="tool_calls", limit=5)
    whole, blocks = asked(tmp_path, tiny, entry), tmp_path / "out" / "files" / "tool_calls"
    lost = (blocks / "1.json").read_bytes()
    (blocks / "1.json").unlink()
    (tmp_path / "out" / "files" / "behaviour.json").unlink()
    kept = (blocks / "0.json").stat().st_ino
    again = asked(tmp_path, tiny, entry)
    assert (blocks / "0.json").stat().st_ino == kept and (blocks / "1.json").read_bytes() == lost
    assert again.outcomes == whole.outcomes


def test_sampled_answers_differ_by_their_seed_and_come_again(tiny: Path, tmp_path: Path) -> None:
    entry = BehaviourEntry(suite="grounded_answers", limit=3, seeds=2, temperature=1.5)
    run = asked(tmp_path / "one", tiny, entry)
    assert [len(answers) for answers in run.outcomes[0].answers] == [2, 2, 2]
    found = texts(tmp_path / "one", "grounded_answers")
    assert len(set(found.values())) == len(found)
    asked(tmp_path / "two", tiny, entry)
    assert texts(tmp_path / "two", "grounded_answers") == found


def test_greedy_answers_are_given_once(tiny: Path, tmp_path: Path) -> None:
    run = asked(tmp_path, tiny, BehaviourEntry(suite="instructions", limit=1, seeds=3, temperature=0))
    assert [len(answers) for answers in run.outcomes[0].answers] == [1]
    (answer,) = run.outcomes[0].answers[0]
    assert answer.n_tokens > 0


@pytest.mark.parametrize(("name", "value", "reason"), [
    ("chat_template", None, "it has no chat template"),
    ("chat_template", "{{ raise_exception('never') }}", "its chat template refuses a conversation"),
    ("has_encoder", True, "it is an encoder-decoder, which has no chat"),
])  # fmt: skip
def test_a_model_that_cannot_be_asked_says_why(
    name: str, value: object, reason: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(GgufModel, name, property(lambda _self: value))
    run = asked(tmp_path, tiny)
    assert run.reason.startswith(reason) and run.outcomes == ()


def test_a_context_that_is_too_short_says_so(demo_gguf: Demo, tmp_path: Path) -> None:
    small = write_tiny(demo_gguf("BF16"), tmp_path / "small.gguf", context=64)
    assert asked(tmp_path, small).reason.startswith("its context of 64 tokens is too short for the question ")


def test_a_template_that_knows_tools_is_given_them(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else they stand in the system message, or before the question where the template refuses one."""
    question = next(each for each in scenario.load_scenarios("tool_calls") if each.id == "weather-oslo")
    body = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    refusing = "{% if messages[0].role == 'system' %}{{ raise_exception('no') }}{% endif %}" + body
    shown = {}
    for name, template in (("knows", f"TOOLS {{{{ tools | tojson }}}} {body}"), ("not", body), ("refuses", refusing)):
        with GgufModel.load(tiny) as model, monkeypatch.context() as patched:
            patched.setattr(GgufModel, "chat_template", property(lambda _self, text=template: text))
            prompts = ScenarioPrompts(model)
            shown[name] = prompts.prompt(question)
            prompts.close()
    assert shown["knows"].startswith('TOOLS [{"type": "function"') and "<system>" not in shown["knows"]
    assert shown["not"].startswith("<system>You can call") and "get_weather" in shown["not"]
    assert shown["refuses"].startswith("<user>You can call") and shown["refuses"].endswith(question.user)
