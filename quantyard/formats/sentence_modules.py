"""The files that sentence-transformers keeps beside a model's weights: what a text goes through, step by step.

`modules.json` lists the modules and the folder of each; that of the pooling has a `config.json` with the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from quantyard.formats.purpose import DEFAULT_POOLING, Pooling

MODULES_FILE: Final = "modules.json"
_POOLING_FOLDER: Final = "1_Pooling"
_CONVERTED: Final = ("Transformer", "Pooling", "Normalize")
# The older files have a truth value for each way, the newer ones a name.
_POOLINGS: Final[tuple[tuple[str, str, Pooling], ...]] = (
    ("pooling_mode_mean_tokens", "mean", "mean"), ("pooling_mode_cls_token", "cls", "cls"),
    ("pooling_mode_lasttoken", "lasttoken", "last"),
)  # fmt: skip


def sentence_modules(modules: object) -> list[tuple[str, str]]:
    """Kind and folder of each module of a `modules.json`: [("Transformer", ""), ("Pooling", "1_Pooling")]."""
    if not isinstance(modules, list):
        return []
    return [
        (str(module.get("type", "")).rpartition(".")[2], str(module.get("path", "")))
        for module in modules if isinstance(module, Mapping)
    ]  # fmt: skip


def pooling_file(modules: object) -> str:
    """The file that says how hidden states are pooled."""
    folders = (path for kind, path in sentence_modules(modules) if kind == "Pooling")
    return f"{next(folders, _POOLING_FOLDER)}/config.json"


def modules_left_out(modules: object) -> tuple[str, ...]:
    """The folders of modules that a GGUF does not have, such as a dense layer after the pooling."""
    return tuple(path for kind, path in sentence_modules(modules) if kind not in _CONVERTED)


def read_pooling(found: object) -> Pooling:
    """How a text's hidden states become one vector, by the content of `pooling_file`."""
    if isinstance(found, Mapping):
        for key, name, pooling in _POOLINGS:
            if found.get(key) is True or found.get("pooling_mode") == name:
                return pooling
    return DEFAULT_POOLING
