"""Long documents that are made of other domains: each spread evenly, the same whenever they are read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from eval.analysis.domain_texts import LONG, DomainDocument, DomainText
from eval.analysis.long_documents import interleaved_text, read_domains_with_long_documents
from quantyard.protocol.evaluation import DomainSettings
from quantyard.protocol.runner import StageFailure

SETTINGS = DomainSettings(texts="texts")
CHAT = ({"role": "user", "content": "When?"}, {"role": "assistant", "content": "At six."})


def _written(folder: Path, **domains: list[dict[str, object]]) -> Path:
    (folder / "texts").mkdir()
    for name, rows in domains.items():
        (folder / "texts" / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return folder


def test_documents_keep_their_order_and_each_domain_is_spread_evenly() -> None:
    many = DomainText("many", tuple(DomainDocument(str(n), f"m{n}") for n in range(4)))
    few = DomainText("few", (DomainDocument("a", "f0\n"), DomainDocument("b", "f1")))
    # places: m at 1/8, 3/8, 5/8, 7/8; f at 1/4, 3/4
    assert interleaved_text([many, few]).split("\n\n* * *\n\n") == ["m0", "f0", "m1", "m2", "f1", "m3"]


def test_conversations_are_labelled_text() -> None:
    chat = DomainText("chat", (DomainDocument("a", messages=CHAT),))
    assert interleaved_text([chat]) == "User: When?\n\nAssistant: At six."


def test_a_long_document_may_be_a_text_or_made_of_other_domains(tmp_path: Path) -> None:
    rows = [{"id": "own", "text": "Once."}, {"id": "made", "interleaved": ["prose", "chat"]}]
    folder = _written(tmp_path, long=rows, prose=[{"id": "p", "text": "Prose."}],
                      chat=[{"id": "c", "messages": list(CHAT)}])  # fmt: skip
    found = {text.name: text for text in read_domains_with_long_documents(folder, SETTINGS)}
    assert [document.text for document in found[LONG].documents] == [
        "Once.", "Prose.\n\n* * *\n\nUser: When?\n\nAssistant: At six."
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("name", "of", "words"),
    [("long", ["verse"], "the domain 'verse', which texts does not have"), ("long", ["long"], "neither a text nor"),
     ("long", [], "neither a text nor"), ("prose", ["prose"], "neither a text nor")],
)  # fmt: skip
def test_what_cannot_be_made_is_refused(tmp_path: Path, name: str, of: list[str], words: str) -> None:
    folder = _written(tmp_path, **{name: [{"id": "a", "interleaved": of}]})
    with pytest.raises(StageFailure, match=words):
        read_domains_with_long_documents(folder, SETTINGS)


def test_ours_are_four_whose_texts_differ_and_are_always_the_same() -> None:
    one, again = (
        read_domains_with_long_documents(Path("/nowhere"), DomainSettings(names=(LONG,)))[0] for _ in range(2)
    )
    texts = [document.text for document in one.documents]
    assert texts == [document.text for document in again.documents]
    assert len(texts) >= 4 and min(map(len, texts)) > 50_000, "characters"
    lines = [{line for line in text.splitlines() if len(line) > 60} for text in texts]
    assert not any(lines[i] & lines[j] for i in range(len(lines)) for j in range(i))
