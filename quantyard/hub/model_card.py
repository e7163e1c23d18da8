"""The licence, languages and tags of a source, from its README, from the Hub, or from a GGUF's metadata.

All of it is foreign text that ends up in our card: values are limited in length and number and have no control
characters; broken or hostile values are left out without an error.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal

from quantyard.formats.gguf_values import GgufArray
from quantyard.store.manifest import SourceCard

if TYPE_CHECKING:
    from huggingface_hub.hf_api import ModelInfo

Gated = Literal["", "auto", "manual"]
MAX_ITEMS: Final = 100  # languages, tags
_MAX_ARRAY_BYTES: Final = 64 * 1024  # of texts in a GGUF's metadata
_FRONT_MATTER_BYTES: Final = 128 * 1024  # some hold hundreds of results; a parse takes 5 s at worst
_MAX_TEXT: Final = 100  # characters of a name or tag
_MAX_LINK: Final = 500
_FIELDS: Final = ("license_name", "license_link", "language", "pipeline_tag", "tags")
_ABSENT: Final = frozenset({"", "~", "null"})  # how YAML writes nothing
_LANGUAGE: Final = re.compile(r"[A-Za-z]{2,16}(?:[-_][A-Za-z0-9]{1,8}){0,3}")
_TASK: Final = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+)*")
_REPO: Final = re.compile(r"\w[\w.-]*/\w[\w.-]*")
_LINK: Final = re.compile(r"(?:https?://)?[A-Za-z0-9._~/%?#&=+:@-]+")
# To recognise one more task among a GGUF's tags: add its name on the Hub.
PIPELINE_TAGS: Final = frozenset({
    "text-generation", "text2text-generation", "image-text-to-text", "image-to-text", "audio-text-to-text",
    "video-text-to-text", "any-to-any", "feature-extraction", "sentence-similarity", "text-ranking",
    "text-classification", "token-classification", "fill-mask", "question-answering", "summarization", "translation",
    "automatic-speech-recognition", "text-to-speech",
})  # fmt: skip


def hub_card_of_readme(text: str) -> tuple[str | None, SourceCard]:
    """The licence and the card in a README's YAML front matter; None and an empty card if it is unusable."""
    data = _hub_card_front_matter(text)
    asks = any(key.startswith("extra_gated_") for key in data)  # how, only the Hub knows
    card = _hub_card({**data, "gated": "auto" if asks else "", "private": False})
    return _hub_card_licence(data.get("license")), card


def hub_card_of_repo(info: ModelInfo) -> SourceCard:
    """The card of a model as the Hub describes it; `gated` comes from the Hub, not from the card."""
    data = {name: getattr(info.card_data, name, None) for name in _FIELDS}
    return _hub_card({**data, "pipeline_tag": info.pipeline_tag or data["pipeline_tag"], "gated": info.gated,
                      "private": info.private})


def hub_base_model(value: Any) -> str:
    """The one model that a card's `base_model` names, as org/name; "" for none and for several."""
    names = _hub_card_texts(value, lambda item: _hub_match(_REPO, item))
    return names[0] if len(names) == 1 else ""


def hub_base_model_of_readme(text: str) -> str:
    """The same from a README."""
    return hub_base_model(_hub_card_front_matter(text).get("base_model"))


def hub_card_of_gguf(metadata: Mapping[str, Any], path: Path | None = None) -> tuple[str | None, SourceCard]:
    """The licence and the card in a GGUF's metadata.

    Args:
        path: the file, for the arrays of languages and tags, which the header's reader skips.
    """
    tags = _gguf_texts_for_hub_card(metadata.get("general.tags"), path)
    data = {
        "license": metadata.get("general.license"),
        "license_name": metadata.get("general.license.name"),
        "license_link": metadata.get("general.license.link"),
        "language": _gguf_texts_for_hub_card(metadata.get("general.languages"), path),
        "pipeline_tag": next((tag for tag in tags if tag in PIPELINE_TAGS), None),
        "tags": tags,
    }
    return _hub_card_licence(data["license"]), _hub_card(data)


