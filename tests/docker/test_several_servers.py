"""Two servers behind the balancer: a conversation stays where its prompt is in memory, long answers are not cut, and a
server that dies, stops or comes back costs no more than what it was answering.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Final

import pytest
import requests

from quantyard.paths import REPO_DIR, read_pins
from tests.docker.server import wait_for
from tests.docker.several_servers import SeveralServers, events, prompt_tokens

BACK_WITHIN_S: Final = 60.0
NEW_TOKENS: Final = 40  # of a turn: an answer of 4 tokens, a short question, and what the template puts around them
CONVERSATIONS: Final = 12
LONG_TOKENS: Final = 1500  # of an answer that would take half a minute
SILENCE_S: Final = 3.0


@pytest.fixture(scope="module")
def several(
    docker_client: Any, server_image: str, balancer_image: str, demo_q4: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[SeveralServers]:
    pins = read_pins(REPO_DIR / "versions.env")
    images = {
        "server": server_image, "balancer": balancer_image, "proxy": f"{pins['PROXY_IMAGE']}:{pins['PROXY_TAG']}",
    }
    with SeveralServers(docker_client, images, demo_q4, tmp_path_factory.mktemp("several")) as running:
        yield running


def test_the_turns_of_a_conversation_read_only_what_is_new_and_conversations_are_spread(
    several: SeveralServers,
) -> None:
    for number in range(2):
        texts, who = [f"Where is the book number {number}?"], set()
        for turn in range(3):
            answer = several.chat(texts)
            read, cached = prompt_tokens(answer)
            who.add(answer.headers["X-Served-By"])
            assert turn == 0 or (read <= NEW_TOKENS < cached), f"turn {turn}: {read} read, {cached} from memory"
            texts += [answer.json()["choices"][0]["message"]["content"], "And the next one?"]
        assert len(who) == 1
    answers = [several.chat([f"Question {n}."], max_tokens=1) for n in range(CONVERSATIONS)]
    assert {answer.headers["X-Served-By"] for answer in answers} == set(several.servers)


@pytest.mark.parametrize("way", ["header", "field"])
def test_a_name_that_the_client_gives_decides(several: SeveralServers, way: str) -> None:
    def asked(name: str, text: str) -> str:
        headers, fields = ({"X-Session-ID": name}, {}) if way == "header" else ({}, {"prompt_cache_key": name})
        answer = several.chat([text], headers, max_tokens=1, **fields)
        assert answer.status_code == 200, answer.text
        return str(answer.headers["X-Served-By"])

    servers = {name: {asked(name, text) for text in ("One.", "Two.")} for name in map(str, range(CONVERSATIONS))}
    assert all(len(who) == 1 for who in servers.values())
    assert set.union(*servers.values()) == set(several.servers)


@pytest.mark.parametrize(("path", "body"), [
    ("/v1/responses", {"input": [{"role": "user", "content": "Hi."}], "max_output_tokens": 1}),
    ("/v1/messages", {"system": "Be brief.", "messages": [{"role": "user", "content": "Hi."}], "max_tokens": 1}),
    ("/v1/completions", {"prompt": "One, two,", "max_tokens": 1}),
    ("/v1/chat/completions", {"messages": [{"role": "system", "content": "Hi."}], "max_tokens": 1}),
    ("/tokenize", {"content": "One, two,"}),
])  # fmt: skip
def test_the_same_request_has_the_same_server_on_every_route(
    several: SeveralServers, path: str, body: dict[str, Any]
) -> None:
    answers = [several.post(path, body) for _ in range(3)]
    assert [answer.status_code for answer in answers] == [200] * 3, answers[0].text
    assert len({answer.headers["X-Served-By"] for answer in answers}) == 1


def test_an_answer_ends_on_its_server_once_the_client_leaves(several: SeveralServers) -> None:
    server, lines = several.stream("leaves", LONG_TOKENS)
    assert several.is_answering(server)
    lines.close()
    wait_for(lambda: not several.is_answering(server), 30, several.logs)
    body = {"prompt": "One,", "max_tokens": LONG_TOKENS, "ignore_eos": True}
    with pytest.raises(requests.exceptions.ReadTimeout):
        several.post("/v1/completions", body, {"X-Session-ID": "leaves"}, timeout=2)
    time.sleep(SILENCE_S)  # llama-server looks for clients that left where it had nothing to tell anybody for a second
    assert not several.is_answering(server)


def test_a_killed_server_costs_what_it_was_answering_and_gets_its_conversations_again(several: SeveralServers) -> None:
    sessions = {name: several.session_of(name) for name in several.servers}
    (dead, lost), (alive, kept) = (several.stream(sessions[name], 600) for name in ("server-1", "server-2"))
    assert (dead, alive) == ("server-1", "server-2")
    several.servers[dead].kill()
    with ThreadPoolExecutor(8) as pool:  # at once, before any check has failed
        asked = [pool.submit(several.post, "/tokenize", {"content": "1"}, {"X-Session-ID": f"k{n}"}) for n in range(32)]
    answers = [one.result() for one in asked]
    assert Counter(answer.status_code for answer in answers) == {200: 32}, [answer.text for answer in answers]
    assert {answer.headers["X-Served-By"] for answer in answers} == {alive}
    assert "[DONE]" not in events(lost) and events(kept)[-1] == "[DONE]"

    several.servers[dead].start()
    started = time.monotonic()
    wait_for(lambda: several.who_answers() == set(several.servers), BACK_WITHIN_S, several.logs)
    assert {name: several.server_of(session) for name, session in sessions.items()} == {name: name for name in sessions}
    assert time.monotonic() - started < BACK_WITHIN_S


def test_a_server_that_is_stopped_ends_its_answers_first(several: SeveralServers) -> None:
    server, lines = several.stream(several.session_of("server-2"), 200)
    with ThreadPoolExecutor(1) as pool:
        stopped = pool.submit(several.servers[server].stop, timeout=90)
        assert events(lines)[-1] == "[DONE]"
        stopped.result()
    assert several.server_of(several.session_of("server-1")) == "server-1"
    assert several.servers[server].wait()["StatusCode"] == 0
    several.servers[server].start()
    wait_for(lambda: several.who_answers() == set(several.servers), BACK_WITHIN_S, several.logs)


def test_without_any_server_the_answer_is_an_error_that_says_so(several: SeveralServers) -> None:
    for container in several.servers.values():
        container.kill()
    answer = several.post("/tokenize", {"content": "1"})
    assert answer.status_code == 503 and answer.json()["error"]["type"] == "unavailable_error"
    for container in several.servers.values():
        container.start()
    wait_for(lambda: several.who_answers() == set(several.servers), BACK_WITHIN_S, several.logs)
