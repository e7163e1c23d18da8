"""The kind of a difference between two tokenizations, and what follows from it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from builder.checks.corpus import running_text
from builder.checks.grades import (
    COMMON_SCRIPTS,
    added_token_kind,
    check_finding_outcome,
    difference_kind,
    passage_kind,
    text_scripts,
)
from builder.checks.token_parity import n_differing_tokens
from builder.checks.tokenizer_probes import added_token_batches
from quantyard.protocol.text_findings import KINDS, TextFinding, is_mismatch_kind


def _ids(text: str) -> list[int]:
    return [ord(letter) for letter in text]


@pytest.mark.parametrize(("text", "expected", "found", "kind"), [
    ("hello world", [1], [2], "plain-text"),
    ("Größe 123 мир 世界 こんにちは 안녕 Καλημέρα", [1], [2], "plain-text"),
    ("def f(x):\n    return x", [1], [2], "plain-text"),
    ("😀 ok", [1], [2], "plain-text"),
    ("שָׁלוֹם", [1], [2], "script:hebrew"),
    ("สวัสดี", [1], [2], "script:thai"),
    ("នំបុ័ង", [1], [2], "script:khmer"),
    ("Hello नमस्ते", [1], [2], "script:devanagari"),
    ("e\u0301", _ids("\u00e9"), [1, 2], "normalization"),  # llama.cpp would be right, had it composed the text
    ("\u1100\u1161", [1], [2], "normalization"),
    ("a\u200db", [1], [2], "normalization"),
    ("a\u0001b", [1], [2], "normalization"),
    (" a b", [9, 5, 6, 7], [8, 5, 6, 7], "leading-space"),
    (" a b", [9, 5, 6, 7], [8, 5, 1, 2], "plain-text"),
    ("</s>", [1], [2], "sentinel-tokens"),
])  # fmt: skip
def test_a_difference_has_the_kind_of_its_text(text: str, expected: list[int], found: list[int], kind: str) -> None:
    assert difference_kind(text, expected, found, _ids) == kind
    assert is_mismatch_kind(kind)


@pytest.mark.parametrize(("token", "kind"), [
    ("<|im_start|>", "plain-text"), ("[CITY]", "plain-text"), ("<think>", "plain-text"), ("\n\n", "plain-text"),
    ("<extra_id_7>", "sentinel-tokens"), ("<unused12>", "sentinel-tokens"), ("▁▁▁", "sentinel-tokens"),
    ("<|reserved_special_token_3|>", "sentinel-tokens"), ("<｜place▁holder▁no▁3｜>", "sentinel-tokens"),
])  # fmt: skip
def test_an_added_token_counts_as_plain_text_unless_it_is_reserved(token: str, kind: str) -> None:
    assert added_token_kind(token) == kind


def _finding(kind: str, differing: int = 0, tokens: int = 1000, nats: float | None = None) -> TextFinding:
    return TextFinding(kind=kind, outcome="record", probes=30, tokens=tokens, differing=differing, nats_per_token=nats)


@pytest.mark.parametrize(("finding", "worst", "is_certain", "outcome"), [
    (_finding("plain-text"), 0.0, False, "record"),  # thirty odd probes, and no running text
    (_finding("plain-text", 1), 0.01, False, "record"),
    (_finding("plain-text", 2), 0.01, False, "refuse"),
    (_finding("plain-text", 1), 0.03, False, "refuse"),
    (_finding("plain-text"), 0.0, True, "refuse"),
    (_finding("script:thai", 400), 0.4, False, "warn"),
    (_finding("script:thai", 400, nats=0.9), 0.4, False, "warn"),
    (_finding("script:thai", 400, nats=1.1), 0.4, False, "refuse"),
    (_finding("script:thai", 1), 0.1, False, "record"),
    (_finding("script:runic", 0, tokens=0), 0.0, False, "warn"),  # no running text to say how much
    (_finding("normalization"), 0.0, False, "record"),
    (_finding("leading-space"), 0.0, False, "record"),
    (_finding("leading-space"), 0.0, True, "warn"),  # after special tokens: in every turn of a chat
    (_finding("sentinel-tokens"), 0.0, True, "record"),
])  # fmt: skip
def test_the_share_of_running_text_decides(
    finding: TextFinding, worst: float, outcome: str, *, is_certain: bool
) -> None:
    found = check_finding_outcome(finding, frozenset(), worst_text=worst, is_certain=is_certain)
    assert found == outcome
    permitted = check_finding_outcome(finding, frozenset({finding.kind}), worst_text=worst, is_certain=is_certain)
    assert permitted == ("allowed" if outcome == "refuse" else outcome)
    others = {*KINDS, "script:hebrew"} - {finding.kind}
    assert check_finding_outcome(finding, frozenset(others), worst_text=worst, is_certain=is_certain) == outcome


@pytest.mark.parametrize(
    ("expected", "found", "count"),
    [
        ([1, 2, 3], [1, 2, 3], 0), ([1, 2, 3], [1, 9, 3], 1), ([1, 2, 3], [1, 2, 3, 4], 1), ([1, 2], [7, 8, 9], 2),
        ([], [], 0),
    ],
)  # fmt: skip
def test_tokens_the_other_side_lacks_are_counted(expected: Sequence[int], found: Sequence[int], count: int) -> None:
    assert n_differing_tokens(expected, found) == count


def test_running_text_is_in_many_languages_and_is_written_in_the_script_it_names() -> None:
    passages = running_text()
    assert len({passage["name"] for passage in passages}) == len(passages) >= 40
    assert len({passage["script"] for passage in passages}) >= 20
    for passage in passages:
        assert passage_kind(passage["script"]) == "plain-text" or passage["script"] in text_scripts(passage["text"])
        if passage["script"] in COMMON_SCRIPTS | {"code"}:
            assert set(text_scripts(passage["text"])) <= COMMON_SCRIPTS, passage["name"]


def test_every_added_token_is_probed_and_those_with_flags_with_every_neighbour() -> None:
    plain = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    few = [{"content": f"<t{i}>", **plain} for i in range(3)]
    many = [{"content": f"<t{i}>", **plain, "rstrip": i == 7} for i in range(1000)]
    for tokens in (few, many):
        texts = [text for _, texts in added_token_batches(tokens) for text in texts]
        assert all(any(token["content"] in text for text in texts) for token in tokens)
    assert sum("<t0>" in text for _, texts in added_token_batches(few) for text in texts) >= 8
    batches = added_token_batches(many)
    assert sum("<t7>" in text for _, texts in batches for text in texts) >= 8
    assert sum("<t8>" in text for _, texts in batches for text in texts) == 1
    assert all(len(tokens) == len(texts) <= 128 for tokens, texts in batches)