def _hub_card(data: Mapping[str, Any]) -> SourceCard:
    return SourceCard(
        license_name=_hub_card_text(data.get("license_name")),
        license_link=_hub_match(_LINK, data.get("license_link"), _MAX_LINK),
        gated=_hub_card_gated(data.get("gated")),
        private=data.get("private") is True,
        languages=_hub_card_texts(
            data.get("language"), lambda item: _hub_match(_LANGUAGE, "no" if item is False else item)
        ),
        pipeline_tag=_hub_match(_TASK, data.get("pipeline_tag")),
        tags=_hub_card_texts(data.get("tags"), _hub_card_text),
    )


def _hub_card_gated(value: Any) -> Gated:
    """Any other true value counts as "auto": the terms must be accepted before a download."""
    if value == "manual":
        return "manual"
    return "auto" if value else ""


def _hub_card_licence(value: Any) -> str | None:
    """Several licences are joined: no single one applies, so the user must state one."""
    return ", ".join(_hub_card_texts(value, _hub_card_text)) or None


# ---- the front matter --------------------------------------------------------------------------------


def _hub_card_front_matter(text: str) -> dict[str, Any]:
    """The mapping between the first two lines of ---; empty if it is missing or invalid."""
    if not text:
        return {}
    from quantyard.formats.strict_yaml import (  # imported late: many models have no card
        YamlProblem,
        load_strict_yaml,
        yaml_front_matter,
    )

    found = yaml_front_matter(text, 2 * _FRONT_MATTER_BYTES)
    try:  # untyped: otherwise the language `no` would be false, and a licence 1.0 a number
        data = load_strict_yaml(found or "", typed=False, max_bytes=_FRONT_MATTER_BYTES)
    except YamlProblem:
        return {}
    return data if isinstance(data, dict) else {}


# ---- clean values ------------------------------------------------------------------------------------


def _hub_card_text(value: Any, limit: int = _MAX_TEXT) -> str:
    """A short text of one line; "" for everything else."""
    if not isinstance(value, str):
        return ""
    text = value.strip()
    return text if len(text) <= limit and text.isprintable() and text not in _ABSENT else ""


def _hub_match(pattern: re.Pattern[str], value: Any, limit: int = _MAX_TEXT) -> str:
    text = _hub_card_text(value, limit)
    return text if pattern.fullmatch(text) else ""


def _hub_card_texts(value: Any, clean: Callable[[Any], str]) -> list[str]:
    """One or several texts, without duplicates, in order."""
    items = value if isinstance(value, list | tuple) else [value]
    found = dict.fromkeys(clean(item) for item in items[: 10 * MAX_ITEMS])
    return [text for text in found if text][:MAX_ITEMS]


# ---- arrays of a GGUF --------------------------------------------------------------------------------


def _gguf_texts_for_hub_card(value: Any, path: Path | None) -> list[str]:
    """The texts of an array, given as a list or read from the file; empty if they cannot be read."""
    if isinstance(value, list | tuple):
        return [item for item in value if isinstance(item, str)]
    if not isinstance(value, GgufArray) or path is None or value.element_type != "string":
        return []
    if value.length > MAX_ITEMS or value.size_bytes > _MAX_ARRAY_BYTES:
        return []
    try:
        with path.open("rb") as stream:
            stream.seek(value.offset)
            return _decoded_texts_for_hub_card(stream.read(value.size_bytes), value.length)
    except (OSError, struct.error, UnicodeDecodeError):
        return []


def _decoded_texts_for_hub_card(data: bytes, n: int) -> list[str]:
    """Decode strings: the length in bytes (64 bits, little-endian), then UTF-8."""
    texts, start = [], 0
    for _ in range(n):
        (length,) = struct.unpack_from("<Q", data, start)
        texts.append(data[start + 8 : start + 8 + length].decode())
        start += 8 + length
    return texts
