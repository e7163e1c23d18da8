"""Foreign text on its way to a terminal: what acts, hides or is a password comes out as words."""

from __future__ import annotations

import re
import unicodedata

import pytest

from quantyard.formatting.printable import printable, printable_line, printable_url, url_has_user_info

ACTING = {
    "escape": "\x1b", "bell": "\a", "backspace": "\b", "carriage return": "\r", "delete": "\x7f", "CSI of C1": "\x9b",
    "next line": "\x85", "right to left override": "\u202e", "isolate": "\u2066", "mark": "\u200f",
    "Arabic letter mark": "\u061c", "zero width space": "\u200b", "word joiner": "\u2060", "byte order mark": "\ufeff",
    "soft hyphen": "\u00ad", "tag": "\U000e0041", "line separator": "\u2028", "paragraph separator": "\u2029",
    "lone surrogate": "\udcff", "Hangul filler": "\u3164", "variation selector 17": "\U000e0100", "NUL": "\0",
    "a joiner after ASCII": "\u200d", "a selector after ASCII": "\ufe0f",
}  # fmt: skip


@pytest.mark.parametrize("sign", ACTING.values(), ids=ACTING.keys())
def test_what_a_terminal_obeys_or_nobody_sees_is_written_as_its_escape(sign: str) -> None:
    shown = printable(f"a{sign}b")
    assert re.fullmatch(r"a\\[\w]+b", shown) and shown.isascii()
    assert printable(shown) == shown


@pytest.mark.parametrize(
    "text",
    ["Ä ß ñ", "漢字 かな 한글", "עברית", "العربية", "می\u200cخواهم", "क्\u200dष", "👨\u200d👩\u200d👧",
     "❤\ufe0f\u200d🔥", "1\ufe0f\u20e3"],
)  # fmt: skip
def test_letters_of_every_script_and_emoji_stay_as_they_are(text: str) -> None:
    assert printable_line(text) == text


def test_line_ends_and_tabs_stay_only_where_several_lines_are_meant() -> None:
    assert printable("a\n\tb") == "a\n\tb" and printable_line("a\n\tb") == r"a\n\tb"


def test_no_control_or_format_character_is_left_of_all_that_unicode_has() -> None:
    """But for marks of Arabic and the like that are seen, and what joins letters after letters."""
    seen = re.compile("[\u0600-\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd\U00013430-\U0001345f]")
    for code in range(0x110000):
        sign = chr(code)
        if unicodedata.category(sign) in ("Cc", "Cf", "Cs", "Zl", "Zp") and sign not in "\n\t" and not seen.match(sign):
            assert sign not in printable(f"a{sign}"), hex(code)


def test_a_run_of_joiners_hides_nothing() -> None:
    assert "\\u200d" in printable("é" + 3 * "\u200d")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no way to https://me:word@host/x", "no way to https://me:***@host/x"),
        ("http://me:pass/w@rd@host", "http://me:***@host"), ("http://token@host", "http://***@host"),
        ("socks5h://me:1234@host:80", "socks5h://me:***@host:80"), ("(http://:word@host)", "(http://:***@host)"),
        ("https://hub.example/org/name@main", "https://hub.example/org/name@main"),
        ("http://127.0.0.1:8080/org/name@main", "http://127.0.0.1:8080/org/name@main"),
        ("org/name@main", "org/name@main"),
    ],
)  # fmt: skip
def test_a_password_in_an_address_is_never_shown(text: str, shown: str) -> None:
    assert printable_url(text) == shown and url_has_user_info(text) == (text != shown)


def test_a_token_that_somebody_sends_back_is_not_shown() -> None:
    said = f"Bearer hf_{'aB3' * 12} is wrong, says hf_hub_download"
    assert printable_url(said) == "Bearer hf_*** is wrong, says hf_hub_download"


def test_an_endless_line_of_addresses_costs_no_time() -> None:
    assert printable_url("://a:" * 20_000).startswith("://a:")
