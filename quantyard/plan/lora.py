"""The plan of `make lora`: converts a PEFT adapter to GGUF, with the configuration of its base model.

The weights of the base model are not fetched: the converter reads only its config.json.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Final

from quantyard.errors import BadRequest, BadSource, NeedsPermission
from quantyard.files.own_files import read_named_file
from quantyard.hub.access import CONFIG_LIMIT_BYTES, HubAccess
from quantyard.hub.client import read_hub_config_file
from quantyard.hub.files import LEGAL_FILES, SIDE_FILES
from quantyard.plan.stages import STAGES
from quantyard.plan.steps import BuildPlan, ExternalInput, ModelFile, Origin, Step, StepOutput
from quantyard.protocol.builder import FetchRequest, LoraRequest
from quantyard.requests import BuildRequest
from quantyard.sources.parts import Files, WantedPart, find_source_part, source_part_on_hub
from quantyard.sources.resolve import Source
from quantyard.store.hash_cache import HashCache

LORA: Final = "lora"  # the step's label
ADAPTER_CONFIG: Final = "adapter_config.json"
_BASE_CONFIG: Final = "config.json"
_WEIGHTS: Final = "adapter_model.safetensors"
_PICKLE: Final = "adapter_model.bin"
RESULT: Final = "adapter.gguf"  # the file that the stage leaves
_F32_TO_16_BIT: Final = 2  # expected growth: the result is F32, and most adapters have 16 bits


def plan_lora(request: BuildRequest, access: HubAccess, hashes: HashCache) -> BuildPlan:
    """Resolve ADAPTER and BASE, and lay out the steps. The plan has no targets; the caller names the result.

    Raises:
        BadRequest: one of them is missing or unsuitable, or needs a permission (pickle).
        HubError: the Hub refused or did not answer.
    """
    if not request.adapter:
        raise BadRequest("ADAPTER is not given.", "Name one: make lora ADAPTER=org/name, or a folder in PEFT format.")
    allowed = request.allow_pickle
    kind = WantedPart("ADAPTER", ADAPTER_CONFIG, lambda title, files: _adapter_files_to_plan(title, files, allowed))
    adapter = find_source_part(kind, request.adapter, access, hashes)
    wanted = WantedPart("BASE", _BASE_CONFIG, _lora_base_files)
    if request.base:
        return _lora_plan(adapter, find_source_part(wanted, request.base, access, hashes), request)
    return _lora_plan(adapter, source_part_on_hub(wanted, _lora_base_named(adapter, access), access), request)


def _lora_plan(adapter: Source, base: Source, request: BuildRequest) -> BuildPlan:
    steps: list[Step] = []
    inputs = {
        name: _lora_origin(name, source, request, steps) for name, source in (("adapter", adapter), ("base", base))
    }
    asked = LoraRequest(name=adapter.model.name, allow_pickle=request.allow_pickle)
    steps.append(Step(LORA, STAGES[LORA], asked, inputs, _F32_TO_16_BIT * adapter.size_bytes))
    source = replace(adapter, title=f"LoRA adapter {adapter.title}, for {base.title}")
    result = ModelFile(StepOutput(LORA), RESULT)
    return BuildPlan(source, tuple(steps), result, (), "f32", "lossless for any adapter, and supported everywhere")


def _lora_origin(name: str, source: Source, request: BuildRequest, steps: list[Step]) -> Origin:
    if source.local is not None:
        return ExternalInput(source.local)
    fetch = FetchRequest(
        repo_id=source.repo_id, commit=source.model.commit, files=source.files,
        endpoint=request.endpoint, workers=request.workers,
    )
    steps.append(Step(f"fetch {name}", STAGES["fetch"], fetch, {}, source.size_bytes))
    return StepOutput(f"fetch {name}")


def _adapter_files_to_plan(title: str, files: Files, pickle_allowed: bool) -> Files:
    names = {f.path for f in files}
    if ADAPTER_CONFIG not in names:
        hint = "Name the folder that PEFT's save_pretrained wrote; a whole model is built with make build."
        raise BadSource(f"{title} has no {ADAPTER_CONFIG}, so it is not an adapter in PEFT format.", hint)
    if _WEIGHTS in names:
        return _adapter_files_matching(files, (ADAPTER_CONFIG, _WEIGHTS, *LEGAL_FILES))
    if _PICKLE not in names:
        raise BadSource(f"{title} has no {_WEIGHTS}.", "The upload is not complete: try another revision.")
    if not pickle_allowed:
        message = f"The only weights of {title} are a pickle file, which can run code when read: {_PICKLE}."
        raise NeedsPermission(message, "Allow it for a source you trust: ALLOW_PICKLE=1")
    return _adapter_files_matching(files, (ADAPTER_CONFIG, _PICKLE, *LEGAL_FILES))


def _lora_base_files(title: str, files: Files) -> Files:
    if not any(f.path == _BASE_CONFIG for f in files):
        hint = "Name the model the adapter was trained on, in Hugging Face format: BASE=org/name or a folder."
        raise BadSource(f"{title} has no {_BASE_CONFIG}, so it is not a model in Hugging Face format.", hint)
    return _adapter_files_matching(files, SIDE_FILES)


def _adapter_files_matching(files: Files, patterns: tuple[str, ...]) -> Files:
    """The files at the top level that match a pattern."""
    return tuple(f for f in files if "/" not in f.path and any(fnmatchcase(f.path, p) for p in patterns))


def _lora_base_named(adapter: Source, access: HubAccess) -> str:
    """The Hub model that the adapter's configuration names as its base. A local folder must be named with BASE."""
    config = _local_adapter_config(adapter.local.folder) if adapter.local else _hub_adapter_config(adapter, access)
    name, revision = config.get("base_model_name_or_path"), config.get("revision")
    if not (isinstance(name, str) and name):
        message = f"{ADAPTER_CONFIG} of {adapter.title} does not name a base model."
        raise BadRequest(message, "Name the model it was trained on: make lora ADAPTER=… BASE=org/name")
    if name.startswith(("/", ".", "~")):  # a folder of the machine it was trained on
        message = f"{ADAPTER_CONFIG} of {adapter.title} names a folder as its base model: {name}."
        raise BadRequest(message, "Name that model: make lora ADAPTER=… BASE=org/name, or BASE=folder")
    return f"{name}@{revision}" if isinstance(revision, str) and revision else name


