"""What a new settings file can say of a model: looked up in the folder, in the store and at the Hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from quantyard.errors import HubError, HubUnreachable, QuantyardError
from quantyard.formats.names import safe_file_name
from quantyard.hub.client import hub_whoami
from quantyard.requests import BuildRequest
from quantyard.sources.presets import Preset, find_preset, split_preset_name
from quantyard.sources.resolve import Source
from quantyard.store.manifest import Manifest, read_manifest
from quantyard.store.stages import ModelStore
from quantyard.workflows.planning import EVAL_SUITE, workflow_hub_access, workflow_source

_USUAL_QUANT = "Q4_K_M"
_GATES = ("gate.yaml", "gate.yml")
_MANY = 20  # GGUF files of a folder that are looked at


@dataclass(frozen=True)
class FoundSetting:
    """The value of a setting, as a user would type it, and how it was found."""

    name: str
    value: str
    why: str


@dataclass(frozen=True)
class Detected:
    """What was found, and what could not be looked up: a sentence each."""

    settings: tuple[FoundSetting, ...]
    not_looked_up: tuple[str, ...]
    title: str = ""  # of the model


def detect_settings(request: BuildRequest, folder: Path) -> Detected:
    """Find the model, its types, a suite, a repo and budgets for a settings file in this folder. A Hub that does not
    answer only leaves something out.

    Raises:
        BadSource, HubError: there is no such model, or nothing can be made of it.
    """
    missing: list[str] = []
    found = list(_found_model_here(folder)) if not request.model else []
    model = request.model or (found[0].value if found else "")
    source = _source_to_init(request, model, missing) if model else None
    manifest = read_manifest(ModelStore(request.artifacts, source.model).folder / "manifest.json") if source else None
    found += _found_quants(model, source, manifest)
    found.append(_found_suite(manifest))
    if model:
        found += _found_repo(request, model, source, missing)
    found += _found_gate(folder)
    return Detected(tuple(found), tuple(missing), source.title if source else model)


def _found_model_here(folder: Path) -> Iterator[FoundSetting]:
    """A model that lies in the folder itself: in Hugging Face format, or the one GGUF."""
    if (folder / "config.json").is_file():
        yield FoundSetting("MODEL", ".", "this folder holds one in Hugging Face format")
        return
    files = [path.name for path in sorted(folder.glob("*.gguf"))[:_MANY] if not path.name.startswith("mmproj")]
    if len(files) == 1:
        yield FoundSetting("MODEL", f"./{files[0]}", "the only GGUF in this folder")


def _source_to_init(request: BuildRequest, model: str, missing: list[str]) -> Source | None:
    try:
        return workflow_source(replace(request, model=model))
    except HubUnreachable as error:
        missing.append(f"whether {model} exists, and what it is: {error.message}")
        return None


def _found_quants(model: str, source: Source | None, manifest: Manifest | None) -> Iterator[FoundSetting]:
    preset = source.preset if source and source.preset else _preset_to_init(model)
    if manifest and manifest.quants:
        yield FoundSetting("QUANT", ",".join(manifest.quants), "what is built of it already")
    elif preset and preset.quants:
        yield FoundSetting("QUANT", ",".join(preset.quants), f"recommended for it: {preset.reason}")
    elif source and source.kind == "gguf" and source.is_quantized:
        yield FoundSetting("QUANT", "COPY", "it is quantized already; COPY keeps its types")
    else:
        yield FoundSetting("QUANT", _USUAL_QUANT, "what most people use")


def _preset_to_init(model: str) -> Preset | None:
    """The row of the list of models, which needs no network."""
    if not model or "/" in model or model == ".":
        return None
    try:
        return find_preset(split_preset_name(model)[0])
    except QuantyardError:
        return None


def _found_suite(manifest: Manifest | None) -> FoundSetting:
    if manifest and manifest.evaluations:
        name = max(manifest.evaluations, key=lambda suite: manifest.evaluations[suite].n_questions)
        return FoundSetting("SUITE", name, "what it was measured with")
    return FoundSetting("SUITE", EVAL_SUITE, "the default of eval; a release deserves standard")


def _found_repo(
    request: BuildRequest, model: str, source: Source | None, missing: list[str]
) -> Iterator[FoundSetting]:
    """The repo to publish to: of the token's account, named after the model."""
    if not request.hf_token:
        missing.append("your account on the Hub: no token is set (hf auth login, or HF_TOKEN)")
        return
    try:
        user = hub_whoami(workflow_hub_access(request))
    except HubError as error:
        missing.append(f"your account on the Hub: {error.message}")
        return
    name = source.model.name if source else model.partition("@")[0].rstrip("/").rpartition("/")[2]
    yield FoundSetting("REPO", f"{user}/{safe_file_name(name)}-GGUF", "your account, and the model's name")


def _found_gate(folder: Path) -> Iterator[FoundSetting]:
    if name := next((name for name in _GATES if (folder / name).is_file()), ""):
        yield FoundSetting("GATE", name, "budgets in this folder")
