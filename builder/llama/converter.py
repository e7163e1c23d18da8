"""How the converter is run on a model: with which transformers, and on which config.json.

The converter reads config.json through transformers, and goes by the names that transformers 4.57 gives to its fields.
Later ones drop or rename some (`rotary_pct` of GPT-NeoX), and their tokenizer classes override the model's own file.
So it runs with 4.57, which lies in a folder of its own, in front of what is installed beside the converter. That one
runs for what 4.57 does not know: newer kinds of models, and files that transformers 5 wrote.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from builder.llama.toolchain import LlamaTools
from quantyard.formats.finite_json import dump_finite_json
from quantyard.formats.safetensors import SafetensorsError, read_safetensors_folder

Config = dict[str, Any]

_TYPES_FILE: Final = Path("transformers", "models", "auto", "configuration_auto.py")
NO_DRAFT_LAYERS: Final = "--no-nextn"  # of the converter: layers that predict further tokens are not expected
_NEW_MAJOR: Final = 5
_NEW_TOKENIZERS: Final = frozenset({"TokenizersBackend", "SentencePieceBackend"})
_PARTS: Final = ("text_config", "llm_config", "language_config")


@dataclass(frozen=True)
class Converter:
    """What runs the converter on one model."""

    folder: Path  # what it reads
    env: Mapping[str, str]
    transformers: str  # which one, and why, in a few words
    notes: tuple[str, ...] = ()  # what was written into config.json, a sentence each
    arguments: tuple[str, ...] = ()  # of its command line


@dataclass(frozen=True)
class _Completion:
    """A field that transformers fills in otherwise than the model's authors meant, once it is left out."""

    applies: Callable[[Config], bool]
    fields: Callable[[Config], Config]  # None leaves a field out
    note: str


def _is_falcon_7b(config: Config) -> bool:
    old = config.get("multi_query") is True and not config.get("new_decoder_architecture")
    return config.get("model_type") in ("falcon", "RefinedWebModel") and old and config.get("num_kv_heads") is None


def _rope_turned_share(config: Config) -> float:
    """The share of a head that the rope turns, as transformers 5 writes it; 0: not written."""
    rope = config.get("rope_parameters")
    share = rope.get("partial_rotary_factor") if isinstance(rope, dict) else None
    return share if isinstance(share, int | float) else 0


def _is_renamed_neox(config: Config) -> bool:
    return config.get("model_type") == "gpt_neox" and "rotary_pct" not in config and _rope_turned_share(config) > 0


# To add one: see the converter fail on the file as the Hub has it, and add the row with a test of it.
_COMPLETIONS: Final = (
    _Completion(
        _is_falcon_7b, lambda _config: {"num_kv_heads": 1},
        "num_kv_heads is 1 in a Falcon with multi_query; config.json leaves it out, and transformers says otherwise.",
    ),
    _Completion(
        _is_renamed_neox, lambda config: {"rotary_pct": _rope_turned_share(config), "model_type": None},
        "rotary_pct is partial_rotary_factor in the rope_parameters that transformers 5 writes; the converter asks for "
        "the old name, which transformers 5 drops unless the file has no model_type.",
    ),
)


def open_converter(tools: LlamaTools, source: Path, scratch: Path) -> Converter:
    """The converter for the model in `source`; `scratch` takes the folder that it reads, where it is another one."""
    config = _read_converter_object(source / "config.json")
    own = [row for row in _COMPLETIONS if row.applies(config)]
    folder = _completed_converter_source(source, config, own, scratch / "completed") if own else source
    reason = _needs_installed_transformers(
        tools.transformers4, config, _read_converter_object(source / "tokenizer_config.json")
    )
    notes, arguments = tuple(row.note for row in own), _converter_arguments(config, source)
    if tools.transformers4 is None or reason:
        why = f"the installed one: {reason or 'there is no other'}"
        return Converter(folder, tools.clean_env, why, notes, arguments)
    env = {**tools.clean_env, "PYTHONPATH": str(tools.transformers4)}
    return Converter(folder, env, "4.57: the converter was made for it", notes, arguments)


def _converter_arguments(config: Config, source: Path) -> tuple[str, ...]:
    """Qwen3-Next is released with layers that draft; what Transformers saves, a fine-tune or a twin, has none."""
    if config.get("model_type") != "qwen3_next" or config.get("mtp_num_hidden_layers"):
        return ()
    try:
        names = (name for file in read_safetensors_folder(source) for name in file.tensors)
        return () if any(name.startswith("mtp.") for name in names) else (NO_DRAFT_LAYERS,)
    except SafetensorsError:
        return ()


def _needs_installed_transformers(folder: Path | None, config: Config, tokenizer: Config) -> str:
    """Why 4.57 will not do; "" where it will."""
    parts = [config, *(part for name in _PARTS if isinstance(part := config.get(name), dict))]
    version = re.match(r"\d+", str(config.get("transformers_version", "")))
    if (version and int(version[0]) >= _NEW_MAJOR) or any("rope_parameters" in part for part in parts):
        return "transformers 5 wrote config.json"
    if tokenizer.get("tokenizer_class") in _NEW_TOKENIZERS:
        return "transformers 5 wrote tokenizer_config.json"
    kind = config.get("model_type")
    if folder and isinstance(kind, str) and "auto_map" not in config and not _converter_knows(folder, kind):
        return f"4.57 does not know the model type {kind}"
    return ""


def _converter_knows(folder: Path, model_type: str) -> bool:
    try:
        return f'("{model_type}", ' in (folder / _TYPES_FILE).read_text(encoding="utf-8")
    except OSError:
        return False


def _completed_converter_source(source: Path, config: Config, rows: list[_Completion], folder: Path) -> Path:
    """A folder with links to the model's files, and config.json with these fields."""
    folder.mkdir(parents=True)
    for path in source.iterdir():
        if path.name != "config.json":
            (folder / path.name).symlink_to(path.absolute())
    for row in rows:
        fields = row.fields(config)
        left_out = {name for name, value in fields.items() if value is None}
        config = {name: value for name, value in {**config, **fields}.items() if name not in left_out}
    (folder / "config.json").write_text(dump_finite_json(config, indent=2) + "\n")
    return folder


def _read_converter_object(path: Path) -> Config:
    """A JSON object; {} where there is none to read: who needs it says so."""
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}
