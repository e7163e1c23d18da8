"""The card's YAML metadata, which the Hub reads, with `model-index` for older readers."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

from quantyard.card.escaping import clean_card_text
from quantyard.card.hub_results import card_model_index
from quantyard.card.subject import CardSubject

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData

OWN_TAGS: Final = ("gguf", "quantized", "quantyard", "llama.cpp")
_MAX_TAGS: Final = 30
_MAX_LANGUAGES: Final = 200
# Tags that the Hub derives itself, or that describe the format of the source's weights.
_NOT_OURS: Final = frozenset({
    "transformers", "safetensors", "pytorch", "tf", "jax", "onnx", "openvino", "autotrain_compatible",
    "endpoints_compatible", "text-generation-inference",
})  # fmt: skip
_MADE_BY_HUB: Final = re.compile(r"^(?:license|base_model|region|dataset|language|deploy|model-index|diffusers):")
_LANGUAGE: Final = re.compile(r"([a-z]{2,3})((?:[-_][a-z0-9]{1,8})*)|(code|multilingual)", re.IGNORECASE)
_SCRIPT_LETTERS, _REGION_LETTERS = 4, 2
_PIPELINE: Final = re.compile(r"[a-z0-9]+(?:-[a-z0-9]+){0,6}")
_WEB: Final = re.compile(r"https?://\S+")
_FILE: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


def card_metadata(subject: CardSubject) -> ModelCardData:
    """The metadata, without the fields that have no value."""
    from huggingface_hub import ModelCardData

    card, hub = subject.manifest.source.card, subject.hub_source
    results = card_model_index(subject)
    owner = subject.context.repo_id.partition("/")[0]  # the account that publishes
    named: dict[str, Any] = {"model_name": subject.repo_name, "eval_results": results} if results else {}
    named |= {"quantized_by": owner} if owner else {}
    return ModelCardData(
        **_card_base_model(hub), **card_licence(subject), **card_languages(card.languages),
        pipeline_tag=card.pipeline_tag if _PIPELINE.fullmatch(card.pipeline_tag) else None,
        library_name="gguf", tags=card_tags(card.tags), **named,
    )  # fmt: skip


def _card_base_model(hub: str) -> dict[str, Any]:
    return {"base_model": hub, "base_model_relation": "quantized"} if hub else {}


def card_licence(subject: CardSubject) -> dict[str, Any]:
    """`license`; `license_name` if the Hub has no id for the licence; `license_link` if the source gives one."""
    card, stated = subject.manifest.source.card, subject.context.licence
    found: dict[str, Any] = {"license": stated.hub_id}
    name = card.license_name if stated.id == "other" else stated.id
    if stated.hub_id == "other" and name:
        found["license_name"] = clean_card_text(name)
    url = card.license_link.strip()
    if len(url) <= 400 and (_WEB.fullmatch(url) or _FILE.fullmatch(url)) and url == clean_card_text(url, 400):
        found["license_link"] = url
    return found


def card_languages(named: list[str]) -> dict[str, Any]:
    """`language`: codes of two or three letters, all that the Hub takes there; and as `language_bcp47` those that name
    a script or region too: pt_BR is pt, and pt-BR. Other names are left out.
    """
    codes, tags = dict[str, None](), dict[str, None]()
    for found in filter(None, map(_LANGUAGE.fullmatch, named[:_MAX_LANGUAGES])):
        code = (found[1] or found[3]).lower()
        codes[code] = None
        if found[2]:
            tags["-".join((code, *map(_card_language_subtag, re.split("[-_]", found[2])[1:])))] = None
    return {key: list(names) for key, names in (("language", codes), ("language_bcp47", tags)) if names}


def _card_language_subtag(text: str) -> str:
    """A script as Latn, a region as BR, all else in lower case: as RFC 5646 writes them."""
    is_script = len(text) == _SCRIPT_LETTERS and text.isalpha()
    is_region = len(text) == _REGION_LETTERS and text.isalpha()
    return text.title() if is_script else text.upper() if is_region else text.lower()


def card_tags(of_source: list[str]) -> list[str]:
    """Our tags, then those of the source."""
    words = (clean_card_text(tag, 80) for tag in of_source)
    carried = [word for word in words if word and word not in _NOT_OURS and not _MADE_BY_HUB.match(word)]
    return list(dict.fromkeys([*OWN_TAGS, *carried[:_MAX_TAGS]]))
