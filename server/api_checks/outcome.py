"""How a check of the API test ends."""

from __future__ import annotations

from dataclasses import dataclass, field

from pydantic import JsonValue

from quantyard.protocol.api_tests import CheckStatus, SchemaRate


@dataclass(frozen=True)
class CheckOutcome:
    """How a check ended."""

    status: CheckStatus
    finding: str
    facts: dict[str, JsonValue] = field(default_factory=dict)
    schemas: SchemaRate | None = None


def passed(finding: str, **facts: JsonValue) -> CheckOutcome:
    return CheckOutcome("passed", finding, facts)