def _local_adapter_config(folder: Path) -> Mapping[str, object]:
    path = folder / ADAPTER_CONFIG
    return _parsed_adapter_json(str(path), path.stat().st_size, lambda: read_named_file(path, CONFIG_LIMIT_BYTES))


def _hub_adapter_config(adapter: Source, access: HubAccess) -> Mapping[str, object]:
    """The adapter's configuration at its commit, from the Hub."""
    entry = next(f for f in adapter.files if f.path == ADAPTER_CONFIG)
    return _parsed_adapter_json(
        f"{ADAPTER_CONFIG} of {adapter.title}", entry.size_bytes,
        lambda: read_hub_config_file(access, adapter.repo_id, adapter.model.commit, ADAPTER_CONFIG),
    )


def _parsed_adapter_json(title: str, size_bytes: int, read: Callable[[], bytes]) -> Mapping[str, object]:
    if size_bytes > CONFIG_LIMIT_BYTES:
        raise BadSource(f"{title} is larger than {CONFIG_LIMIT_BYTES:,} bytes.", "Check that PEFT wrote this file.")
    try:
        config = json.loads(read())
    except (ValueError, RecursionError) as error:
        raise BadSource(f"{title} is not valid JSON: {error}", "Save or download the adapter again.") from error
    if not isinstance(config, dict):
        raise BadSource(f"{title} does not hold a JSON object.", "Save or download the adapter again.")
    return config
