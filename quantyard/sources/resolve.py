"""Resolves MODEL: a GGUF file, a folder, a repo of the Hub, or a preset."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from quantyard.errors import BadSource, NeedsPermission
from quantyard.files.own_files import kind_of_path, typed_file_path
from quantyard.formats.names import shown_name
from quantyard.formats.quantized_weights import WeightQuantization
from quantyard.hub.access import HubAccess
from quantyard.hub.files import parse_hub_repo_id
from quantyard.protocol.builder import OutType
from quantyard.quants.catalog import Quant
from quantyard.sources.local_source import local_folder_source, local_gguf_source
from quantyard.sources.presets import Preset, find_preset, refuse_unsupported_preset, split_preset_name
from quantyard.sources.source import Source
from quantyard.store.artifact import ModelId
from quantyard.store.hash_cache import HashCache
from quantyard.store.manifest import read_manifest

__all__ = ["Source", "find_source", "is_source_path", "recall_source", "refuse_quantized_source"]

_COMMIT = re.compile(r"^[0-9a-f]{40}$")


def find_source(
    model: str, access: HubAccess, hashes: HashCache, *, allow_pickle: bool, gguf_file: str | None
) -> Source:
    """Resolve MODEL: a GGUF file, a folder, a Hub repo id, or the name of a preset.

    A path wins over a repo id only if it says that it is one (`./`, `/`, `~`, `.gguf`) or is a folder with
    a config.json. A name that is not a path and has no slash is a preset.

    Raises:
        BadSource, NeedsPermission: the local source cannot be built from, or no preset has this name.
        HubError: the Hub said no.
    """
    if "\0" in model or not model.strip() or model.startswith("-"):
        raise BadSource(f"{shown_name(model)} is not a model.", "Name one: make build MODEL=org/name")
    path = typed_file_path(model)
    kind = kind_of_path(path)
    if kind == "folder" and (is_source_path(model) or kind_of_path(path / "config.json")):
        return local_folder_source(path.absolute(), hashes, allow_pickle=allow_pickle, gguf_file=gguf_file)
    if kind == "file":
        return local_gguf_source(path.absolute(), hashes)
    if is_source_path(model) and not (model.startswith("..") and model.count("/") == 1):
        hint = "Give a path that exists, or a Hub id: MODEL=org/name"
        raise BadSource(f"There is no file or folder {shown_name(model, 300)}.", hint)
    from quantyard.sources.hub_source import hub_source  # imported late: a folder needs no client of the Hub

    repo, preset = _hub_repo_of_source(model)
    wanted = gguf_file or (preset.gguf_file if preset else None)
    return replace(hub_source(repo, access, allow_pickle=allow_pickle, gguf_file=wanted), preset=preset)


def _hub_repo_of_source(model: str) -> tuple[str, Preset | None]:
    """The repo and revision, and the preset if its name was typed."""
    if "/" in model:
        return model, None
    name, typed = split_preset_name(model)
    preset = find_preset(name)
    refuse_unsupported_preset(preset)
    revision = preset.revision if typed is None else typed
    return preset.repo if revision is None else f"{preset.repo}@{revision}", preset


def is_source_path(model: str) -> bool:
    """Whether the text is written like a path."""
    return model.startswith(("/", "./", "../", "~")) or model.endswith(".gguf")


def refuse_quantized_source(source: Source, quants: tuple[Quant, ...], outtype: OutType, *, allowed: bool) -> None:
    """Refuse to quantize an already quantized file, or one converted with such an OUTTYPE, unless the user allows it.

    Raises:
        NeedsPermission: ALLOW_REQUANTIZE is not set.
    """
    if allowed or not (source.is_quantized or (source.kind == "huggingface" and outtype == "q8_0")):
        return
    outtype = source.outtype(outtype)[0] if source.kind == "huggingface" else outtype
    if again := [q.name for q in quants if not source.keeps(q) and not source.is_already(q, outtype)]:
        what = _quantized_source_words(source)
        message = f"{what}; making {', '.join(again)} of it loses more quality than usual."
        original = f" (MODEL={source.base_model})" if source.base_model and source.quantization else ""
        raise NeedsPermission(message, f"Start from the 16-bit model{original}, or allow it: ALLOW_REQUANTIZE=1")


def _quantized_source_words(source: Source) -> str:
    if source.quantization is not None:
        return f"{source.title} is quantized already: {source.quantization.title}"
    return f"{source.gguf_file or 'With OUTTYPE=q8_0 the conversion'} is quantized already"


def recall_source(artifacts: Path, model: str) -> Source | None:
    """The source that an earlier build recorded, for `org/name@<full commit>` or a preset with a full commit; otherwise
    None.
    """
    repo, preset = _hub_repo_of_source(model)
    repo_id, commit = parse_hub_repo_id(repo)
    if commit is None or not _COMMIT.match(commit):
        return None
    org, name = repo_id.split("/", 1)
    model_id = ModelId(org, name, commit)
    manifest = read_manifest(artifacts / model_id.folder / "manifest.json")
    if manifest is None or manifest.source.commit != commit:
        return None
    known = manifest.source
    return Source(
        model=model_id, kind=known.kind, title=f"{known.title}, as recorded (the Hub is out of reach)",
        files=tuple(known.files), repo_id=repo_id, revision=commit, license=known.license, gguf_file=known.gguf_file,
        dtypes=known.dtypes, card=known.card, preset=preset,
        quantization=WeightQuantization(known.quantization, 0) if known.quantization else None,
    )
