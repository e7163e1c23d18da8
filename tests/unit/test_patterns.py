"""Patterns as constrainers read them: what the normal form matches, the original matches too, and it is JSON."""

from __future__ import annotations

import json
import re
from typing import Annotated

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pydantic import Field, TypeAdapter, ValidationError

from server.client.regex_subset import MAX_REPEATS, PatternRefused, normalise_client_regex

COMMON = frozenset("abcdefxZ0123456789 .-_/")  # no escape in JSON, and every dialect agrees about them
ATOMS = st.sampled_from([
    "a", "b", "Z", "7", " ", "-", "é", '"', "/", r"\d", r"\w", r"\s", r"\D", r"\W", r"\S", ".", r"\.", r"\\", r"\-",
    r"\(",
    r"\n", r"\t", r"\x41", "[a-f]", "[^a-f]", r"[\d.]", r"[^\s,]", r'["\\x]', "[]x]", r"[\]^-]", "[é-ü]",
])
QUANTIFIERS = st.sampled_from(["", "", "", "?", "*", "+", "{2}", "{1,3}", "{2,}", "*?", "{0}"])
BOUNDED = st.sampled_from(["", "", "?", "{2}", "{1,2}", "??"])  # of groups: `(a*)*` takes Python's own matcher for ever


def _grow(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    options = st.lists(st.lists(inner, max_size=2).map("".join), min_size=1, max_size=3).map("|".join)
    return st.tuples(st.one_of(options.map("({})".format), options.map("(?:{})".format)), BOUNDED).map("".join)


GROUPS = st.recursive(st.tuples(ATOMS, QUANTIFIERS).map("".join), _grow, max_leaves=4)
SEQUENCES = st.lists(GROUPS, max_size=3).map("".join)
ANCHORED = st.lists(SEQUENCES, min_size=1, max_size=2).map("|".join).map("^(?:{})$".format)
PATTERNS = st.one_of(
    ANCHORED, SEQUENCES, SEQUENCES.map("^{}".format), SEQUENCES.map("{}$".format),
    st.tuples(SEQUENCES, SEQUENCES).map("|^".join), st.tuples(SEQUENCES, SEQUENCES).map("$|".join),
)
BEYOND_LATIN = r"\xA0-\u2027\u202A-\uD7FF\uE000-\uFFFC\uFFFE-\U0010FFFF"  # Hypothesis lists each: a part will do
USUAL = settings(suppress_health_check=list(HealthCheck))


def _matches_in_pydantic(pattern: str, value: str) -> bool:
    """Pydantic has the regular expressions of Rust, which differ from Python's."""
    try:
        TypeAdapter(Annotated[str, Field(pattern=pattern)]).validate_python(value)
    except ValidationError:
        return False
    return True


@pytest.mark.commands
@USUAL
@given(PATTERNS, st.data())
def test_whatever_the_normal_form_matches_is_json_and_the_original_matches_it_in_two_dialects(pattern, data):
    written = data.draw(
        st.from_regex(normalise_client_regex(pattern).replace(BEYOND_LATIN, r"\xA0-\xFF"), fullmatch=True)
    )
    value = json.loads(f'"{written}"')
    assert re.search(pattern, value)
    assert _matches_in_pydantic(pattern, value)


@pytest.mark.commands
@USUAL
@given(PATTERNS, st.data())
def test_text_that_needs_no_escape_is_not_lost(pattern, data):
    value = data.draw(st.from_regex(pattern))
    assert re.search(pattern, value)
    if set(value) <= COMMON:
        assert re.fullmatch(normalise_client_regex(pattern), value)


@pytest.mark.parametrize(("pattern", "wanted"), [
    (r"^\d{5}$", "^[0-9]{5}$"),
    (r"^\d{5}(-\d{4})?$", "^[0-9]{5}(?:-[0-9]{4})?$"),
    (r"^\(\d{3}\)$", r"^[\x28][0-9]{3}[\x29]$"),
    ("^a$|^b$", "^(?:a|b)$"),
    (r"^ab\.*$", r"^ab[\x2E]*$"),
    ("^a{3,}$", "^(?:a){3}(?:a)*$"),
    ("^(|a)$", "^(?:(?:a)?)$"),
    ("^é$", r"^[\xE9]$"),
    ('^"$', r"^[\x5C][\x22]$"),
    (r"^\n$", r"^[\x5C]n$"),
    ("^$", "^$"),
])  # fmt: skip
def test_the_normal_form_is_short(pattern: str, wanted: str) -> None:
    assert normalise_client_regex(pattern) == wanted


@pytest.mark.parametrize(("pattern", "value"), [
    ("foo", "a foo b"), ("^foo", "foo b"), ("foo$", "a foo"), ("^a|b$", "ax"), ("^a|b$", "xb"), ("(^a|b)c", "xbcx"),
    ("(a|b)c(d|e$)", "xacdx"), ("(^a)(b$)", "ab"),
])  # fmt: skip
def test_a_pattern_that_is_not_anchored_leaves_room_around_it(pattern: str, value: str) -> None:
    assert re.search(pattern, value)
    assert re.fullmatch(normalise_client_regex(pattern), value)


def test_an_anchor_inside_a_group_still_binds() -> None:
    assert not re.fullmatch(normalise_client_regex("(^a|b)c"), "xac")
    assert not re.fullmatch(normalise_client_regex("(^a)(b$)"), "xab")


@pytest.mark.parametrize(("pattern", "reason"), [
    ("a(?=b)", "looks ahead or behind"), ("a(?!b)", "looks ahead or behind"), ("(?<=a)b", "looks ahead or behind"),
    (r"(a)\1", "refers back to a group"), ("(?P<x>a)(?P=x)", "refers back to a group"), (r"\bword\b", "word boundary"),
    ("(a)?(?(1)b|c)", "depends on a group"), ("(?i)a", "inline flags"), ("(?i:a)b", "inline flags"),
    ("a++", "possessive quantifier"), ("(?>ab)", "atomic group"),
    (r"\p{L}", "not a regular expression of every dialect"),
    ("[[:alpha:]]", "dialects disagree"), ("[a-z&&[^b]]", "dialects disagree"), ("a{,3}", "dialects disagree"),
    ("x^y", "anchor inside"), ("(", "not a regular expression"), (f"a{{{MAX_REPEATS + 1}}}", "the limit is"),
    ("(" * 60 + "ab" + ")?" * 60, "deep"), ("[\ud800]", "without any allowed character"),
])  # fmt: skip
def test_what_cannot_be_held_is_refused_with_the_reason(pattern: str, reason: str) -> None:
    with pytest.raises(PatternRefused, match=reason) as caught:
        normalise_client_regex(pattern)
    assert repr(pattern) in str(caught.value)
