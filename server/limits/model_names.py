"""Which model a request names; the same rule as server/proxy/models.js."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

from server.limits.request_rules import TooMuch

_SHOWN: Final = 20
_DEFAULT: Final = "default"  # which model cards print: the first


class UnknownModel(Exception):
    """A request names a model that is not served."""


def requested_model(names: Sequence[str], body: Mapping[str, Any], in_query: str = "") -> str:
    """The model that answers: the one that the body names, or else the query; the first if neither does, or if the body
    says "default".

    Args:
        names: of the models that are served, at least one.
        body: of the request; empty if it has none.

    Raises:
        UnknownModel: the name is not served.
        TooMuch: the name is not a string.
    """
    in_body = body.get("model")
    if not isinstance(in_body, str | None):
        raise TooMuch("model is not a string. Send the name of a model, or leave it out.")
    asked = in_body or in_query
    if not asked or (in_body == _DEFAULT and _DEFAULT not in names):
        return names[0]
    if asked not in names:
        shown = ", ".join([*names[:_SHOWN], *(["…"] if len(names) > _SHOWN else [])])
        facts = f"The model '{asked[:100]}' is not served here. Name one of these: {shown}; without a name, {names[0]}"
        raise UnknownModel(f"{facts} answers.")
    return asked
