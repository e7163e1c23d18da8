"""What the local server answers itself of several models: their metrics, and the events that the web page waits for."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from server.local.guard import Message
from server.local.metrics import merge_model_metrics
from server.local.router import Router

_TEXT = """# HELP t Tokens.
# TYPE t counter
t 3
# TYPE l gauge
l{slot="0"} 1.5
"""


def test_each_line_has_the_name_of_its_model_and_each_metric_one_description() -> None:
    assert merge_model_metrics({"a": _TEXT, 'b "x"': _TEXT.replace("3", "4"), "c": None}).splitlines() == [
        "# HELP quantyard_model_loaded Whether the model is loaded.", "# TYPE quantyard_model_loaded gauge",
        'quantyard_model_loaded{model="a"} 1', 'quantyard_model_loaded{model="b \\"x\\""} 1',
        'quantyard_model_loaded{model="c"} 0',
        "# HELP t Tokens.", "# TYPE t counter", 't{model="a"} 3', 't{model="b \\"x\\""} 4',
        "# TYPE l gauge", 'l{model="a",slot="0"} 1.5', 'l{model="b \\"x\\"",slot="0"} 1.5',
    ]  # fmt: skip


class Models:
    """What a router asks of them: two, of which the second is loaded on request."""

    def __init__(self) -> None:
        self.models, self.server, self.kept = {"a": None, "b": None}, "it 1.2", 2
        self.tell: Any = None

    async def load(self, scope: Message, body: bytes) -> None:
        name = json.loads(body)["model"]
        self.tell(name, "loading")
        await asyncio.sleep(0)
        self.tell(name, "loaded")

    async def metrics(self, name: str) -> str | None:
        return _TEXT if name == "a" else None

    async def __call__(self, scope: Message, receive: Any, send: Any) -> None:
        await send({"type": "passed on"})


def _scope(path: str, query: str = "") -> dict[str, Any]:
    return {"type": "http", "method": "GET", "path": path, "headers": [], "query_string": query.encode()}


async def _ask(router: Router, scope: dict[str, Any], body: bytes = b"") -> list[Message]:
    sent: list[Message] = []

    async def receive() -> Message:
        return {"type": "http.request", "body": body}

    async def send(message: Message) -> None:
        sent.append(message)

    await router(scope, receive, send)
    return sent


def test_the_page_is_told_when_the_model_that_it_asked_for_is_loaded() -> None:
    async def run() -> None:
        router, told = Router(Models()), []  # type: ignore[arg-type,var-annotated]

        async def send(message: Message) -> None:
            told.append(message.get("body", b""))

        listening = asyncio.create_task(router(_scope("/models/sse"), lambda: asyncio.sleep(60), send))  # type: ignore[arg-type]
        await asyncio.sleep(0)
        answered = await _ask(router, _scope("/models/load"), b'{"model": "b"}')
        assert json.loads(answered[1]["body"]) == {"success": True}
        await asyncio.sleep(0.01)
        events = [json.loads(line.removeprefix(b"data: ")) for line in told if line]
        assert [(event["model"], event["data"]["status"]) for event in events] == [("b", "loading"), ("b", "loaded")]
        listening.cancel()
        await asyncio.gather(listening, return_exceptions=True)
        assert not router._listeners

    asyncio.run(run())


@pytest.mark.parametrize(("path", "query", "is_its_own"), [
    ("/props", "", True), ("/props", "model=a", False), ("/metrics", "", True), ("/metrics", "model=a", False),
    ("/v1/models", "", False), ("/", "", False),
])  # fmt: skip
def test_of_one_model_and_of_all_else_the_models_answer(path: str, query: str, is_its_own: bool) -> None:
    sent = asyncio.run(_ask(Router(Models()), _scope(path, query)))  # type: ignore[arg-type]
    assert (sent[0]["type"] != "passed on") == is_its_own
    if path == "/props" and is_its_own:
        assert json.loads(sent[1]["body"])["role"] == "router"
