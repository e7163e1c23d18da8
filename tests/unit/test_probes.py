"""The probes are many, different, and safe to send to any tokenizer."""

from __future__ import annotations

from builder.checks.tokenizer_probes import CONVERSATIONS, PROBES, PROBES_BY_GROUP, special_token_probes


def test_there_are_at_least_220_different_probes() -> None:
    assert len(set(PROBES)) == len(PROBES) >= 220


def test_every_group_has_probes() -> None:
    assert all(len(group) >= 10 for group in PROBES_BY_GROUP.values())


def test_the_traps_are_among_them() -> None:
    for trap in ("", " ", "\n", "\r\n", "\t", "e\u0301", "½ ¼ ¾", "👨‍👩‍👧‍👦", "<s>", "▁"):
        assert trap in PROBES


def test_probes_are_valid_unicode_without_nul() -> None:
    for probe in PROBES:
        assert probe.encode().decode() == probe
        assert "\0" not in probe


def test_special_tokens_of_a_tokenizer_are_probed_in_several_places() -> None:
    probes = special_token_probes(["<|x|>", "<|x|>", "<s>"])
    assert "<|x|>" in probes
    assert "a<|x|>b" in probes
    assert "<s>" not in probes, "it is in PROBES already"
    assert len(set(probes)) == len(probes)


def test_a_vocabulary_with_thousands_of_reserved_tokens_adds_a_bounded_number() -> None:
    assert len(special_token_probes(f"<r{i}>" for i in range(5000))) <= 5 * 64


def test_every_conversation_ends_with_the_user() -> None:
    assert len(CONVERSATIONS) >= 6
    for messages in CONVERSATIONS.values():
        assert messages[-1]["role"] == "user"
        assert all(message.keys() == {"role", "content"} for message in messages)
