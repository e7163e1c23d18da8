"""The answers of `quants`, `models`, `config`, `doctor` and `gc`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from quantyard.cli.json_outputs.base import JsonOutput, JsonRow
from quantyard.sources.presets import Preset

if TYPE_CHECKING:  # to list quants, nothing of a build is imported
    from pathlib import Path

    from quantyard.quants.catalog import Quant
    from quantyard.workflows.doctor import DoctorFinding
    from quantyard.workflows.init import FoundSetting
    from quantyard.workflows.shared_store import StoreGarbage


class QuantRow(JsonRow):
    """One quantization type."""

    name: str  # as llama-quantize spells it
    ftype: int  # of llama.cpp
    bits_per_weight: float  # of the whole file of an 8B model
    needs_imatrix: bool
    use: str  # when to choose it
    alias_of: str | None  # the full name, for a shorthand


class QuantsOutput(JsonOutput):
    """The answer of `quants`."""

    quants: list[QuantRow]


def quants_output(quants: Sequence[Quant]) -> QuantsOutput:
    """The quantization types."""
    return QuantsOutput(quants=[QuantRow(**{name: getattr(q, name) for name in QuantRow.model_fields}) for q in quants])


class ModelsOutput(JsonOutput):
    """The answer of `models`."""

    models: list[Preset]


def models_output(presets: Sequence[Preset]) -> ModelsOutput:
    """The models with a short name."""
    return ModelsOutput(models=list(presets))


class SettingRow(JsonRow):
    """One setting."""

    name: str  # of the variable
    option: str | None  # null: a secret, which is never an option
    value: str  # as typed; "(set)" for a secret
    source: str  # "option --quant", "variable QUANT", "quantyard.toml", "default"


class ConfigOutput(JsonOutput):
    """The answer of `config`."""

    file: str | None  # the settings file that was read
    settings: list[SettingRow]


class WrittenSettingRow(JsonRow):
    """One setting that `init` wrote."""

    name: str  # of the variable
    value: str
    why: str  # given, or how it was found


class InitOutput(JsonOutput):
    """The answer of `init`."""

    file: str  # path
    settings: list[WrittenSettingRow]
    not_looked_up: list[str]  # a sentence each


def init_output(path: Path, settings: Sequence[FoundSetting], not_looked_up: Sequence[str]) -> InitOutput:
    """The file that was written."""
    rows = [WrittenSettingRow(name=one.name, value=one.value, why=one.why) for one in settings]
    return InitOutput(file=str(path), settings=rows, not_looked_up=list(not_looked_up))


class GarbageOutput(JsonOutput):
    """The answer of `gc`."""

    store: str
    removed: bool  # false with DRY_RUN=1
    attempts: list[str]  # prefixes in the store
    differing: list[str]  # names in the store: second results, with other bytes
    kept_aside: list[str]  # folders below ARTIFACTS, with the outputs of such results
    kept_aside_bytes: int
    contents: list[str]  # names in the store
    contents_bytes: int
    others: int  # expired leases, spent specs, unfinished uploads


def garbage_output(found: StoreGarbage, *, removed: bool) -> GarbageOutput:
    """What was removed, or would be."""
    shared = found.shared
    return GarbageOutput(
        store=found.url, removed=removed, attempts=list(shared.attempts if shared else ()),
        differing=list(shared.differing if shared else ()), kept_aside=[str(each.path) for each in found.kept_aside],
        kept_aside_bytes=sum(each.size_bytes for each in found.kept_aside),
        contents=list(shared.contents if shared else ()), contents_bytes=shared.contents_bytes if shared else 0,
        others=shared.others if shared else 0,
    )  # fmt: skip


class FindingRow(JsonRow):
    """One finding on this machine."""

    what: str
    state: Literal["ok", "note", "missing"]  # missing: no build can run without it
    value: str
    remedy: str  # may be empty


class DoctorOutput(JsonOutput):
    """The answer of `doctor`."""

    findings: list[FindingRow]


def doctor_output(findings: Sequence[DoctorFinding]) -> DoctorOutput:
    """The findings."""
    return DoctorOutput(findings=[FindingRow(**finding.__dict__) for finding in findings])
