"""Constraints on a text that a program can check: counts, words, letters, case, form, language."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

Rule = Mapping[str, Any]
_SENTENCE_END: Final = re.compile(r"[.!?…。！？]+[\"'”»)]*(?=\s|$)|[。！？]+")  # noqa: RUF001  (Chinese, Japanese)
_ITEM: Final = {
    "bullet": re.compile(r"^\s*[-*•]\s+\S"), "number": re.compile(r"^\s*\d+[.)]\s+\S"),
}  # fmt: skip
_WORD: Final = re.compile(r"[^\W_]+(?:[’'-][^\W_]+)*")  # noqa: RUF001  (an apostrophe, as typeset)
_SCRIPTS: Final = {
    "latin": "a-zA-ZÀ-ɏ", "cyrillic": "Ѐ-ӿ", "greek": "Ͱ-Ͽ", "arabic": "؀-ۿ", "devanagari": "ऀ-ॿ", "han": "一-鿿",
    "japanese": "一-鿿぀-ヿ", "hangul": "가-힯",
}  # fmt: skip
# Frequent words that tell one language from the others of this table.
_COMMON: Final = {
    "en": "the of and is that it was with this from by are which",
    "de": "der die das und ist nicht ein eine mit auf den im zu sich auch von dem",
    "fr": "le les et est une des dans pour qui sur au pas du ce il elle nous",
    "es": "el los las y es una por con para del se lo como más está muy",
    "it": "il gli di che è un per non sono con della nel alla più molto e",
    "pt": "o os as e é um uma não com para do da em que são muito mais",
    "nl": "de het een en is van dat niet op te met zijn voor er aan",
}  # fmt: skip


def count_words(text: str) -> int:
    """Runs of letters and digits; a hyphen or an apostrophe within joins."""
    return len(_WORD.findall(text))


def count_sentences(text: str) -> int:
    """Ends of sentences, and one more where the last has none. Numbers of a list do not end one."""
    said = re.sub(r"^\s*(\d+)[.)]\s", "", text.strip(), flags=re.MULTILINE)
    ends = list(_SENTENCE_END.finditer(said))
    return len(ends) + bool(said[ends[-1].end() if ends else 0 :].strip())


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _is_within(count: int, rule: Rule) -> bool:
    return bool(rule.get("min", 0) <= count <= rule.get("max", count))


def _items(text: str, rule: Rule) -> list[str]:
    return [line for line in text.splitlines() if _ITEM[rule["style"]].match(line)]


def _is_in_script(text: str, rule: Rule) -> bool:
    """Nine of ten letters at least."""
    letters = [letter for letter in text if letter.isalpha()]
    allowed = re.compile(f"[{_SCRIPTS[rule['script']]}]")
    return bool(letters) and sum(bool(allowed.match(letter)) for letter in letters) >= 0.9 * len(letters)


def _is_in_language(text: str, rule: Rule) -> bool:
    """More frequent words of this language than of any other of the table."""
    words = [word.casefold() for word in _WORD.findall(text)]
    counts = {code: sum(word in known for word in words) for code, known in _COMMON_SETS.items()}
    return counts[rule["code"]] == max(counts.values()) > 0


_COMMON_SETS: Final = {code: frozenset(words.split()) for code, words in _COMMON.items()}


def _has(text: str, wanted: str | Sequence[str]) -> bool:
    """A text, or one of several, as a whole word or phrase without regard to case."""
    options = [wanted] if isinstance(wanted, str) else wanted
    return any(count_phrase(text, option) for option in options)


def count_phrase(text: str, phrase: str) -> int:
    """How often a phrase stands in a text, not within a longer word; of a script without spaces anywhere."""
    before = r"(?<![^\W_])" if phrase[:1].isalnum() and phrase[:1].isascii() else ""
    after = r"(?![^\W_])" if phrase[-1:].isalnum() and phrase[-1:].isascii() else ""
    return len(re.findall(before + re.escape(phrase) + after, text, re.IGNORECASE))


def _is_sorted(text: str, _rule: Rule) -> bool:
    lines = [re.sub(r"^\s*(?:[-*•]|\d+[.)])\s*", "", line).casefold() for line in _lines(text)]
    return lines == sorted(lines)


def _is_table(text: str, rule: Rule) -> bool:
    rows = [line.strip("|").split("|") for line in _lines(text) if line.startswith("|")]
    ruled = len(rows) > 1 and all(re.fullmatch(r"\s*:?-+:?\s*", cell) for cell in rows[1])
    return ruled and len(rows) - 2 == rule["rows"] and all(len(row) == rule["columns"] for row in rows)


def _is_exactly(text: str, rule: Rule) -> bool:
    said = text.strip()
    return any(said == option for option in rule["texts"])


# To add a rule: add a row. Each has the text and its settings.
TEXT_RULES: Final[Mapping[str, Callable[[str, Rule], bool]]] = {
    "words": lambda text, rule: _is_within(count_words(text), rule),
    "sentences": lambda text, rule: _is_within(count_sentences(text), rule),
    "lines": lambda text, rule: _is_within(len(_lines(text)), rule),
    "paragraphs": lambda text, rule: _is_within(len([p for p in re.split(r"\n\s*\n", text) if p.strip()]), rule),
    "items": lambda text, rule: _is_within(len(_items(text, rule)), rule),
    "only_items": lambda text, rule: len(_items(text, rule)) == len(_lines(text)) > 0,
    "contains": lambda text, rule: all(_has(text, wanted) for wanted in rule["texts"]),
    "lacks": lambda text, rule: bool(text.strip()) and not any(_has(text, unwanted) for unwanted in rule["texts"]),
    "lacks_character": lambda text, rule: bool(text.strip()) and not set(rule["characters"]) & set(text.casefold()),
    "phrase": lambda text, rule: _is_within(count_phrase(text, rule["text"]), rule),
    "starts_with": lambda text, rule: text.strip().startswith(rule["text"]),
    "ends_with": lambda text, rule: text.strip().endswith(rule["text"]),
    "upper_case": lambda text, _: text.isupper(),
    "lower_case": lambda text, _: text.islower(),
    "exactly": _is_exactly,
    "script": _is_in_script,
    "language": _is_in_language,
    "acrostic": lambda text, rule: "".join(line[:1] for line in _lines(text)).upper() == rule["letters"],
    "sorted_lines": _is_sorted,
    "table": _is_table,
    "parts": lambda text, rule: len([part for part in text.split(rule["separator"]) if part.strip()]) == rule["count"],
    "matches": lambda text, rule: re.fullmatch(rule["pattern"], text.strip(), re.DOTALL) is not None,
}  # fmt: skip


def keeps_text_rule(text: str, rule: Rule) -> bool:
    """Whether a text keeps a rule; `rule["rule"]` names it."""
    return TEXT_RULES[rule["rule"]](text, rule)


def has_facts(text: str, check: Rule) -> bool:
    """Whether all required facts are told (each one of several wordings), and no forbidden one is."""
    told = all(_has(text, wanted) for wanted in check["required"])
    return told and not any(_has(text, unwanted) for unwanted in check.get("forbidden", ()))
