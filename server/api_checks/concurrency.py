"""The check that many clients at once each get their own answer."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Final

from quantyard.formatting.numbers import format_elapsed
from server.api_checks.launch import Answer
from server.api_checks.outcome import CheckOutcome, passed
from server.api_checks.session import ApiSession, api_answer_text, api_answer_usage, need_promise

_MAX_TOKENS: Final = 8
CONCURRENT_CLIENTS: Final = 32


def check_concurrency(session: ApiSession) -> CheckOutcome:
    """Each client's prompt has another length, so an answer to another client's prompt shows in its usage."""
    def ask(number: int) -> Answer:
        return session.ask("Say it again:" + " word" * (number + 1), max_tokens=_MAX_TOKENS)

    alone = [api_answer_usage(ask(number))[0] for number in (0, CONCURRENT_CLIENTS - 1)]
    started = time.perf_counter()
    with ThreadPoolExecutor(CONCURRENT_CLIENTS) as clients:
        answers = list(clients.map(ask, range(CONCURRENT_CLIENTS)))
    total_s, slowest_s = time.perf_counter() - started, max(answer.duration_s for answer in answers)
    empty = [number for number, answer in enumerate(answers) if not api_answer_text(answer).strip()]
    need_promise(not empty, f"the answers of clients {empty} are empty")
    used = [api_answer_usage(answer)[0] for answer in answers]
    need_promise([used[0], used[-1]] == alone, f"prompt_tokens {used[0]} and {used[-1]}, but alone {alone}")
    need_promise(sorted(set(used)) == used, f"answers belong to other prompts: prompt_tokens {used}")
    took = f"{format_elapsed(total_s)}, the slowest after {format_elapsed(slowest_s)}"
    return passed(
        f"{CONCURRENT_CLIENTS} clients answered in {took}",
        total_s=total_s, slowest_s=slowest_s, clients=CONCURRENT_CLIENTS,
    )  # fmt: skip
