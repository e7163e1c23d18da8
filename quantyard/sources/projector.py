"""The part of a model that reads pictures or sound: an encoder and a projector, which llama.cpp keeps in a file of its
own (mmproj).

`converter_projectors.txt` is the list of those that the llama.cpp of the locks converts, like
`converter_architectures.txt` beside it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Final, Literal

from quantyard.errors import UnsupportedModel
from quantyard.formats.gguf import MEDIUM_WORDS, Medium
from quantyard.protocol.builder import Parts
from quantyard.quants.file_size import TensorShape
from quantyard.records import dataclass
from quantyard.sources.architectures import first_architecture, listed_architectures

PROJECTORS_FILE: Final = Path(__file__).with_name("converter_projectors.txt")
# Why there is no projector although the model has one: the user left it out, or the converter cannot make it.
LeftOut = Literal["", "asked", "unsupported"]

# To recognize one more key of config.json: add it to its medium.
_KEYS: Final[Mapping[Medium, tuple[str, ...]]] = {
    "vision": ("vision_config", "vision_encoder", "vt_config", "visual"),
    "audio": ("audio_config", "audio_encoder", "whisper_config", "speech_config"),
}
_NESTED: Final = ("thinker_config",)  # of models that also speak; the part that hears and sees is in here
# Names of tensors that text models have not; what the converter itself leaves out of a text model.
_TENSORS: Final = re.compile(
    r"^(vit|vpm|siglip2|conformer|merger|resampler|sound_encoder|sound_projection|apm)\."
    r"|vision|visual\.|audio|connector\.|projector\.|patch_embed|image_newline|patch_merger|embed_vision"
)
_MAP: Final = re.compile(r"^MMPROJ_MODEL_MAP\b.*?^\}", re.MULTILINE | re.DOTALL)
_KEY: Final = re.compile(r"^\s*\"(\w+)\":", re.MULTILINE)
# Of architectures that are asked about nothing but pictures or sound: their text model alone answers nothing.
_ONLY_MEDIA: Final = re.compile(r"OCR|Ocr|ASR|Asr|asr|Speech|Whisper|Voxtral")


@dataclass(frozen=True)
class Projector:
    """What a model reads besides text, and whether a projector is made for it. `size_bytes`: expected, of F16."""

    media: tuple[Medium, ...]
    architecture: str
    size_bytes: int = 0
    left_out: LeftOut = ""

    @property
    def words(self) -> str:
        """Such as "vision, audio"."""
        return ", ".join(self.media)


def find_projector(
    config: Mapping[str, object], tensors: Sequence[TensorShape] | None, parts: Parts,
    ask_converter: Callable[[], str | None],
) -> Projector | None:
    """What a model reads besides text; None of a text model, also of one whose config.json alone names other parts.

    Args:
        tensors: of its weights; None: not known.
        ask_converter: see `refuse_unsupported_architecture`.

    Raises:
        UnsupportedModel: the converter has no projector for it, and its text model alone is of no use.
    """
    media = tuple(medium for medium in _KEYS if _source_has_medium(config, medium))
    own = projector_tensors(tensors or ())
    if not media or (tensors is not None and not own):
        return None
    architecture = projector_architecture(config)
    size_bytes = 2 * sum(math.prod(tensor.shape) for tensor in own)
    if parts == "text":
        return Projector(media, architecture, size_bytes, "asked")
    if _is_source_projector_known(architecture, ask_converter):
        return Projector(media, architecture, size_bytes)
    if _ONLY_MEDIA.search(architecture):
        message = f"The converter makes no projector for {architecture}, and its text model alone answers nothing."
        newer = "A newer llama.cpp may know it: LLAMA_CPP_TAG=full-bNNNN make images, then the same command again."
        raise UnsupportedModel(message, f"{newer} To build the text model all the same: PARTS=text")
    return Projector(media, architecture, size_bytes, "unsupported")


def projector_note(projector: Projector) -> str:
    """What the plan says of a projector that is not made; "" of one that is."""
    if projector.left_out == "asked":
        return f"PARTS=text leaves out what reads {_media_read_by_source(projector.media)}."
    if projector.left_out:
        return (
            f"The converter makes no projector for {projector.architecture}: the text model is built alone, and does "
            f"not read {_media_read_by_source(projector.media)}."
        )
    return ""


def projector_tensors(tensors: Sequence[TensorShape]) -> list[TensorShape]:
    """Those of these tensors that are not the text model's."""
    return [tensor for tensor in tensors if _TENSORS.search(tensor.name) and "language_model." not in tensor.name]


def text_model_tensors(config: Mapping[str, object], tensors: tuple[TensorShape, ...]) -> tuple[TensorShape, ...]:
    """Those of its text model."""
    if not any(_source_has_medium(config, medium) for medium in _KEYS):
        return tensors
    others = {tensor.name for tensor in projector_tensors(tensors)}
    return tuple(tensor for tensor in tensors if tensor.name not in others)


def projector_architecture(config: Mapping[str, object]) -> str:
    """The class name that the converter goes by for a projector; "" where config.json does not say."""
    vision = config.get("vision_config")
    own = first_architecture(vision) if isinstance(vision, Mapping) else ""
    return own or first_architecture(config)


@cache
def known_projectors() -> frozenset[str]:
    """The architectures whose projectors the llama.cpp of the locks converts."""
    return listed_architectures(PROJECTORS_FILE)


def converter_projectors(text: str) -> frozenset[str]:
    """Those that a converter's source lists (`conversion/__init__.py`); empty for an older one."""
    found = _MAP.search(text)
    return frozenset(_KEY.findall(found[0])) if found else frozenset()


def _is_source_projector_known(architecture: str, ask_converter: Callable[[], str | None]) -> bool:
    if architecture in known_projectors():
        return True
    text = ask_converter()
    return bool(text) and architecture in converter_projectors(text or "")


def _source_has_medium(config: Mapping[str, object], medium: Medium) -> bool:
    places = [config, *(inner for name in _NESTED if isinstance(inner := config.get(name), Mapping))]
    return any(isinstance(place.get(key), Mapping) for place in places for key in _KEYS[medium])


def _media_read_by_source(media: Sequence[Medium]) -> str:
    return " and ".join(MEDIUM_WORDS[medium] for medium in media)
