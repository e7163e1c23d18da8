"""Nobody's words become markup: whatever a model, a tool or a user is called, the card's elements stay the same."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from functools import cache
from html.parser import HTMLParser
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given, settings
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from quantyard.card.escaping import (
    clean_card_text,
    escape_card_html,
    escape_markdown,
    markdown_code,
    markdown_code_block,
    markdown_link,
)
from quantyard.card.metadata import OWN_TAGS
from quantyard.card.render import CardContext, _card_environment, card_differences, render_card
from quantyard.formats.names import name_format_fault
from quantyard.plan.stages import STAGES
from quantyard.sources.licence import Licence
from quantyard.store.manifest import Manifest, SourceCard
from tests.cards import CONTEXT, PLOTS, whole
from tests.hostile.sampling import sampled
from tests.manifests import manifest_of

HOSTILE = [
    "a\n\n# Heading\n\n- item\n\n> quote", "x | y | z |\n| - |", "`` ` ``` ~~~", "<script>alert(1)</script>",
    "[x](javascript:alert(1))", "![x](https://evil.example/x.png)", "<https://evil.example>", "https://evil.example/x",
    "www.evil.example me@evil.example", "{{ 7 * 7 }}{% for x in y %}{# #}", "\n---\nlicense: mit\n---\n",
    "'\"&amp;&lt;b&gt;", ": [a, b] # c", "!!python/object:os.system x", "&a *a", "\u202egnp.exe\u2066 \u200f",
    "<!-- /quantyard:files -->", "--> <b>", "</details><h1>x</h1>", "- x", "1. x", "    code", "+ x", "***", "===",
    "\\", "$$x$$", "~~x~~", "**x** _y_", "a\tb\x00\x1b[31m\x85\u2028c", "\ud800", "x" * 10_000, "]]>", "%", "",
    "[ref]: https://evil.example", "^[note]", "|---|", "\\|", "\\`x`", "&#60;b&#62;", "~" * 5, "`" * 50, "@user",
    "\\|`` ` ``` ~~~a\tb\x00\x1b![x](https://evil.example/x.pn***",
]  # fmt: skip
# Not words: of a closed set, or read by us as a number, a time or a hash.
_DEFINED = Manifest.model_json_schema()["$defs"].values()
_FIELDS = set(Manifest.model_fields).union(*(definition.get("properties", {}) for definition in _DEFINED))
_CLOSED = {
    "kind", "verdict", "status", "outcome", "finished_at", "gated", "path", "include_path", "kld_percentiles",
    "schema_version", "sha256", "key", "commit", "engine", "model_file", "quantyard", "languages", "pipeline_tag",
}  # fmt: skip


_LABELS = {"BF16", *whole().quants}
_WORDS_BYTES = 80  # twice around a name, which has room for 255


def _around(found: str, words: str) -> str:
    """In front and behind; the sign in between keeps it from being a name or an address by chance. What files and
    stages are known by stays a name.
    """
    words = _name(words) if found in _LABELS else words
    return f"{words} {found} §{words}"


def _spoiled(value: Any, words: str) -> Any:
    """The same with `words` around every text and every name in it."""
    if isinstance(value, dict):
        return {_key(key, words): item if key in _CLOSED else _spoiled(item, _legal(key, item, words))
                for key, item in value.items()}  # fmt: skip
    if isinstance(value, list):
        return [_spoiled(item, words) for item in value]
    return _around(value, words) if isinstance(value, str) else value


def _legal(key: str, item: Any, words: str) -> str:
    """What a manifest takes: a file is called by a name."""
    return _name(words) if key == "file" and isinstance(item, str) else words


def _name(words: str) -> str:
    """What of them may stand in a name."""
    return "".join(c for c in words if not name_format_fault(c)).encode()[:_WORDS_BYTES].decode(errors="ignore")


def _key(key: str, words: str) -> str:
    """A field's name is ours; the key of a stage is its name and a label."""
    stage, space, label = key.partition(" ")
    if key in _FIELDS or stage in STAGES:
        return f"{stage} {_around(label, words)}" if space else key
    return _around(key, words)


def _hostile(words: str) -> tuple[Manifest, CardContext]:
    """A manifest in which everything that people or tools wrote is so."""
    card = SourceCard(license_name="n", license_link="https://l.example/", tags=["t"], languages=["en", "fr"],
                      pipeline_tag="text-generation")  # fmt: skip
    base = whole().model_copy(update={"source": manifest_of(card=card).source})
    data = _spoiled(json.loads(base.model_dump_json()), words)
    context = replace(
        CONTEXT, suite=_around("standard", words), oci=_around("r.example/x", words),
        licence=Licence(_around("other", words), "user", (_around("Notice", words),)),
        licence_text=f"text\n{words}\n{words}", plots=(*PLOTS, _around("plots/accuracy-light.svg", words)),
    )  # fmt: skip
    return Manifest.model_validate(data), context


_COMMONMARK = MarkdownIt("commonmark").enable("table")


