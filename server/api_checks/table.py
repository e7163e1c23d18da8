"""The table of checks of what a served model promises over HTTP: plain requests, and verdicts with values.

A check is a function of an `ApiSession`; it returns a `CheckOutcome`, or raises `BrokenPromise` with the promise that
was broken. Prompts and seeds are fixed, and the temperature is 0 unless sampling is what is tested. Before answers are
compared, the request is sent once: the first answer is computed without a prompt cache, in another order of sums, which
can flip a near-tie between tokens.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from quantyard.formats.gguf import Medium
from quantyard.formats.purpose import Purpose
from quantyard.protocol.api_tests import AS_MEASURED
from server.api_checks.abuse import (
    check_closed_routes,
    check_hostile_grammars,
    check_hostile_schemas,
    check_large_body,
    check_large_tokenize,
    check_slow_clients,
)
from server.api_checks.answers import (
    check_chat,
    check_completion,
    check_health,
    check_max_tokens,
    check_models,
    check_seeds,
    check_stop,
    check_streamed_usage,
    check_streaming,
    check_usage_counts,
)
from server.api_checks.concurrency import CONCURRENT_CLIENTS, check_concurrency
from server.api_checks.media import check_picture, check_sound
from server.api_checks.outcome import CheckOutcome, passed
from server.api_checks.predictions import check_predictions
from server.api_checks.refusals import (
    check_embeddings,
    check_malformed,
    check_oversized,
    check_unknown_model,
    check_unknown_path,
    check_wrong_key,
)
from server.api_checks.session import ApiSession
from server.api_checks.structured_output import check_json_schema, check_tool_calls
from server.api_checks.vectors import (
    CLIENTS,
    check_base64,
    check_ranking,
    check_vector_clients,
    check_vector_order,
    check_vectors,
    check_wrong_input,
)

_EMBED: Final[tuple[Purpose, ...]] = ("embed",)
_RERANK: Final[tuple[Purpose, ...]] = ("rerank",)
_VECTORS: Final = _EMBED + _RERANK
_ANY: Final[tuple[Purpose, ...]] = ("generate", *_VECTORS)


@dataclass(frozen=True)
class ApiCheck:
    """One promise, and the function that checks it."""

    name: str
    promise: str
    run: Callable[[ApiSession], CheckOutcome]
    needs_chat: bool = False  # not applicable to a base model
    takes_plain_text: bool = False  # applicable to an encoder-decoder all the same
    purposes: tuple[Purpose, ...] = ("generate",)
    needs_medium: Medium | None = None  # not applicable to a model that does not read it


def _api_outcome(check: Callable[[ApiSession], str]) -> Callable[[ApiSession], CheckOutcome]:
    return lambda session: passed(check(session))


# To add a check: add a row with a function of an ApiSession that raises BrokenPromise if the promise is not kept.
CHECKS: Final = (
    ApiCheck("health", "/health says 200 once the model is loaded, without a key", check_health, purposes=_ANY),
    ApiCheck("models", "the model is listed", check_models, purposes=_ANY),
    ApiCheck(
        "chat", "a chat is answered, with role, finish_reason, model, created and usage", check_chat, needs_chat=True,
        takes_plain_text=True,
    ),
    ApiCheck("completion", "a text is continued", check_completion),
    ApiCheck(AS_MEASURED, "what is served is what was measured: the likeliest tokens after fixed prompts",
             check_predictions),
    ApiCheck("streaming", "a stream adds up to the same answer as without streaming", check_streaming),
    ApiCheck("streamed-usage", "a stream ends with the usage, if asked for", check_streamed_usage),
    ApiCheck("stop", "a stop string ends the answer and is not part of it", check_stop),
    ApiCheck("max-tokens", "max_tokens is the number of tokens", check_max_tokens),
    ApiCheck("usage", "usage counts what the tokenizer counts", check_usage_counts),
    ApiCheck("seeds", "the same seed writes the same text at temperature 1", check_seeds),
    ApiCheck("json-schema", "answers conform to a JSON schema", check_json_schema, needs_chat=True),
    ApiCheck("tool-calls", "a required tool is called with valid arguments", check_tool_calls, needs_chat=True),
    ApiCheck(
        "picture", "a picture is read; what is not one, and an address, is refused", _api_outcome(check_picture),
        needs_chat=True, needs_medium="vision",
    ),
    ApiCheck(
        "sound", "a sound is read; what is not one is refused", _api_outcome(check_sound), needs_chat=True,
        needs_medium="audio",
    ),
    ApiCheck("embeddings", "embeddings are served, or refused with the reason", check_embeddings, purposes=_ANY),
    ApiCheck("wrong-key", "a request without the right key gets no answer from the model", check_wrong_key,
             purposes=_ANY),
    ApiCheck("oversized", "a prompt that is too long is refused, with both sizes", check_oversized, purposes=_ANY),
    ApiCheck("malformed", "a body that is not a request is refused, with the reason", check_malformed, purposes=_ANY),
    ApiCheck("unknown-path", "an unknown path is answered with 404", check_unknown_path, purposes=_ANY),
    ApiCheck("unknown-model", "a model that is not served is refused with 404, and those that are named",
             check_unknown_model, purposes=_ANY),
    ApiCheck("concurrency", f"{CONCURRENT_CLIENTS} clients at once are all answered", check_concurrency),
    ApiCheck(
        "slow-clients", "idle connections do not block other clients, and end in seconds",
        _api_outcome(check_slow_clients), purposes=_ANY,
    ),
    ApiCheck("large-body", "a body that is too large is refused", _api_outcome(check_large_body), purposes=_ANY),
    ApiCheck(
        "closed-routes", "routes that change the server or show requests are closed", _api_outcome(check_closed_routes),
        purposes=_ANY,
    ),
    ApiCheck(
        "hostile-grammars", "a grammar that would end or stall the server is refused",
        _api_outcome(check_hostile_grammars),
    ),
    ApiCheck(
        "hostile-schemas", "a schema that would end or stall the server is refused", _api_outcome(check_hostile_schemas)
    ),
    ApiCheck("large-tokenize", "a text that is too large to tokenize is refused", _api_outcome(check_large_tokenize),
             purposes=_ANY),
)
# Those of models that embed texts or rank documents. Of the checks above they are asked what `purposes` says.
VECTOR_CHECKS: Final = (
    ApiCheck(
        "vectors", "every text has one vector, all of one size and of length 1", _api_outcome(check_vectors),
        purposes=_EMBED,
    ),
    ApiCheck("vector-order", "a text has the same vector alone and in a batch", _api_outcome(check_vector_order),
             purposes=_EMBED),
    ApiCheck("vector-base64", "a vector in base64 is the same", _api_outcome(check_base64), purposes=_EMBED),
    ApiCheck("ranking", "every document has one score, whatever is ranked with it", _api_outcome(check_ranking),
             purposes=_RERANK),
    ApiCheck("wrong-input", "what is not a text is refused, with the reason", _api_outcome(check_wrong_input),
             purposes=_VECTORS),
    ApiCheck("vector-clients", f"{CLIENTS} clients at once get what each gets alone",
             _api_outcome(check_vector_clients), purposes=_VECTORS),
)


def api_checks_of(purpose: Purpose) -> tuple[ApiCheck, ...]:
    """The checks of a model's report, those among them that do not apply to it."""
    return (*CHECKS, *(check for check in VECTOR_CHECKS if purpose in check.purposes))
