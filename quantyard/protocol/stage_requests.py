"""Every stage's request, by the stage's name: for who reads a request without knowing the stage."""

from __future__ import annotations

from quantyard.protocol import api_tests, behaviour_run, builder, evaluation  # noqa: F401  (they define the requests)
from quantyard.protocol.base import JsonObject, StageRequest


def parse_stage_request(stage: str, fields: JsonObject) -> StageRequest:
    """The typed request of a stage.

    Raises:
        ValueError: there is no such stage, or the fields are not valid.
    """
    types = stage_request_types()
    if stage not in types:
        raise ValueError(f"there is no stage {stage!r}")
    return types[stage].model_validate(fields)


def stage_request_types() -> dict[str, type[StageRequest]]:
    """The type of each stage's request."""
    return {str(found.model_fields["stage"].default): found for found in _subclasses(StageRequest)}


def _subclasses(base: type[StageRequest]) -> list[type[StageRequest]]:
    own = [each for each in base.__subclasses__() if each.__module__.startswith("quantyard.protocol.")]
    named = [each for each in own if isinstance(each.model_fields["stage"].default, str)]
    return named + [below for each in own for below in _subclasses(each)]
