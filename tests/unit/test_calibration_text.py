"""The calibration text: made by its script, varied, in several languages, and never what an evaluation asks."""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from builder.calibration.grammar import BadCalibrationGrammar, GrammarWriter, read_calibration_grammar
from builder.calibration.make_text import SHARES, TEXT_FILE, calibration_jsonl
from builder.imatrix.calibration_text import own_calibration_text, users_calibration_text
from quantyard.plan.calibration_inputs import check_planned_calibration
from quantyard.plan.contamination import plan_contaminating_files
from quantyard.protocol.runner import StageFailure
from quantyard.sandbox.chat_template import ChatRefused, Messages

DOCUMENTS: list[dict[str, Any]] = [json.loads(line) for line in TEXT_FILE.read_text().splitlines()]


def _words(document: dict[str, Any]) -> list[str]:
    said = document.get("text") or "\n".join(message["content"] for message in document["messages"])
    return re.findall(r"\w+", str(said).lower())


# ---- the text that comes with Quantyard --------------------------------------------------------------


def test_the_script_makes_the_file_byte_for_byte() -> None:
    assert calibration_jsonl() == TEXT_FILE.read_text(encoding="utf-8")


def test_it_has_forty_thousand_words_in_all_domains() -> None:
    sizes = Counter[str]()
    for document in DOCUMENTS:
        sizes[document["domain"]] += len(_words(document))
    assert sizes.total() >= 40_000
    assert set(sizes) == set(SHARES)
    assert all(sizes[language] > 1_500 for language in ("de", "fr", "es", "it", "ru"))
    assert sum(sizes[name] for name in sizes if name.startswith("en-")) > 20_000


def test_it_varies() -> None:
    words = [word for document in DOCUMENTS for word in _words(document)]
    for n, least in ((2, 0.25), (4, 0.5), (8, 0.75)):
        grams = [tuple(words[i : i + n]) for i in range(len(words) - n + 1)]
        assert len(set(grams)) / len(grams) > least, f"{n}-grams repeat too often"


def test_no_document_comes_twice_and_no_slot_is_left_open() -> None:
    texts = [json.dumps(document) for document in DOCUMENTS]
    assert len(set(texts)) > 0.95 * len(texts)
    assert not [text for text in TEXT_FILE.read_text().splitlines() if re.search(r"[⟨⟩¶]|§[SUA]", text)]


def test_every_first_part_of_it_has_all_domains() -> None:
    assert {document["domain"] for document in DOCUMENTS[:30]} == set(SHARES)


def test_dialogues_alternate_and_end_with_the_assistant() -> None:
    for document in DOCUMENTS:
        if messages := document.get("messages"):
            roles = [message["role"] for message in messages if message["role"] != "system"]
            assert roles == ["user", "assistant"] * (len(roles) // 2) and all(m["content"] for m in messages)


def test_it_shares_no_eight_words_with_our_evaluations(tmp_path: Path) -> None:
    check_planned_calibration([], plan_contaminating_files(tmp_path))


# ---- grammars ----------------------------------------------------------------------------------------


def _writer(tmp_path: Path, text: str, seed: str = "1") -> GrammarWriter:
    path = tmp_path / "g.txt"
    path.write_text(text)
    return GrammarWriter(read_calibration_grammar(path), seed)


def test_a_grammar_gives_the_same_texts_for_one_seed_and_others_for_another(tmp_path: Path) -> None:
    rules = "document:\n    ⟨#1-1000000⟩\n"
    one, same, other = (_writer(tmp_path, rules, seed) for seed in ("a", "a", "b"))
    texts = [one.document() for _ in range(5)]
    assert texts == [same.document() for _ in range(5)] != [other.document() for _ in range(5)]


def test_every_alternative_comes_once_before_any_comes_twice(tmp_path: Path) -> None:
    writer = _writer(tmp_path, "document:\n    ⟨x⟩\nx = a | b | c | d\n")
    assert sorted(writer.document() for _ in range(4)) == ["a", "b", "c", "d"]


def test_a_remembered_word_is_repeated(tmp_path: Path) -> None:
    writer = _writer(tmp_path, "document:\n    ⟨p=x⟩ ⟨p⟩¶⟨p⟩\nx = a | b | c | d\n")
    for _ in range(4):
        first, second, third = re.split(r"[ \n]", writer.document())
        assert first == second == third


def test_numbers_stay_within_their_bounds(tmp_path: Path) -> None:
    writer = _writer(tmp_path, "document:\n    ⟨#3-5⟩\n")
    assert {writer.document() for _ in range(100)} == {"3", "4", "5"}


@pytest.mark.parametrize(("text", "says"), [("document:\n    ⟨gone⟩\n", "gone"), ("what is this\n", "line 1")])
def test_a_grammar_that_cannot_be_is_refused(text: str, says: str, tmp_path: Path) -> None:
    with pytest.raises(BadCalibrationGrammar, match=says):
        _writer(tmp_path, text)


# ---- what the stage reads ----------------------------------------------------------------------------


class _Template:
    """Renders like ChatML; refuses what it is told to."""

    def __init__(self, refuses: str = "") -> None:
        self.refuses = refuses

    def render_chat(self, messages: Messages) -> str:
        if any(self.refuses in (message["role"], "all") for message in messages):
            raise ChatRefused("no")
        return "".join(f"<{m['role']}>{m['content']}</>" for m in messages) + "<assistant>"


def test_dialogues_are_put_into_the_models_template_with_their_last_answer_after_its_opening() -> None:
    text, templated = own_calibration_text(_Template())
    dialogues = [document["messages"] for document in DOCUMENTS if "messages" in document]
    assert templated == len(dialogues)
    assert f"<user>{dialogues[0][-2]['content']}</><assistant>{dialogues[0][-1]['content']}\n\n" in text


def test_a_template_that_refuses_system_messages_gets_dialogues_without() -> None:
    text, templated = own_calibration_text(_Template("system"))
    assert templated == sum("messages" in document for document in DOCUMENTS) and "<system>" not in text


def test_without_a_template_dialogues_are_plain_lines() -> None:
    text, templated = own_calibration_text(_Template("all"))
    assert templated == 0 and "\nassistant: " in text and "<user>" not in text


@pytest.mark.parametrize(
    ("data", "says"),
    [(b"\xff\xfe", "not UTF-8: byte 0 is 0xff"), (b"a\0b", "binary: byte 1 is 0"), (b" \n", "mine.txt is empty")],
)
def test_the_stage_refuses_a_file_that_is_no_text(data: bytes, says: str, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_bytes(data)
    with pytest.raises(StageFailure, match=says) as failed:
        users_calibration_text([tmp_path / "mine.txt"])
    assert failed.value.exit_code == 2 and failed.value.error.hint


def test_the_users_files_are_read_in_the_order_given(tmp_path: Path) -> None:
    for name in ("b", "a"):
        (tmp_path / name).write_text(f"text {name}\n")
    assert users_calibration_text([tmp_path / "b", tmp_path / "a"]) == "text b\n\ntext a"
