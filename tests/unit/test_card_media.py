"""What the card of a model that reads pictures or sound says of its projector."""

from __future__ import annotations

from typing import Any

import pytest

from quantyard.card.render import render_card
from quantyard.protocol.base import FileEntry
from quantyard.store.manifest import Manifest, ProjectorRecord
from tests.cards import CONTEXT
from tests.evaluations import LARGE
from tests.manifests import manifest_of, sha256_of

STAGE = "projector"
FILES = [
    FileEntry(path=f"mmproj-Lagoon-{kind}.gguf", size_bytes=size, sha256=sha256_of(kind))
    for kind, size in (("F16", 852_000_000), ("Q8_0", 453_000_000))
]
FACTS: dict[str, Any] = {"media": ["vision"], "n_same": 400, "n_moved": 12, "n_computed": 1, "q8_0_error": 0.0057}


@pytest.fixture(scope="module")
def text_only() -> Manifest:
    return manifest_of(LARGE)


def with_projector(manifest: Manifest, **record: Any) -> str:
    made = next(iter(manifest.stages.values())).model_copy(update={"facts": FACTS})
    projector = ProjectorRecord(media=["vision"], **record)
    changed = {"projector": projector, "stages": {**manifest.stages, STAGE: made}}
    return render_card(manifest.model_copy(update=changed), CONTEXT)


def test_it_names_the_files_the_command_and_how_many_tensors_are_the_originals(text_only: Manifest) -> None:
    card = with_projector(text_only, files=FILES, made_by=STAGE)
    assert "It reads pictures with `mmproj-Lagoon-F16.gguf` (852 MB), or `mmproj-Lagoon-Q8_0.gguf` (453 MB)" in card
    assert "--mmproj mmproj-Lagoon-F16.gguf" in card
    assert "412 of its 413 tensors hold the original's values, 12 of them in another order; 1 were computed" in card
    assert "more than 0.57 % (RMS)" in card


def test_without_the_smaller_file_nothing_is_said_of_its_error(text_only: Manifest) -> None:
    card = with_projector(text_only, files=FILES[:1], made_by=STAGE)
    assert "mmproj-Lagoon-F16.gguf" in card and "RMS" not in card and "Q8_0.gguf` (453" not in card


@pytest.mark.parametrize(("left_out", "why"), [("asked", "PARTS=text"), ("unsupported", "llama.cpp cannot convert")])
def test_what_was_left_out_is_said_with_the_reason(left_out: str, why: str, text_only: Manifest) -> None:
    card = with_projector(text_only, left_out=left_out)
    assert "The original reads pictures too." in card and why in card and "these files read text alone" in card
    assert "--mmproj" not in card


def test_the_card_of_a_text_model_says_nothing_of_pictures(text_only: Manifest) -> None:
    card = render_card(text_only, CONTEXT)
    assert "pictures" not in card and "mmproj" not in card
