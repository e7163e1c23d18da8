"""Checks of answers: what a chat, a text and a stream hold, where they end, what they count and what a seed fixes."""

from __future__ import annotations

from typing import Final

from server.api_checks.outcome import CheckOutcome, passed
from server.api_checks.session import (
    CHAT,
    EXCERPT,
    ApiSession,
    api_answer_choice,
    api_answer_text,
    api_answer_usage,
    need_promise,
    shown_api_answer,
)

_HALF: Final = "\N{REPLACEMENT CHARACTER}"  # a character that max_tokens cut: a stream may leave it out
_STORY: Final = "Write a long story about a ship and the sea."
_CAPITAL: Final = "What is the capital of France? Answer in one sentence."
_MAX_TOKENS: Final = 8
_ANSWER_TOKENS: Final = 24


def check_health(session: ApiSession) -> CheckOutcome:
    answer = session.wire.with_key(None).get("/health")
    need_promise(answer.status == 200, f"/health without a key: {shown_api_answer(answer)}")
    return passed("200, without a key")


def check_models(session: ApiSession) -> CheckOutcome:
    answer = session.wire.get("/v1/models")
    data = answer.body.get("data")
    need_promise(
        answer.status == 200 and answer.body.get("object") == "list" and bool(data),
        f"no list: {shown_api_answer(answer)}",
    )
    need_promise(bool(session.model), f"the first model has no id: {data}")
    return passed(f"{len(data or ())} listed, the first is {session.model!r}")


def check_chat(session: ApiSession) -> CheckOutcome:
    answer = session.chat(_CAPITAL, max_tokens=_ANSWER_TOKENS)
    choice, text, (prompt, completion, _) = api_answer_choice(answer), api_answer_text(answer), api_answer_usage(answer)
    role, reason = (choice.get("message") or {}).get("role"), choice.get("finish_reason")
    need_promise(role == "assistant", f"the role is {role!r}")
    need_promise(bool(text.strip()), "the content is empty")
    need_promise(reason in {"stop", "length"}, f"finish_reason is {reason!r}")
    model, created = answer.body.get("model"), answer.body.get("created")
    need_promise(model == session.model, f"asked for {session.model!r}, answered as {model!r}")
    need_promise(isinstance(created, int) and created > 0, f"created is {created!r}")
    return passed(f"{text[:60]!r}, finish_reason {reason}, {prompt} + {completion} tokens")


def check_completion(session: ApiSession) -> CheckOutcome:
    answer = session.complete("One, two, three, four,", max_tokens=_MAX_TOKENS)
    text, (prompt, completion, _) = api_answer_text(answer), api_answer_usage(answer)
    need_promise(bool(text.strip()), "the text is empty")
    return passed(f"{text[:60]!r}, {prompt} + {completion} tokens")


def check_streaming(session: ApiSession) -> CheckOutcome:
    session.ask(_CAPITAL, max_tokens=_ANSWER_TOKENS)
    whole = session.ask(_CAPITAL, max_tokens=_ANSWER_TOKENS)
    streamed = session.stream(_CAPITAL, max_tokens=_ANSWER_TOKENS)
    text, reason = api_answer_text(whole), api_answer_choice(whole).get("finish_reason")
    same = streamed.text.rstrip(_HALF) == text.rstrip(_HALF)
    need_promise(same, f"streamed {streamed.text!r}, but in one piece {text!r}")
    need_promise(
        streamed.finish_reason == reason, f"finish_reason {streamed.finish_reason!r}, but in one piece {reason!r}"
    )
    need_promise(streamed.is_done, "the stream does not end with [DONE]")
    return passed(f"the same {len(text)} characters in {streamed.n_chunks} events, then [DONE]")


def check_streamed_usage(session: ApiSession) -> CheckOutcome:
    whole = api_answer_usage(session.ask(_CAPITAL, max_tokens=_ANSWER_TOKENS))
    usage = session.stream(_CAPITAL, max_tokens=_ANSWER_TOKENS, stream_options={"include_usage": True}).usage
    need_promise(bool(usage), "no chunk has a usage, though include_usage was asked for")
    streamed = tuple(usage.get(name) for name in ("prompt_tokens", "completion_tokens", "total_tokens"))
    need_promise(streamed == whole, f"usage {streamed} in the stream, {whole} in one piece")
    return passed(f"{whole[0]} + {whole[1]} tokens in both")


