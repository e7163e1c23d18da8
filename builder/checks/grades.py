"""The kind of a difference between two tokenizations of a text, and what follows from it.

Limits, and why: docs/explanation/tokenizers.md.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Callable
from typing import Final

from builder.checks.tokenizer_probes import LOOK_ALIKES
from quantyard.protocol.text_findings import (
    LEADING_SPACE,
    NORMALIZATION,
    PLAIN_TEXT,
    SCRIPT,
    SENTINEL_TOKENS,
    Outcome,
    TextFinding,
)

# To count another script's text as plain text: add its name, as it begins the names of its characters in Unicode.
COMMON_SCRIPTS: Final = frozenset({"latin", "greek", "cyrillic", "han", "kana", "hangul"})
# Of a model that embeds texts, whose answers in every other script are compared themselves (embedding_parity.py).
COMMON_OF_EMBEDDERS: Final = frozenset({"latin"})
_RENAMED: Final = {
    "cjk": "han",
    "hiragana": "kana",
    "katakana": "kana",
    "halfwidth": "",
    "fullwidth": "",
    "ideographic": "han",
}
_NO_SCRIPT: Final = frozenset({
    "combining", "modifier", "mathematical", "double", "script", "blackletter", "feminine", "masculine", "micro",
    "superscript", "subscript", "kelvin", "angstrom", "ohm", "black", "variation", "vertical", "turned", "fraktur",
})  # fmt: skip
_FORMS: Final = ("NFC", "NFKC", "NFD")
_RESERVED: Final = re.compile(r"extra_id|unused|reserved|dummy|placeholder|place▁holder|sentinel")

PLAIN_TEXT_SHARE: Final = 0.001  # of the tokens of running text: more are refused
ONE_TEXT_SHARE: Final = 0.02  # of the tokens of one language in a common script: more are refused
SCRIPT_SHARE: Final = 0.001  # of the tokens of a script's running text: more are a warning
SCRIPT_NATS_PER_TOKEN: Final = 1.0  # a text that becomes so much less likely (2.7 times the perplexity) is refused

Tokenize = Callable[[str], list[int]]


def text_scripts(text: str) -> list[str]:
    """The scripts of a text's letters and marks, sorted; digits, signs and marks of any script have none."""
    found = {script_of_character(letter) for letter in text if unicodedata.category(letter)[0] in "LM"}
    return sorted(found - {""})


def script_of_character(letter: str) -> str:
    """The first word of its Unicode name, in lower case; "" for one of no script."""
    word = unicodedata.name(letter, "").split(" ")[0].split("-")[0].lower()
    return "" if word in _NO_SCRIPT else _RENAMED.get(word, word)


def difference_kind(
    text: str, expected: list[int], found: list[int], tokenize: Tokenize, common: frozenset[str] = COMMON_SCRIPTS
) -> str:
    """The kind of a probe that differs.

    Args:
        common: the scripts that count as plain text.
        tokenize: llama.cpp's, to see whether a normalized text would have been tokenized as expected.
    """
    if text in LOOK_ALIKES:
        return SENTINEL_TOKENS
    normal = {unicodedata.normalize(form, text) for form in _FORMS} - {text}
    if any(tokenize(other) == expected for other in normal):
        return NORMALIZATION
    if rare := [script for script in text_scripts(text) if script not in common]:
        return f"{SCRIPT}{rare[0]}"
    if text[:1].isspace() and _same_but_for_the_start(expected, found):
        return LEADING_SPACE
    return NORMALIZATION if _has_invisible_characters(text) or _is_decomposed_unicode(text) else PLAIN_TEXT


def added_token_kind(token: str) -> str:
    """Reserved tokens, and marks that stand for white space, are in no text; every other one counts as plain text."""
    return SENTINEL_TOKENS if _RESERVED.search(token) or not token.strip("▁ ") else PLAIN_TEXT


def passage_kind(script: str, common: frozenset[str] = COMMON_SCRIPTS) -> str:
    """The kind of a difference in running text."""
    return PLAIN_TEXT if script in common | {"code"} else f"{SCRIPT}{script}"


def _same_but_for_the_start(expected: list[int], found: list[int]) -> bool:
    """All but the first two tokens of the shorter one."""
    rest = max(0, min(len(expected), len(found)) - 2)
    return expected[len(expected) - rest :] == found[len(found) - rest :]


def _has_invisible_characters(text: str) -> bool:
    kinds = {unicodedata.category(letter) for letter in text if letter not in "\t\n\r"}
    is_emoji = "So" in kinds
    return bool(kinds & ({"Cc", "Co", "Cn", "Zl", "Zp"} if is_emoji else {"Cc", "Cf", "Co", "Cn", "Zl", "Zp"}))


def _is_decomposed_unicode(text: str) -> bool:
    return not unicodedata.is_normalized("NFC", text)


def check_finding_outcome(
    finding: TextFinding, permitted: frozenset[str], *, worst_text: float, is_certain: bool
) -> Outcome:
    """What follows from a finding.

    Args:
        permitted: the kinds that the user permits.
        worst_text: the largest share of differing tokens in one passage.
        is_certain: added tokens, ends or conversations differ, which no share of running text excuses.
    """
    if finding.kind == PLAIN_TEXT:
        is_refused = is_certain or finding.share > PLAIN_TEXT_SHARE or worst_text > ONE_TEXT_SHARE
        return _grade_unless_permitted(finding, permitted) if is_refused else "record"
    if finding.kind.startswith(SCRIPT):
        if (finding.nats_per_token or 0.0) > SCRIPT_NATS_PER_TOKEN:
            return _grade_unless_permitted(finding, permitted)
        is_seen = finding.share > SCRIPT_SHARE or not finding.tokens
        return "warn" if is_seen else "record"
    return "warn" if finding.kind == LEADING_SPACE and is_certain else "record"


def _grade_unless_permitted(finding: TextFinding, permitted: frozenset[str]) -> Outcome:
    return "allowed" if finding.kind in permitted else "refuse"
