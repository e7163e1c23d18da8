"""The errors for a repo or folder that is not a model, each with what to type instead; decided by its files.

Users also name adapters, trainers' folders, caches and weights of other frameworks. Each kind has its own message.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Collection
from typing import Final

from quantyard.errors import BadSource
from quantyard.formats.names import shown_names
from quantyard.hub.weight_files import is_path_title
from quantyard.records import dataclass

_CHECKPOINT: Final = re.compile(r"^checkpoint-(\d{1,12})/")
_SNAPSHOT: Final = re.compile(r"^snapshots/([0-9a-f]{40})/")
_ADAPTER: Final = "adapter_config.json"


@dataclass(frozen=True)
class _Kind:
    """A kind of folder: the files that identify it (patterns of whole paths), its description, and the hint."""

    shown_by: tuple[str, ...]
    what: Callable[[str, list[str]], str]
    hint: Callable[[str, list[str]], str]


def no_model_error(title: str, names: Collection[str]) -> BadSource:
    """The error for a repo or folder whose files are not a model.

    Args:
        title: its path or repo id, as typed, for the hints.
        names: its files, paths from its top.
    """
    for kind in _KINDS:
        found = [sorted(name for name in names if re.fullmatch(pattern, name)) for pattern in kind.shown_by]
        if all(found):
            return BadSource(f"{title} {kind.what(title, found[0])}.", kind.hint(title, found[0]))
    message = f"{title} holds no weights that could be converted: {shown_names(sorted(names), 12) or 'no files'}."
    return BadSource(message, "Name a repo with *.safetensors and a config.json, or with *.gguf.")


def _newest_checkpoint(pattern: re.Pattern[str], found: list[str]) -> str:
    """The folder of the highest number (checkpoint-1500) or the last name."""
    matches = [match for name in found if (match := pattern.match(name))]
    best = max(matches, key=lambda match: (int(match[1]) if match[1].isdigit() else 0, match[1]))
    return best[0].rstrip("/")


def _model_inside_folder(title: str, folder: str, command: str, setting: str) -> str:
    if is_path_title(title):
        return f"Name one of its folders: make {command} {setting}={shlex.quote(f'{title}/{folder}')}"
    get = f"hf download {title} --include '{folder}/*' --local-dir {title.rsplit('/', 1)[-1]}"
    return f"Download the one you want, and name its folder: {get}"


def _make_adapter(title: str, _found: list[str]) -> str:
    return f"An adapter is converted by: make lora ADAPTER={shlex.quote(title)}"


# To recognize one more kind: add a row; the first match decides. Every pattern of `shown_by` must match a file.
_KINDS: Final = (
    _Kind(
        (r"adapter_config\.json",),
        lambda _title, _found: f"is a LoRA adapter in PEFT format ({_ADAPTER}), not a whole model", _make_adapter,
    ),
    _Kind(
        (r"checkpoint-\d+/adapter_config\.json",),
        lambda _title, found: f"is a trainer's folder of adapters: {shown_names(found)}",
        lambda title, found: _model_inside_folder(title, _newest_checkpoint(_CHECKPOINT, found), "lora", "ADAPTER"),
    ),
    _Kind(
        (r"checkpoint-\d+/(?:model|pytorch_model)[^/]*\.(?:safetensors|bin)",),
        lambda _title, found: f"is a trainer's folder, and its models are one level below: {shown_names(found)}",
        lambda title, found: _model_inside_folder(title, _newest_checkpoint(_CHECKPOINT, found), "build", "MODEL"),
    ),
    _Kind(
        (r"snapshots/[0-9a-f]{40}/.+",),
        lambda _title, _found: "is a repo of the Hub's cache, and its models are below, one for each revision",
        lambda title, found: _model_inside_folder(title, _newest_checkpoint(_SNAPSHOT, found), "build", "MODEL"),
    ),
    _Kind(
        (r"(?:.*/)?(?:zero_to_fp32\.py|[^/]*_optim_states\.pt|mp_rank_\d+_model_states\.pt)",),
        lambda _title, _found: "is a checkpoint of DeepSpeed, whose weights are in parts by process",
        lambda _title, _found: "Join them first, in that folder: python zero_to_fp32.py . . --safe_serialization",
    ),
    _Kind(
        (r"(?:.*/)?[^/]*\.distcp",),
        lambda _title, _found: "is a checkpoint of FSDP, whose weights are in parts by process (*.distcp)",
        lambda title, _found: f"Join them first: accelerate merge-weights {shlex.quote(title)} merged",
    ),
    _Kind(
        (r"model_index\.json",),
        lambda _title, _found: "is a diffusion pipeline (model_index.json), not a language model",
        lambda _title, _found: "Name a language model: make build MODEL=org/name",
    ),
    _Kind(
        (r"(?:consolidated[^/]*\.(?:safetensors|pth)|tokenizer\.model\.v3|tekken\.json)", r"params\.json"),
        lambda _title, found: f"is in its publisher's own format ({shown_names(found)}, params.json)",
        lambda _title, _found: "Name the repo that holds config.json and model*.safetensors; it often ends in -hf.",
    ),
    _Kind(
        (r"[^/]*\.safetensors", r"config\.json"),
        lambda _title, found: f"holds no weights of a name the converter reads: {shown_names(found)}",
        lambda _title, _found: "Without an index it reads only model*.safetensors: rename the file if it is the model.",
    ),
    _Kind(
        (r"(?:optimizer|scheduler|rng_state[^/]*|training_args)\.(?:pt|pth|bin)", r"config\.json"),
        lambda _title, found: f"holds a trainer's state ({shown_names(found)}) and no weights",
        lambda _title, _found: "Save the model beside it: trainer.save_model(), or model.save_pretrained(folder).",
    ),
    _Kind(
        (r"[^/]*\.(?:safetensors|bin|pt|pth|ckpt)",),
        lambda _title, found: f"holds weights but no config.json: {shown_names(found)}",
        lambda _title, _found: "Name a whole model in Hugging Face format, as save_pretrained writes it.",
    ),
    _Kind(
        (r".+\.safetensors",),
        lambda _title, found: f"holds no whole model at its top, only {shown_names(found)}",
        lambda _title, _found: "Such a repo is not a language model in Hugging Face format: name the model itself.",
    ),
    _Kind(
        (r".+/[^/]+\.(?:bin|pt|pth|ckpt)",),
        lambda _title, found: f"holds no weights of a name the converter reads: {shown_names(found)}",
        lambda _title, _found: "It reads model*.safetensors and pytorch_model*.bin at the top of a repo.",
    ),
    _Kind(
        (r"(?:.*/)?(?:tf_model[^/]*\.h5|flax_model[^/]*\.msgpack|[^/]*\.(?:onnx|npz|h5|msgpack|nemo|keras))",),
        lambda _title, found: f"holds only weights of another framework: {shown_names(found)}",
        lambda _title, _found: "Name its repo in Hugging Face format; Transformers reads and saves some (from_tf).",
    ),
    _Kind(
        (r".+\.gguf",),
        lambda _title, found: f"holds no GGUF that is a whole model, only {shown_names(found)}",
        lambda _title, _found: "A projector, an importance matrix or an adapter belongs to a model: name that.",
    ),
)  # fmt: skip