def check_stop(session: ApiSession) -> CheckOutcome:
    """A stop string that begins within one token and ends within another must not leak, also when streamed."""
    session.ask(_STORY, max_tokens=_ANSWER_TOKENS)
    text = api_answer_text(session.ask(_STORY, max_tokens=_ANSWER_TOKENS))
    middle = len(text) // 2
    stop = text[middle : middle + 5]
    need_promise(bool(stop.strip()), f"the answer is too short for a stop string: {text!r}")
    wanted = text[: text.index(stop)]
    answer = session.ask(_STORY, max_tokens=_ANSWER_TOKENS, stop=[stop])
    streamed = session.stream(_STORY, max_tokens=_ANSWER_TOKENS, stop=[stop])
    found = (
        (api_answer_text(answer), api_answer_choice(answer).get("finish_reason")),
        (streamed.text, streamed.finish_reason),
    )
    for written, reason in found:
        need_promise(stop not in written, f"the stop string {stop!r} is in {written!r}")
        need_promise(reason == "stop", f"finish_reason is {reason!r} at the stop string {stop!r}")
        need_promise(written == wanted, f"wanted {wanted!r} up to {stop!r}, got {written!r}")
    return passed(f"ended before {stop!r} after {len(wanted)} characters, in one piece and streamed")


def check_max_tokens(session: ApiSession) -> CheckOutcome:
    answer = session.ask(_STORY, max_tokens=_MAX_TOKENS)
    reason, completion = api_answer_choice(answer).get("finish_reason"), api_answer_usage(answer)[1]
    need_promise(
        reason == "length", f"finish_reason is {reason!r} at max_tokens {_MAX_TOKENS}, after {completion} tokens"
    )
    need_promise(completion == _MAX_TOKENS, f"{completion} completion_tokens, {_MAX_TOKENS} were asked for")
    return passed(f"length after exactly {completion} tokens")


def check_usage_counts(session: ApiSession) -> CheckOutcome:
    short = api_answer_usage(session.complete("One, two,", max_tokens=1))[0]
    long = api_answer_usage(session.complete("One, two, three, four, five, six,", max_tokens=1))[0]
    need_promise(long > short, f"{long} prompt_tokens for the longer prompt, {short} for the shorter")
    counted = [_check_counted_prompt(session, "One, two,", short), _check_counted_chat(session)]
    return passed(f"{short} and {long} prompt_tokens; {'; '.join(counted)}")


def _check_counted_prompt(session: ApiSession, prompt: str, used: int) -> str:
    """Compare the reported prompt_tokens with the count of the server's own tokenizer."""
    answer = session.wire.post("/tokenize", {"content": prompt, "add_special": True})
    tokens = answer.body.get("tokens") if answer.status == 200 else None
    if tokens is None:
        return "no tokenizer to ask"
    need_promise(
        len(tokens) == used, f"{used} prompt_tokens, but its tokenizer counts {len(tokens)}: {prompt[:EXCERPT]!r}"
    )
    return f"its tokenizer counts {used} too"


def _check_counted_chat(session: ApiSession) -> str:
    if not session.has_chat_template:
        return "no template to ask"
    body = session.chat_body(_CAPITAL, max_tokens=1)
    template = session.wire.post("/apply-template", body)
    if template.status != 200:
        return "no template to ask"
    used = api_answer_usage(session.wire.post(CHAT, body))[0]
    return f"of a chat, {_check_counted_prompt(session, str(template.body.get('prompt')), used)}"


def check_seeds(session: ApiSession) -> CheckOutcome:
    def ask(seed: int) -> str:
        return api_answer_text(session.ask(_STORY, max_tokens=_ANSWER_TOKENS, temperature=1, seed=seed))

    ask(42)
    first, second, other = ask(42), ask(42), ask(43)
    need_promise(first == second, f"seed 42 wrote {first!r}, then {second!r}")
    differs = "another" if first != other else "the same"
    return passed(f"seed 42 wrote the same {len(first)} characters twice, seed 43 {differs} text")
