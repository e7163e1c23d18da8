"""Checks of refusals: wrong keys, prompts that are too long, bodies and paths that are not of the API."""

from __future__ import annotations

import re
from typing import Final

from server.api_checks.outcome import CheckOutcome, passed
from server.api_checks.session import (
    CHAT,
    COMPLETION,
    EMBEDDINGS,
    EXCERPT,
    RERANK,
    ApiSession,
    api_error_text,
    need_promise,
    shown_api_answer,
)

_UNKNOWN_CONTEXT: Final = 1 << 18  # words of an oversized prompt if the server does not report its context
_NO_MODEL: Final = "no-such-model"
_STRANGERS: Final = ((None, "no key"), ("wrong", "a wrong key"))
# All routes to the model: none may answer without the key. Routes that a server does not have may answer 401 or 404.
_DOORS: Final = (CHAT, COMPLETION, "/completion", "/chat/completions", "/v1/messages", "/v1/responses", "/infill",
          EMBEDDINGS, RERANK, "/embeddings")  # fmt: skip


def check_embeddings(session: ApiSession) -> CheckOutcome:
    answer = session.embed("hello")
    if answer.status == 200:
        vector = (answer.body.get("data") or [{}])[0].get("embedding")
        need_promise(bool(vector), f"200 without an embedding: {shown_api_answer(answer)}")
        return passed(f"served: {len(vector)} numbers")
    refused = 400 <= answer.status < 500 or answer.status == 501
    need_promise(
        refused and bool(api_error_text(answer)), f"wanted 4xx or 501 with a reason, got {shown_api_answer(answer)}"
    )
    return passed(f"refused: {answer.status} {api_error_text(answer)[:EXCERPT]}")


def check_unknown_model(session: ApiSession) -> CheckOutcome:
    body = {**session.chat_body("Hello", max_tokens=1), "input": "Hello", "query": "Hello", "documents": ["Hello"]}
    answer = session.wire.post(session.route, {**body, "model": _NO_MODEL})
    need_promise(answer.status == 404, f"the model {_NO_MODEL}: wanted 404, got {shown_api_answer(answer)}")
    said = api_error_text(answer)
    need_promise(session.model in said, f"the error does not name the model that is served: {said[:EXCERPT]!r}")
    return passed(f"404: {said[:EXCERPT]}")


def check_wrong_key(session: ApiSession) -> CheckOutcome:
    body = {**session.chat_body("Hello", max_tokens=1), "prompt": "Hello", "input": "Hello"}
    right = session.wire.key or ""
    for key, called in (*_STRANGERS, (right[:-1] or "x", "a cut key"), (right + "x", "a longer key")):
        stranger = session.wire.with_key(key)
        for path in _DOORS:
            answer = stranger.post(path, body)
            is_open = answer.status < 400 or "choices" in answer.body
            need_promise(not is_open, f"{path} answers {called}: {shown_api_answer(answer)}")
            wanted = answer.status == 401 or path not in (CHAT, COMPLETION)
            need_promise(wanted, f"{path} refuses {called} with {answer.status}, wanted 401")
    return passed(f"401 for no key, a wrong, a cut and a longer one; {len(_DOORS)} paths refuse them")


def check_oversized(session: ApiSession) -> CheckOutcome:
    n_words = (session.n_ctx or _UNKNOWN_CONTEXT) + 64
    answer = session.ask("word " * n_words, max_tokens=1)
    said = api_error_text(answer)
    # llama-server answers with 500 where a text is longer than the batch that computes it at once.
    statuses = (400,) if session.purpose == "generate" else (400, 500)
    need_promise(
        answer.status in statuses and bool(said),
        f"a prompt of {n_words} words: wanted 400 with a reason, got {shown_api_answer(answer)}",
    )
    numbers = {int(number) for number in re.findall(r"\d+", said.replace(",", ""))}
    is_known = session.n_ctx and session.purpose == "generate"
    names_context = session.n_ctx in numbers if is_known else any(number < n_words for number in numbers)
    names_prompt = any(number >= n_words for number in numbers)
    need_promise(names_context and names_prompt, f"the error does not name both sizes: {said[:EXCERPT]!r}")
    return passed(f"{answer.status}: {said[:EXCERPT]}")


def check_malformed(session: ApiSession) -> CheckOutcome:
    for text in ('{"messages": [', "", "[]", '{"messages": "Hello"}'):
        answer = session.wire.post_text(session.route, text)
        is_clear = 400 <= answer.status < 500 and bool(api_error_text(answer))
        need_promise(
            is_clear, f"the body {text!r}: wanted 4xx and a JSON error, got {shown_api_answer(answer) or 'nothing'}"
        )
    return passed(f"4xx with a JSON error, the last {shown_api_answer(answer)}")


def check_unknown_path(session: ApiSession) -> CheckOutcome:
    answers = session.wire.get("/v1/no-such-thing"), session.wire.post("/v1/no-such-thing", {})
    for answer in answers:
        need_promise(answer.status == 404, f"wanted 404, got {shown_api_answer(answer)}")
    return passed("404, for GET and POST")