class _Elements(HTMLParser):
    """What a browser would make of it."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: Counter[str] = Counter()
        self.addresses: set[str] = set()
        self.attributes: set[str] = set()
        self.words: list[str] = []
        self.heading = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags[tag] += 1
        for name, value in attrs:
            self.attributes.add(name)
            if name in ("href", "src", "srcset"):
                self.addresses.add(value or "")

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    def handle_endtag(self, tag: str) -> None:
        if tag == "h1":
            self.heading = "".join(self.words[-1:])


def _elements(card: str) -> _Elements:
    found = _Elements()
    found.feed(_COMMONMARK.render(ModelCard(card).text))
    del found.tags["code"]  # a name of other than plain letters is not set in code
    return found


@cache
def _harmless() -> _Elements:
    return _elements(render_card(*_hostile("plain")))


def _check_harmless(words: str) -> None:
    manifest, context = _hostile(words)
    card = render_card(manifest, context)
    found, plain = _elements(card), _harmless()
    assert found.tags == plain.tags
    assert found.addresses == plain.addresses
    assert found.attributes == plain.attributes
    assert found.heading == f"{clean_card_text(manifest.source.repo_id.rsplit('/', 1)[-1])} GGUF".strip()
    assert card_differences(card, manifest, context) == []
    _check_metadata(card, manifest, context)


def _check_metadata(card: str, manifest: Manifest, context: CardContext) -> None:
    data = yaml.safe_load(card.split("\n---\n", maxsplit=1)[0].removeprefix("---\n"))
    assert data["tags"] == list(dict.fromkeys([*OWN_TAGS, clean_card_text(manifest.source.card.tags[0], 80)]))
    assert (data["license"], data["license_name"]) == ("other", clean_card_text(context.licence.id))
    assert set(data) <= {
        "license", "license_name", "language", "pipeline_tag", "library_name", "tags", "quantized_by"
    }  # fmt: skip


@pytest.mark.commands
@pytest.mark.parametrize("words", sampled(HOSTILE, 15), ids=ascii)
def test_hostile_words_make_no_element_no_link_and_no_metadata(words: str) -> None:
    if "\ud800" in words:  # JSON cannot carry it into a manifest, so it can only come from a context
        assert escape_markdown(words) == "" and clean_card_text(words) == ""
        return
    _check_harmless(words)


MARKUP = st.text(st.sampled_from(list("ab1 \n\t|`*_[]()<>!#&;:/\\{}%$~^=+-.\"'@\u202e\u2028")), max_size=60)


@pytest.mark.commands
@settings(max_examples=30)
@given(st.one_of(MARKUP, st.text(st.characters(exclude_categories=("Cs",)), max_size=60)))
def test_no_text_at_all_makes_an_element_a_link_or_metadata(words: str) -> None:
    _check_harmless(words)


@given(st.one_of(MARKUP, st.text(max_size=80)))
def test_escaped_words_are_read_as_they_were_in_a_heading_a_cell_an_item_and_html(words: str) -> None:
    line = clean_card_text(words)
    for shown in (escape_markdown(words), markdown_code(words)):
        _same(f"# {shown}", "h1", line)
        _same(f"- {shown}", "li", line)
        _same(f"| a |\n| - |\n| {shown} |", "td", line)
    _same(f"<p>{escape_card_html(words)}</p>", "p", line)


def _same(markdown: str, tag: str, line: str) -> None:
    rendered = _COMMONMARK.render(markdown)
    found = _Elements()
    found.feed(rendered)
    assert set(found.tags) <= {tag, "code", "ul", "table", "thead", "tbody", "tr", "th", "p"}, rendered
    assert found.addresses == set()
    shown = clean_card_text("".join(found.words), 10_000)
    assert (shown.removeprefix("a").strip() if tag == "td" else shown) == line


@given(st.text(st.sampled_from(list("ab`~ \n\r\t<>-")), max_size=80))
def test_a_block_of_code_is_ended_by_nothing_in_it(body: str) -> None:
    tokens = _COMMONMARK.parse(f"before\n\n{markdown_code_block(body)}\n\nafter")
    assert [token.type for token in tokens if token.level == 0] == [
        "paragraph_open", "paragraph_close", "fence", "paragraph_open", "paragraph_close"
    ]  # fmt: skip


@pytest.mark.parametrize("url", ["javascript:alert(1)", "http://x.example", "https://x.example/a)b", "https://x y", ""])
def test_only_a_plain_address_becomes_a_link(url: str) -> None:
    assert markdown_link(escape_markdown("x"), url) == "x"


def test_what_the_template_writes_is_escaped_unless_it_was_made_safe() -> None:
    template = _card_environment().from_string("{{ x }} {{ y }}")
    assert template.render(x="<b>", y=escape_markdown("<b>")) == "&lt;b&gt; &lt;b&gt;"
    assert template.render(x="a" + escape_markdown("*"), y=1) == "a\\\\* 1".replace("\\\\*", "&#92;\\*")
