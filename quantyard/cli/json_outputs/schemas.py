"""The table of answers, and their JSON schemas."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final

from quantyard.cli.json_outputs.base import ErrorOutput, JsonOutput
from quantyard.cli.json_outputs.building import (
    BuildOutput,
    ContractOutput,
    ImageOutput,
    LoraOutput,
    MatrixOutput,
    MeasuredOutput,
    PlanOutput,
    RatesOutput,
)
from quantyard.cli.json_outputs.choosing import ChooseOutput, TuneOutput
from quantyard.cli.json_outputs.comparing import BumpOutput, CompareOutput
from quantyard.cli.json_outputs.looking import (
    ConfigOutput,
    DoctorOutput,
    GarbageOutput,
    InitOutput,
    ModelsOutput,
    QuantsOutput,
)
from quantyard.cli.json_outputs.publishing import PublicationOutput, ReportOutput, VerifyOutput

DIALECT: Final = "https://json-schema.org/draft/2020-12/schema"
# What each command prints with JSON=1. To give a command JSON: add "JSON" to its settings and a row here; a test
# compares the two. Then run `make reference`.
OUTPUTS: Final[Mapping[str, type[JsonOutput]]] = {
    "build": BuildOutput, "eval": MeasuredOutput, "demo": MeasuredOutput, "matrix": MatrixOutput, "plan": PlanOutput,
    "contract": ContractOutput, "image": ImageOutput, "lora": LoraOutput,
    "publish": PublicationOutput, "release": PublicationOutput, "gate": PublicationOutput, "report": ReportOutput,
    "verify": VerifyOutput, "choose": ChooseOutput, "tune": TuneOutput, "compare": CompareOutput, "bump": BumpOutput,
    "quants": QuantsOutput, "models": ModelsOutput, "config": ConfigOutput, "doctor": DoctorOutput,
    "rates": RatesOutput, "init": InitOutput, "gc": GarbageOutput,
}  # fmt: skip
# The published schemas, by name; several commands may share one.
SCHEMAS: Final[Mapping[str, type[JsonOutput]]] = {
    "error": ErrorOutput,
    **{model.__name__.removesuffix("Output").lower(): model for model in dict.fromkeys(OUTPUTS.values())},
}


def output_schema_name(model: type[JsonOutput]) -> str:
    """The name of its published schema."""
    return next(name for name, other in SCHEMAS.items() if other is model)


def output_schema(name: str) -> dict[str, Any]:
    """The JSON schema of a published answer. It permits further fields, as the rule of versions does."""
    model = SCHEMAS[name]
    schema = model.model_json_schema(mode="serialization")
    return identified_schema(_open_json_schema(schema), f"output:{name}", model.model_fields["schema_version"].default)


def identified_schema(schema: dict[str, Any], name: str, version: int) -> dict[str, Any]:
    """The schema with its dialect, and an identifier that names its version."""
    return {"$schema": DIALECT, "$id": f"urn:quantyard:{name}:{version}", **schema}


def _open_json_schema(schema: Any) -> Any:
    """Without `additionalProperties: false`."""
    if isinstance(schema, dict):
        kept = {key: _open_json_schema(value) for key, value in schema.items()}
        return {key: value for key, value in kept.items() if (key, value) != ("additionalProperties", False)}
    return [_open_json_schema(item) for item in schema] if isinstance(schema, list) else schema
