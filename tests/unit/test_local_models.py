"""The processes behind the local server, with a program that follows their protocol and has no model."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

import server.local.model_process as processes
from quantyard.paths import REPO_DIR
from server.local.forward import forwarding_client
from server.local.guard import Message, Refused
from server.local.model_process import ModelEnded, ModelProcess, ModelSettings, printable_server_log_line
from server.local.models import Models

pytestmark = pytest.mark.commands

CHAT = "/v1/chat/completions"


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(REPO_DIR))


@dataclass
class Place:
    """An application of models, its log, and how often each was started."""

    models: Models
    log: list[str]
    started: list[str] = field(default_factory=list)

    async def ask(self, body: Any = None, path: str = CHAT, method: str = "POST", query: str = "") -> tuple[int, Any]:
        """Status and body; the body is text if it is not JSON."""
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": b"" if body is None else json.dumps(body).encode()}

        async def send(message: Message) -> None:
            sent.append(message)

        headers = [(b"authorization", b"Bearer of-the-client"), (b"content-type", b"application/json"), (b"x-a", b"b")]
        scope = {"type": "http", "method": method, "path": path, "headers": headers, "query_string": query.encode()}
        try:
            await self.models(scope, receive, send)
        except Refused as refused:
            return refused.status, str(refused)
        text = b"".join(message.get("body", b"") for message in sent).decode()
        assert {name for name, _ in sent[0]["headers"]} <= {b"content-type", b"content-length"}
        return sent[0]["status"], json.loads(text) if text.startswith("{") else text


def served(
    names: Sequence[str], test: Callable[[Place], Awaitable[None]], folder: Path = Path("/models"), kept: int = 4,
    reloads: bool = False,
) -> list[str]:
    """Run a test on models of these names, the first loaded; returns the log."""
    log: list[str] = []

    async def run() -> None:
        async with forwarding_client() as client:
            settings = {
                name: ModelSettings(
                    path=folder / f"{name}.gguf", name=name, context_size=512, parallel=1, threads=1,
                    n_gpu_layers=0,
                )
                for name in names
            }  # fmt: skip
            started: list[str] = []

            async def start(settings: ModelSettings) -> ModelProcess:
                started.append(settings.name)
                return await ModelProcess.start("tests.unit.model_program", settings, log.append)

            models = Models(settings, start, "it 1.2", client, kept, log=log.append, reloads=reloads)
            try:
                await models.load_first()
                await asyncio.wait_for(test(Place(models, log, started)), 30)
            finally:
                await models.stop()

    asyncio.run(run())
    return log


def test_a_request_reaches_the_process_with_its_own_key_and_the_headers_that_matter() -> None:
    async def test(place: Place) -> None:
        status, said = await place.ask({"a": [1]}, query="model=a&other=1")
        assert status == 200 and said["asked"] == {"a": [1]} and said["path"] == f"{CHAT}?model=a"
        assert said["headers"]["content-type"] == "application/json" and "x-a" not in said["headers"]
        assert "of-the-client" not in str(said["headers"])
        assert (await place.ask(path="/metrics", method="GET"))[1]["path"] == "/metrics"

    served(["a"], test)


def test_what_serves_is_named_and_the_models_are_listed() -> None:
    async def test(place: Place) -> None:
        assert await place.ask(path="/health", method="GET") == (200, {"status": "ok"})
        props = (await place.ask(path="/props", method="GET", query="model=b"))[1]
        assert (props["model"], props["server"], props["build_info"]) == ("b", "it 1.2", "it 1.2")
        listed = (await place.ask(path="/v1/models", method="GET"))[1]
        assert [model["id"] for model in listed["data"]] == ["a", "b"]

    served(["a", "b"], test)


@pytest.mark.parametrize("names", [("a",), ("a", "b")])
def test_without_a_name_the_first_model_answers_and_an_unknown_name_is_refused(names: tuple[str, ...]) -> None:
    async def test(place: Place) -> None:
        for body in ({}, {"model": ""}, {"model": None}, {"model": "default"}):
            assert (await place.ask(body))[1]["model"] == "a"
        for unknown in ("other", "gpt-3.5-turbo", "A"):
            for status, said in (await place.ask({"model": unknown}), await place.ask({}, query=f"model={unknown}")):
                assert status == 404 and f"'{unknown}' is not served" in said and f"these: {', '.join(names)};" in said
        assert (await place.ask(path="/props", method="GET", query="model=other"))[0] == 404
        assert (await place.ask(path="/props", method="GET"))[1]["model"] == "a"
        assert (await place.ask({"model": ["a"]}))[0] == 400
        assert (await place.ask({"model": names[-1]}))[1]["model"] == names[-1]
        assert (await place.ask({}, query=f"model={names[-1]}"))[1]["model"] == names[-1]
        assert place.started == list(names)

    served(names, test)


def test_the_model_that_was_not_asked_for_longest_makes_room_once_it_has_answered() -> None:
    async def test(place: Place) -> None:
        for name in ("a", "b", "a", "c", "a"):
            assert (await place.ask({"model": name}))[1]["model"] == name
        assert place.started == ["a", "b", "c"], "b made room, a was asked for since"
        stream = {"do": "stream", "n": 20, "pause_s": 0.1}
        slow = [asyncio.create_task(place.ask({"model": name, **stream})) for name in "ac"]
        await asyncio.sleep(0.5)
        waiting = [asyncio.create_task(place.ask({"model": "b"})) for _ in range(3)]
        waiting[2].cancel()  # its client left
        await asyncio.sleep(0.1)
        assert not any(task.done() for task in (*slow, *waiting[:2]))
        assert [(await task)[0] for task in (*slow, *waiting[:2])] == [200] * 4

    served(["a", "b", "c"], test, kept=2)


def test_one_model_at_a_time_answers_every_request_in_the_end() -> None:
    async def test(place: Place) -> None:
        asked = [{"model": name, "do": "stream", "n": 3, "pause_s": 0.01} for name in "abab"]
        assert [status for status, _ in await asyncio.gather(*map(place.ask, asked))] == [200] * 4
        assert len(place.models._loaded) == 1

    served(["a", "b"], test, kept=1)


def test_a_stream_is_passed_on_and_ends_in_the_process_when_the_client_leaves(tmp_path: Path) -> None:
    left = tmp_path / "left"

    async def test(place: Place) -> None:
        assert (await place.ask({"do": "stream", "n": 3}))[1] == "data: 0\n\ndata: 1\n\ndata: 2\n\n"
        asked = {"do": "stream", "n": 10_000, "pause_s": 0.02, "left": str(left)}
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(place.ask(asked), 1)
        for _ in range(100):
            await asyncio.sleep(0.05)
            if left.exists():
                return
        pytest.fail("the process still writes")

    served(["a"], test)


def test_a_crash_is_noticed_with_its_reason_and_the_request_is_told() -> None:
    async def test(place: Place) -> None:
        status, said = await place.ask({"do": "crash"})
        assert status == 503 and "does not answer" in said
        ended = await place.models.crashed()
        assert ended.exit_code == 128 + 6 and "aborted (SIGABRT)" in str(ended) and "GGML_ASSERT" in str(ended)
        assert ended.tail.endswith("frame 1") and "\x1b" not in ended.tail

    served(["a"], test)


@pytest.mark.parametrize(("how", "said"), [
    (signal.SIGKILL, "killed (SIGKILL): memory ran out"), (signal.SIGTERM, "exit code -15"), (9, "exit code 9"),
])  # fmt: skip
def test_a_model_whose_process_was_killed_is_loaded_again_and_the_others_go_on(
    how: signal.Signals | int, said: str
) -> None:
    async def end(place: Place) -> None:
        if isinstance(how, signal.Signals):
            place.models._loaded["a"]._process.send_signal(how)
        else:
            assert (await place.ask({"model": "a", "do": "end", "code": how}))[0] == 503

    async def test(place: Place) -> None:
        for name in "ab":
            assert (await place.ask({"model": name}))[0] == 200
        stream = {"do": "stream", "n": 200, "pause_s": 0.05}
        broken, whole = (asyncio.create_task(place.ask({"model": name, **stream})) for name in "ab")
        await asyncio.sleep(0.3)
        await end(place)
        status, why = await broken
        assert status == 503 and "ended" in why and not whole.done()
        await asyncio.sleep(0.3)
        assert (await place.ask({"model": "a"}))[1]["model"] == "a" and place.started == ["a", "b", "a"]
        assert not place.models._crashed.done()
        whole.cancel()

    log = served(["a", "b"], test, reloads=True)
    assert any(said in line and "the next request for it loads it again" in line for line in log), log


def test_a_crash_of_llama_cpp_is_not_tried_twice() -> None:
    async def test(place: Place) -> None:
        assert (await place.ask({"do": "crash"}))[0] == 503
        assert (await place.models.crashed()).is_crash

    served(["a"], test, reloads=True)


def test_a_model_that_waits_for_room_gets_it_when_another_is_killed() -> None:
    async def test(place: Place) -> None:
        slow = asyncio.create_task(place.ask({"model": "a", "do": "stream", "n": 1000, "pause_s": 0.05}))
        await asyncio.sleep(0.3)
        waiting = asyncio.create_task(place.ask({"model": "b"}))
        await asyncio.sleep(0.1)
        place.models._loaded["a"]._process.kill()
        assert (await slow)[0] == 503 and (await waiting)[0] == 200

    served(["a", "b"], test, kept=1, reloads=True)


def test_the_log_is_passed_on_until_the_model_is_loaded_and_kept_back_then() -> None:
    async def test(place: Place) -> None:
        await place.ask({"do": "say", "text": "what a client sent"})
        await asyncio.sleep(0.1)

    assert served(["a"], test) == [r"loading \x1b]0;title\x07"]


def test_a_model_that_does_not_load_is_said_with_its_exit_code_and_log() -> None:
    with pytest.raises(ModelEnded) as caught:
        served(["broken"], lambda _place: pytest.fail("it was served"))
    assert caught.value.exit_code == 1 and not caught.value.tail, "its log was passed on"

    async def later(place: Place) -> None:
        status, said = await place.ask({"model": "broken"})
        assert status == 500 and "exit code 1" in said and "/models/" not in said
        assert (await place.ask({"model": "a"}))[0] == 200

    served(["a", "broken"], later)


@pytest.mark.parametrize("how", ["replaced", "removed", "appeared"])
def test_a_file_that_changed_after_the_start_is_not_loaded_under_the_old_name(tmp_path: Path, how: str) -> None:
    path = tmp_path / "b.gguf"
    if how != "appeared":
        path.write_bytes(b"old")

    async def test(place: Place) -> None:
        if how != "appeared":
            path.unlink()
        if how != "removed":
            path.write_bytes(b"newer")
        status, said = await place.ask({"model": "b"})
        assert status == 500 and "b was replaced or removed" in said and "make serve ENGINE=local" in said
        assert (await place.ask({"model": "a"}))[0] == 200, "it is loaded"

    served(["a", "b"], test, tmp_path)


def test_no_process_is_left() -> None:
    pids: list[int] = []

    async def test(place: Place) -> None:
        pids.extend(process._process.pid for process in place.models._loaded.values())

    served(["a"], test)
    assert not is_running(pids[0])


def test_the_process_of_a_model_does_not_outlive_its_parent() -> None:
    code = (
        "import asyncio, os, signal\n"
        "from tests.unit.test_local_models import served\n"
        "async def test(place):\n"
        "    print(*(process._process.pid for process in place.models._loaded.values()), flush=True)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
        "served(['a'], test)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=REPO_DIR, timeout=60)
    pid, deadline = int(done.stdout), time.monotonic() + 20
    while is_running(pid):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False


@pytest.mark.parametrize(("line", "shown"), [("a\tb\n", r"a\tb"), ("é\x1b[0m", r"é\x1b[0m"), ("\u202e", r"\u202e")])
def test_a_line_of_the_log_has_no_control_characters(line: str, shown: str) -> None:
    assert printable_server_log_line(line) == shown


def test_a_model_that_takes_too_long_to_load_is_ended_with_the_likely_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(processes, "_LOAD_S", 0.01)
    with pytest.raises(ModelEnded, match="chat template loops forever") as caught:
        served(["a"], lambda _place: pytest.fail("it was served"))
    assert caught.value.exit_code == 2
