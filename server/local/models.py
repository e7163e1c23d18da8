"""The models of the local server: an ASGI application that has each request answered by the process of its model.

A model is loaded when a request first names it. At most `kept` are loaded; the one that was not asked for longest
makes room for another once it is idle, as with llama-server's router.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import httpx2

from server.limits.model_names import UnknownModel, requested_model
from server.limits.request_rules import TooMuch
from server.local.forward import Forward, model_in_query
from server.local.guard import Message, Receive, Refused, Send, guard_answer_json
from server.local.model_process import ModelEnded, ModelProcess, ModelSettings

_HEALTH: Final = ("/health", "/v1/health")
_LIST: Final = ("/v1/models", "/models")
_METRICS: Final = "/metrics"
_PROPS: Final = "/props"

StartModel = Callable[[ModelSettings], Awaitable[ModelProcess]]


@dataclass
class Models:
    """The application.

    Args:
        models: by name, in the order in which they are listed. The first answers a request that names none.
        start: starts the process of a model.
        server: what serves and its version, for GET /props.
        client: for requests to the processes.
        kept: how many stay loaded.
        tell: is told of each change of a model: its name, and `loading`, `loaded`, `failed`
            or `unloaded`.
        log: is told what ended a process, if `reloads`.
        reloads: whether a model whose process was killed is loaded again when it is next asked for. A crash of
            llama.cpp is not tried twice.
    """

    models: Mapping[str, ModelSettings]
    start: StartModel
    server: str
    client: httpx2.AsyncClient
    kept: int = 4
    tell: Callable[[str, str], None] = lambda _model, _status: None
    log: Callable[[str], None] = lambda _text: None
    reloads: bool = False
    _loaded: dict[str, ModelProcess] = field(default_factory=dict)  # the one not asked for longest comes first
    _loading: asyncio.Lock = field(default_factory=asyncio.Lock)
    _answered: asyncio.Event = field(default_factory=asyncio.Event)  # since somebody waits for it
    _watchers: set[asyncio.Task[None]] = field(default_factory=set)
    _crashed: asyncio.Future[ModelEnded] = field(init=False)

    def __post_init__(self) -> None:
        self._crashed = asyncio.get_running_loop().create_future()
        self._stamps = {name: _model_file_stamp(settings.path) for name, settings in self.models.items()}

    async def load_first(self) -> None:
        """Load the first model.

        Raises:
            ModelEnded: it cannot be loaded.
        """
        await self._load(next(iter(self.models)))

    async def crashed(self) -> ModelEnded:
        """Wait until the process of a loaded model ends by itself, and the model is not to be loaded again."""
        return await asyncio.shield(self._crashed)

    async def stop(self) -> None:
        """End all processes."""
        for watcher in self._watchers:
            watcher.cancel()
        await asyncio.gather(*(process.stop() for process in self._loaded.values()))

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        path = scope["path"]
        if path in _HEALTH:
            return await guard_answer_json(send, {"status": "ok"})
        if path in _LIST:
            return await guard_answer_json(send, self._listed())
        message = await receive()
        process = await self._process(self._named(scope, message["body"]))
        process.n_requests += 1
        try:
            if path == _PROPS:
                return await guard_answer_json(send, await self._props(process))
            forward = Forward(process.address, process.settings.key, self.client)
            await forward(scope, _receive_only_body(message), send)
        finally:
            process.n_requests -= 1
            self._answered.set()
        return None

    async def load(self, scope: Message, body: bytes) -> None:
        """Load the model that a request names.

        Raises:
            Refused: it is not here, or cannot be loaded.
        """
        await self._process(self._named(scope, body))

    async def metrics(self, name: str) -> str | None:
        """Those of a model; None: it is not loaded."""
        process = self._loaded.get(name)
        try:
            return (await self._get(process, _METRICS)).text if process else None
        except httpx2.TransportError:  # it is being unloaded
            return None

    async def _get(self, process: ModelProcess, path: str) -> httpx2.Response:
        headers = {"Authorization": f"Bearer {process.settings.key}"}
        return await self.client.get(process.address + path, headers=headers)

    def _listed(self) -> dict[str, Any]:
        """The models as llama-server lists them, as far as clients read it; of several, whether they are loaded."""
        now = int(time.time())
        data: list[dict[str, Any]] = [
            {"id": name, "object": "model", "created": now, "owned_by": "llamacpp"} for name in self.models
        ]
        if len(data) > 1:
            for model in data:
                model["status"] = {"value": "loaded" if model["id"] in self._loaded else "unloaded"}
        return {"object": "list", "data": data}

    async def _props(self, process: ModelProcess) -> dict[str, Any]:
        """Its own, and what serves, if it does not say that: llama-server's build_info has no number here."""
        own = (await self._get(process, _PROPS)).json()
        return own if "server" in own else {**own, "build_info": self.server, "server": self.server}

    def _named(self, scope: Message, body: bytes) -> str:
        """The model that answers a request.

        Raises:
            Refused: 404, it names one that is not here; 400, what it names is not a string.
        """
        asked = json.loads(body) if scope["method"] == "POST" else {}
        try:
            return requested_model(list(self.models), asked, model_in_query(scope))
        except UnknownModel as error:
            raise Refused(404, str(error)) from None
        except TooMuch as error:
            raise Refused(400, str(error)) from None

    async def _process(self, name: str) -> ModelProcess:
        """The process of a model, which is started if there is none; if too many are loaded, once one of them is idle.

        Raises:
            Refused: 500, it cannot be loaded, or is not the file any more that was there at the start.
        """
        if name not in self._loaded:
            async with self._loading:
                if name not in self._loaded:
                    if _model_file_stamp(self.models[name].path) != self._stamps[name]:
                        message = f"The file of {name} was replaced or removed after this server had started."
                        raise Refused(500, f"{message} Stop the server, and type: make serve ENGINE=local")
                    await self._make_room()
                    try:
                        await self._load(name)
                    except ModelEnded as error:
                        raise Refused(500, f"the model cannot be loaded. {error}") from None
        self._loaded[name] = process = self._loaded.pop(name)
        return process

    async def _make_room(self) -> None:
        """Unload models, each once it is idle, until one more may be loaded."""
        while len(self._loaded) >= self.kept:
            idle = next((name for name, process in self._loaded.items() if not process.n_requests), None)
            if idle is None:
                self._answered.clear()
                await self._answered.wait()
            else:
                await self._loaded.pop(idle).stop()
                self.tell(idle, "unloaded")

    async def _load(self, name: str) -> None:
        self.tell(name, "loading")
        try:
            self._loaded[name] = process = await self.start(self.models[name])
        finally:
            self.tell(name, "loaded" if name in self._loaded else "failed")
        watcher = asyncio.create_task(self._watch_model_process(name, process))
        self._watchers.add(watcher)
        watcher.add_done_callback(self._watchers.discard)

    async def _watch_model_process(self, name: str, process: ModelProcess) -> None:
        ended = await process.ended()
        if self._loaded.get(name) is not process:
            return
        if self.reloads and not ended.is_crash:
            del self._loaded[name]
            self._answered.set()  # there is room
            self.tell(name, "unloaded")
            self.log(f"error: {ended} Its answers in progress ended in errors; the next request for it loads it again.")
        elif not self._crashed.done():
            self._crashed.set_result(ended)


def _model_file_stamp(path: Path) -> tuple[int, int, int] | None:
    """What changes with another file: inode, size and time; None: there is none."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def _receive_only_body(message: Message) -> Receive:
    async def receive() -> Message:
        return message

    return receive
