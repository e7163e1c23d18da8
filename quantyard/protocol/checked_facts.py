"""Checks the facts of a stage with the model of `facts.py` or `measuring_facts.py`."""

from collections.abc import Mapping
from typing import Final

from pydantic import JsonValue

from quantyard.protocol.base import StageResult
from quantyard.protocol.facts import CalibrateFacts, ConvertFacts, Facts, ProjectorFacts, TwinFacts, VerifyFacts

# The stages of a build; the others are in `measuring_facts.py`. To have the facts of another stage checked: add a row.
BUILD_FACTS: Final[Mapping[str, type[Facts]]] = {
    "fetch": Facts, "convert": ConvertFacts, "twin": TwinFacts, "parity": TwinFacts, "calibrate": CalibrateFacts,
    "quantize": Facts, "verify": VerifyFacts, "projector": ProjectorFacts,
}  # fmt: skip


def check_stage_facts(stage: str, facts: object, where: str = "facts") -> None:
    """Check the facts of this stage.

    Raises:
        ValueError: see `Facts.read`.
    """
    if stage not in BUILD_FACTS:
        from quantyard.protocol.measuring_facts import MEASURING_FACTS  # imported late: a build measures nothing

        MEASURING_FACTS.get(stage, Facts).read(facts, where)
        return
    BUILD_FACTS[stage].read(facts, where)


def check_result_facts(result: StageResult, members: tuple[str, ...] = ()) -> None:
    """Check the facts of a result.

    Args:
        members: the labels of a shared run; each has its own facts.

    Raises:
        ValueError: see `Facts.read`.
    """
    if not members:
        check_stage_facts(result.stage, result.facts)
        return
    if set(result.facts) != set(members):
        raise ValueError("facts: the labels are not those of the requested files")
    for member in members:
        check_stage_facts(result.stage, result.facts[member], f"facts.{member}")


def stage_facts_by_file(result: StageResult) -> dict[str, dict[str, JsonValue]]:
    """The facts of each file of a shared run, by label; {} for the result of one file."""
    return {label: dict(facts) for label, facts in result.facts.items() if isinstance(facts, dict)}
