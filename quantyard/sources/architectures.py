"""Whether llama.cpp's converter knows a model's architecture, and which one that it knows comes nearest.

`converter_architectures.txt` is the list of the llama.cpp that the locks name; scripts/make_architectures.py writes it.
An image may hold a newer one, so an architecture that is not in it is looked for in the converter that would run, where
that is set up already.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping
from functools import cache
from pathlib import Path
from typing import Final

from quantyard.errors import UnsupportedModel

LIST_FILE: Final = Path(__file__).with_name("converter_architectures.txt")
# The converter goes by these themselves and not by their text part (get_model_architecture in conversion/base.py).
_WHOLE: Final = frozenset({
    "StepVLForConditionalGeneration", "Sarashina2VisionForCausalLM", "Exaone4_5_ForConditionalGeneration",
    "Step3p7ForConditionalGeneration", "KimiK3ForConditionalGeneration",
})  # fmt: skip
_TEXT_PARTS: Final = ("text_config", "llm_config", "lm_config", "thinker_config", "language_config")
_MAP: Final = re.compile(r"^TEXT_MODEL_MAP\b.*?^\}", re.MULTILINE | re.DOTALL)
_KEY: Final = re.compile(r"^\s*\"(\w+)\":", re.MULTILINE)
_REGISTERED: Final = re.compile(r"@ModelBase\.register\(([^)]*)\)|@Model\.register\(([^)]*)\)")
_KIND: Final = re.compile(r"(For\w+|LMHeadModel|Model)$")
_SIMILAR: Final = 0.7  # of difflib: "gptj" is to "gpt2", "opt" to "mpt" is not
_SHORT: Final = 3  # letters: a family's name has more
_SHOWN: Final = 3


def refuse_unsupported_architecture(config: Mapping[str, object], ask_converter: Callable[[], str | None]) -> None:
    """Refuse a model that the converter does not know, before anything is downloaded.

    Args:
        config: config.json.
        ask_converter: the text in which the converter that would run lists its architectures; None while it is not
            set up. Called only for an architecture that is not in our list.

    Raises:
        UnsupportedModel: the converter does not know its architecture.
    """
    name = source_architecture(config)
    if not name or name in known_architectures():
        return
    text = ask_converter()
    known = converter_architectures(text) if text else known_architectures()
    if known and name not in known:
        raise _unsupported_source_architecture(name, known, is_set_up=text is not None)


def source_architecture(config: Mapping[str, object]) -> str:
    """The class name that the converter goes by; "" where config.json does not say."""
    own = first_architecture(config)
    if own in _WHOLE:
        return own
    parts = (config.get(name) for name in _TEXT_PARTS)
    inner = (first_architecture(part) for part in parts if isinstance(part, Mapping))
    return next((name for name in inner if name), own)


@cache
def known_architectures() -> frozenset[str]:
    """Those of the llama.cpp that the locks name."""
    return listed_architectures(LIST_FILE)


def listed_architectures(path: Path) -> frozenset[str]:
    """The names in a list of ours."""
    lines = path.read_text(encoding="utf-8").splitlines()
    return frozenset(line for line in lines if line and not line.startswith("#"))


def converter_architectures(text: str) -> frozenset[str]:
    """The text models that a converter's source lists: `conversion/__init__.py`, or an older convert_hf_to_gguf.py."""
    if found := _MAP.search(text):
        return frozenset(_KEY.findall(found[0]))
    return frozenset(re.findall(r"\"(\w+)\"", " ".join("".join(groups) for groups in _REGISTERED.findall(text))))


def nearest_architectures(name: str, known: Collection[str]) -> list[str]:
    """The most similar names, of the same family first; three at most."""
    kind, stem = _KIND.search(name), _KIND.sub("", name)
    family = (re.match(r"[A-Z][a-z]+", stem) or re.match(r".*", stem))[0].lower()  # type: ignore[index]
    found = []
    for other in sorted(known, reverse=True):  # of equals the newest version first
        short = _KIND.sub("", other).lower()
        ratio = difflib.SequenceMatcher(None, stem.lower(), short).ratio()
        is_family = len(family) > _SHORT and short.startswith(family)
        if is_family or ratio >= _SIMILAR:
            found.append((not is_family, not (kind and other.endswith(kind[0])), -ratio, other))
    return [other for *_, other in sorted(found, key=lambda rank: rank[:3])[:_SHOWN]]


def first_architecture(config: Mapping[str, object]) -> str:
    """The first class that a config.json, or a part of one, names; "" without one."""
    names = config.get("architectures")
    first = names[0] if isinstance(names, list) and names else None
    return first if isinstance(first, str) and first.isidentifier() else ""


def _unsupported_source_architecture(name: str, known: Collection[str], *, is_set_up: bool) -> UnsupportedModel:
    near = nearest_architectures(name, known)
    nearest = f" The nearest that it knows: {', '.join(near)}." if near else ""
    of = "" if is_set_up else " of the llama.cpp that Quantyard is made for"
    message = f"The converter{of} does not know the architecture {name}.{nearest}"
    newer = "A newer llama.cpp may know it: LLAMA_CPP_TAG=full-bNNNN make images, then the same command again."
    return UnsupportedModel(message, f"{newer} What works is listed in docs/reference/architectures.md.")
