"""What a source says of itself, read without trust."""

from __future__ import annotations

import struct
import time
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub.hf_api import ModelInfo
from hypothesis import given
from hypothesis import strategies as st

from quantyard.formats.gguf_values import GgufArray
from quantyard.hub.model_card import MAX_ITEMS, hub_card_of_gguf, hub_card_of_readme, hub_card_of_repo
from quantyard.store.manifest import SourceCard

README = """---
license: other
license_name: lagoon-1.0
license_link: https://lagoon.example/license
language:
- en
- no
pipeline_tag: text-generation
tags: [conversational, math]
---

# Lagoon
"""


def readme(front_matter: str) -> tuple[str | None, SourceCard]:
    return hub_card_of_readme(f"---\n{front_matter}\n---\n# Text\n")


def test_a_readme_gives_its_licence_and_card() -> None:
    license_id, card = hub_card_of_readme(README)
    assert license_id == "other"
    assert card == SourceCard(
        license_name="lagoon-1.0", license_link="https://lagoon.example/license", languages=["en", "no"],
        pipeline_tag="text-generation", tags=["conversational", "math"],
    )


def test_windows_line_ends_and_a_byte_order_mark_do_no_harm() -> None:
    assert hub_card_of_readme("\ufeff" + README.replace("\n", "\r\n")) == hub_card_of_readme(README)


def test_norwegian_is_a_language_and_no_truth_value() -> None:
    assert readme("language: no")[1].languages == ["no"]


def test_several_licences_are_one_text_that_is_no_identifier() -> None:
    assert readme("license: [mit, cc-by-nd-4.0]")[0] == "mit, cc-by-nd-4.0"


@pytest.mark.parametrize("text", ["license:", "license: ~", "license: null", 'license: ""', "license: {a: b}", "x: 1"])
def test_a_licence_that_is_not_there_is_none(text: str) -> None:
    assert readme(text)[0] is None


def test_a_readme_that_asks_for_terms_to_be_accepted_is_gated() -> None:
    assert readme("license: mit\nextra_gated_prompt: Agree.")[1].gated == "auto"
    assert readme("license: mit\ngated: manual")[1].gated == ""


BOMB = "a: &a [x]\n" + "\n".join(f"{c}: &{c} [*{b}, *{b}]" for b, c in zip("abcdefgh", "bcdefghi", strict=True))


@pytest.mark.parametrize("front_matter", [
    "license: [", "- a list", "just text", "license: mit\nlicense: apache-2.0", "!!python/object/apply:os.system [ls]",
    "\x00", "? {a: b}\n: c", "[" * 20_000, "license: &x mit\nlanguage: *x", BOMB, "<<: *nothing", "@", "a: b: c",
])  # fmt: skip
def test_broken_or_hostile_front_matter_gives_an_empty_card(front_matter: str) -> None:
    start = time.process_time()
    assert readme(front_matter) == (None, SourceCard())
    assert time.process_time() - start < 5


@pytest.mark.parametrize("text", ["", "# Only text", "---\nlicense: mit\n", "text\n---\nlicense: mit\n---\n"])
def test_a_readme_without_front_matter_gives_an_empty_card(text: str) -> None:
    assert hub_card_of_readme(text) == (None, SourceCard())


def test_values_are_bounded_and_of_one_line() -> None:
    license_id, card = readme(
        'license: "mit\\nid: x"\nlicense_name: "' + "x" * 101 + '"\nlicense_link: "javascript:alert(1)"\n'
        'pipeline_tag: "</script>"\nlanguage: ["en", "e\\u202en", "<b>"]\n'
        "tags: [" + ", ".join(f"t{i}" for i in range(500)) + ', {a: b}, "bell\\x07"]'
    )
    assert license_id is None
    assert (card.license_name, card.license_link, card.pipeline_tag, card.languages) == ("", "", "", ["en"])
    assert card.tags == [f"t{i}" for i in range(MAX_ITEMS)]


@given(st.text())
def test_no_readme_whatsoever_is_an_error(text: str) -> None:
    for content in (text, f"---\n{text}\n---\n"):
        license_id, card = hub_card_of_readme(content)
        assert all(value.isprintable() for value in (license_id or "", card.license_name, *card.tags))


# ---- the Hub -----------------------------------------------------------------------------------------


def info(**fields: Any) -> ModelInfo:
    return ModelInfo(**{"id": "lagoon/Lagoon-1B", "private": False, "siblings": [], "tags": [], **fields})


def test_the_hubs_words_on_gate_and_task_win() -> None:
    card_data = {"license": "other", "license_name": "lagoon-1.0", "language": "en", "tags": ["math"],
                 "license_link": "LICENSE", "extra_gated_prompt": "Agree."}  # fmt: skip
    card = hub_card_of_repo(info(cardData=card_data, gated="manual", pipeline_tag="text-generation"))
    assert card == SourceCard(
        license_name="lagoon-1.0", license_link="LICENSE", gated="manual", languages=["en"],
        pipeline_tag="text-generation", tags=["math"],
    )


@pytest.mark.parametrize(("gated", "expected"), [(False, ""), (None, ""), ("auto", "auto"), (True, "auto")])
def test_a_gate_of_the_hub_is_carried_on(gated: Any, expected: str) -> None:
    assert hub_card_of_repo(info(gated=gated)).gated == expected


def test_a_hub_model_without_a_card_gives_an_empty_one() -> None:
    assert hub_card_of_repo(info()) == SourceCard()


def test_false_as_a_language_is_norwegian() -> None:
    assert hub_card_of_repo(info(cardData={"language": ["en", False]})).languages == ["en", "no"]


# ---- a GGUF ------------------------------------------------------------------------------------------


def array(path: Path, *texts: str, length: int | None = None) -> GgufArray:
    data = b"".join(struct.pack("<Q", len(t.encode())) + t.encode() for t in texts)
    path.write_bytes(b"\0" * 16 + data)
    return GgufArray("string", len(texts) if length is None else length, 16, len(data), "")


def test_a_gguf_gives_its_licence_and_card(tmp_path: Path) -> None:
    tags = array(tmp_path / "model.gguf", "math", "text-generation")
    metadata = {"general.license": "apache-2.0", "general.license.link": "LICENSE", "general.tags": tags,
                "general.languages": ["en"]}  # fmt: skip
    license_id, card = hub_card_of_gguf(metadata, tmp_path / "model.gguf")
    assert license_id == "apache-2.0"
    assert card == SourceCard(
        license_link="LICENSE", languages=["en"], pipeline_tag="text-generation", tags=["math", "text-generation"]
    )


def test_arrays_that_cannot_be_read_are_left_out(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    for tags in (array(path, "math", length=2), array(path, "math", length=1_000_000), 3, "math", None):
        assert hub_card_of_gguf({"general.tags": tags}, path) == (None, SourceCard())
    assert hub_card_of_gguf({"general.tags": array(path, "math")}, tmp_path / "missing")[1].tags == []
    assert hub_card_of_gguf({"general.tags": array(path, "math")})[1].tags == []


def test_metadata_of_other_types_is_no_licence() -> None:
    assert hub_card_of_gguf({"general.license": 7, "general.license.name": b"x"}) == (None, SourceCard())
