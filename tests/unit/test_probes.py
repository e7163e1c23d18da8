"""The probes are many, different, and safe to send to any tokenizer."""

from __future__ import annotations

from builder.checks.tokenizer_probes import CONVERSATIONS, PROBES, PROBES_BY_GROUP, added_token_batches


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


def token(content: str, **flags: bool) -> dict[str, object]:
    return {"content": content, "lstrip": False, "rstrip": False, "single_word": False, "normalized": False} | flags


def test_added_tokens_are_probed_with_neighbours() -> None:
    probes = [probe for _, part in added_token_batches([token("<|x|>"), token("<s>", lstrip=True)]) for probe in part]
    assert {"<|x|>", "a<|x|>b", "a <s> b"} <= set(probes)
    assert len(set(probes)) == len(probes)


def test_of_thousands_of_reserved_tokens_only_those_with_flags_have_every_neighbour() -> None:
    batches = added_token_batches([*(token(f"<r{i}>") for i in range(5000)), token("<f>", rstrip=True)])
    probes = [probe for _, part in batches for probe in part]
    assert sum("<r" in probe for probe in probes) == 5000, "each once"
    assert sum("<f>" in probe for probe in probes) > 5


def test_every_conversation_ends_with_the_user() -> None:
    assert len(CONVERSATIONS) >= 6
    for messages in CONVERSATIONS.values():
        assert messages[-1]["role"] == "user"
        assert all(message.keys() == {"role", "content"} for message in messages)
