"""Whether a source has a chat template. A base model has none: it continues a text, and is not asked questions."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from typing import Final

from quantyard.formats.gguf import GgufHeader, why_gguf_cannot_generate

TOKENIZER_CONFIG: Final = "tokenizer_config.json"
BASE_MODEL_NOTE: Final = "It has no chat template: it is served and measured as a base model, which continues a text."
ENCODER_DECODER_NOTE: Final = (
    "An encoder-decoder: its encoder reads the prompt as plain text, its decoder writes the answer. llama-server "
    "cannot run it; Quantyard has a server for it."
)
_FILES: Final = ("chat_template.jinja", "chat_template.json")
_GENERATES: Final = ("ForCausalLM", "LMHeadModel", "ForConditionalGeneration")


def source_chat_template(names: Collection[str], read: Callable[[str], bytes]) -> bool | None:
    """Whether these files hold a chat template; None where tokenizer_config.json cannot be read.

    Args:
        names: the files of the source.
        read: the content of one of them.
    """
    if any(name in names for name in _FILES):
        return True
    if TOKENIZER_CONFIG not in names:
        return False
    try:
        config = json.loads(read(TOKENIZER_CONFIG))
    except (ValueError, RecursionError):
        return None
    return bool(config.get("chat_template")) if isinstance(config, dict) else None


def base_model_notes(has_chat_template: bool | None, config: Mapping[str, object]) -> tuple[str, ...]:
    """What the plan says of a model that generates text and has no chat template."""
    names = config.get("architectures")
    architecture = names[0] if isinstance(names, list) and names else ""
    if has_chat_template is False and config.get("is_encoder_decoder") is True:
        return (ENCODER_DECODER_NOTE,)
    generates = isinstance(architecture, str) and architecture.endswith(_GENERATES)
    return (BASE_MODEL_NOTE,) if has_chat_template is False and generates else ()


def gguf_chat_notes(gguf: GgufHeader) -> tuple[str, ...]:
    """The same, of a GGUF."""
    if gguf.chat_template or why_gguf_cannot_generate(gguf):
        return ()
    return (ENCODER_DECODER_NOTE if gguf.is_encoder_decoder else BASE_MODEL_NOTE,)
