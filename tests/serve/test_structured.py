"""Structured answers of the real model: every constraint holds on every answer, and nothing wrong passes unseen."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from typing import Annotated, Any

import httpx2
import pytest
from pydantic import BaseModel, Field

from server.client.client import PromptTooLong, Sampling
from server.client.regex_subset import normalise_client_regex
from server.client.structured import AnswerCut, AnswerInvalid, structured_over_http
from server.examples.client_profile import NOTE, SAMPLING, ClientProfile, client_profile_question
from tests.hostile.sampling import sampled
from tests.serve.conftest import KEY, Server
from tests.serve.profiles import check_profile

HOT = replace(SAMPLING, temperature=1.5)


@pytest.mark.parametrize("seed", sampled(range(20), 6))
def test_every_constraint_of_a_profile_holds_over_http(server: Server, seed: int) -> None:
    check_profile(
        structured_over_http(
            server.client(), ClientProfile, client_profile_question(NOTE), replace(HOT, seed=seed), retries=0
        )
    )


@pytest.mark.parametrize("seed", sampled(range(20), 6))
def test_every_constraint_holds_where_the_note_says_nothing(server: Server, seed: int) -> None:
    check_profile(
        structured_over_http(server.client(), ClientProfile, "Invent a client.", replace(HOT, seed=seed), retries=0)
    )


class Tiny(BaseModel):
    share: Annotated[float, Field(ge=0.123, le=0.124)]


class Endless(BaseModel):
    text: Annotated[str, Field(min_length=500)]


def test_a_bound_that_cannot_be_held_while_writing_is_told_when_every_try_breaks_it(server: Server) -> None:
    with pytest.raises(AnswerInvalid, match=r"2 answers broke Tiny; the last: \$\.share: .*(minimum|maximum)"):
        structured_over_http(server.client(), Tiny, "Invent one.", Sampling(max_tokens=60, seed=1), retries=1)


def test_an_answer_cut_by_max_tokens_is_named(server: Server) -> None:
    with pytest.raises(AnswerCut, match="cut at 20 tokens"):
        structured_over_http(server.client(), Endless, "Invent one.", Sampling(max_tokens=20))


def test_the_clients_own_errors_come_through(server: Server) -> None:
    with pytest.raises(PromptTooLong):
        structured_over_http(server.client(), ClientProfile, "word " * 5000)


# What the server's converter misreads as it stands, and holds in its normal form: each ends soon whatever is drawn.
PATTERNS = (
    r"^\d{5}$", r"^\(\d{3}\) \d{3}-\d{4}$", r"^[\w.]{3,9}$", r'^["\']{3}$', r'^"a\\b"$', r"^\n\t$", "^$", "^(|a)b$",
    "^é+ß?x$", r"^[\s\w]{3,9}$", r"^[^\w]{2}$", r"^\S{1,4}\s\S$", r"^[\d.]{1,7}$", '^[😀é"]{4}$', "^((a|b){2,3}){2}$",
    "^.{3}$", r"^[^,]{4}$", r"^[\]\[\-^\\]{5}$", "^(x(y(z)?)?)?$", r"^ab\.?c$", "^ab$|^cd$", r"^a??b$",
)


@pytest.mark.parametrize("pattern", PATTERNS)
def test_the_server_holds_the_normal_form_of_a_pattern_whatever_is_drawn(server: Server, pattern: str) -> None:
    ended = 0
    for seed in range(5):
        body = {
            "prompt": "x", "n_predict": 40, "temperature": 3.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": seed,
            "json_schema": {"type": "string", "pattern": normalise_client_regex(pattern)},
        }
        found = _complete(server, body)
        assert "\nstring ::=" not in found["generation_settings"]["grammar"], "the server takes any string for it"
        if found["stop_type"] == "eos":
            ended += 1
            assert re.search(pattern, json.loads(found["content"])), found["content"]
    assert ended


def _complete(server: Server, body: dict[str, Any]) -> dict[str, Any]:
    url, headers = server.url.removesuffix("/v1") + "/completion", {"Authorization": f"Bearer {KEY}"}
    found = httpx2.post(url, json=body, headers=headers, timeout=120, trust_env=False)
    found.raise_for_status()
    return dict(found.json())
