"""The HTTP server: the routes of llama-server's API that an encoder-decoder can answer, each with the key.

It stands behind a guard (the proxy of compose.yaml, or `local.guard`), which limits what reaches it: how many, how
large, how slow. So it is the standard library's, a thread for each connection.
"""

from __future__ import annotations

import hmac
import json
import select
import socket
import sys
import time
import traceback
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import chain
from threading import Lock
from typing import Any, Final

from server.encoder_decoder.answers import AnswerForm, Metrics, answer_usage, error_answer
from server.encoder_decoder.asked import Asked, BadBody, parse_json_object, read_asked
from server.encoder_decoder.model import CannotServe, TooLong
from server.encoder_decoder.models import ServedModels
from server.encoder_decoder.written import WrittenText
from server.limits.model_names import UnknownModel
from server.limits.request_rules import LIMITS, TooMuch, check_text_limit

_OPEN: Final = ("/health", "/v1/health")  # without a key
_CHAT: Final = ("/v1/chat/completions", "/chat/completions")
_COMPLETION: Final = ("/v1/completions", "/completions")
_IDLE_S: Final = 60.0  # for a client to send or to read
# Routes of llama-server that this model has nothing for.
_NOT_HERE: Final = (
    "/completion", "/v1/embeddings", "/embeddings", "/v1/rerank", "/v1/messages", "/v1/messages/count_tokens",
    "/v1/responses", "/responses", "/apply-template",
)  # fmt: skip


class EncoderDecoderServer(ThreadingHTTPServer):
    """Serves models on an address; `keys`: those that clients may show, none for no check."""

    daemon_threads, block_on_close, request_queue_size = True, False, 256

    def __init__(self, address: tuple[str, int], models: ServedModels, keys: Collection[str]) -> None:
        self.models, self.keys = models, tuple(f"Bearer {key}" for key in keys)
        self.metrics, self._lock = Metrics(), Lock()
        super().__init__(address, _Handler)

    def is_known(self, shown: str) -> bool:
        """Whether a request shows a key."""
        known = [hmac.compare_digest(shown.encode(errors="replace"), key.encode()) for key in self.keys]
        return any(known) or not known

    @contextmanager
    def counted(self, reply: _Reply) -> Iterator[None]:
        """Count a request and what it took."""
        with self._lock:
            self.metrics.processing += 1
        try:
            yield
        finally:
            with self._lock:
                self.metrics.processing -= 1
                self.metrics.prompt_tokens += reply.n_prompt
                self.metrics.written_tokens += reply.n_written
                self.metrics.prompt_s += reply.prompt_s
                self.metrics.written_s += reply.written_s

    def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ARG002 (those of the base class)
        """Log a fault of ours; a client that leaves is not one."""
        if not isinstance(sys.exception(), OSError):
            traceback.print_exc()


@dataclass
class _Reply:
    """One answer while it is written; iterating gives its text as it becomes certain."""

    asked: Asked
    models: ServedModels
    n_prompt: int = 0
    n_written: int = 0
    prompt_s: float = 0.0  # until the first token
    written_s: float = 0.0
    finish_reason: str = "length"
    _started: float = field(default_factory=time.perf_counter)

    def __post_init__(self) -> None:
        self.model = self.models.loaded(self.asked.model)
        self.prompt = self.model.tokenize(self.asked.prompt, add_special=True)
        self.n_prompt = len(self.prompt)

    @property
    def usage(self) -> dict[str, int]:
        return answer_usage(self.n_prompt, self.n_written)

    def __iter__(self) -> Iterator[str]:
        written = WrittenText(self.asked.stop)
        tokens = self.model.answer(self.prompt, self.asked.max_tokens, self.asked.sampling)
        try:
            for piece in tokens:
                self._count()
                if piece is None:
                    self.finish_reason = "stop"
                    break
                yield written.add(piece)
                if written.is_stopped:
                    self.finish_reason = "stop"
                    return
            yield written.end()
        finally:
            tokens.close()  # type: ignore[attr-defined]
            self.written_s = time.perf_counter() - self._started - self.prompt_s

    def _count(self) -> None:
        self.prompt_s = self.prompt_s or time.perf_counter() - self._started
        self.n_written += 1


class _Handler(BaseHTTPRequestHandler):
    """One connection.

    The client closes it: every answer says where it ends. A proxy that finds the end of the connection together with
    the answer may take the answer for lost (nginx was seen to).
    """

    protocol_version, timeout = "HTTP/1.1", _IDLE_S
    _is_unread = False  # a body was not read, so what follows cannot be found
    server: EncoderDecoderServer

    def do_GET(self) -> None:
        """What the server says of itself."""
        path = self.path.partition("?")[0]
        if not self._is_let_in(path):
            return
        models = self.server.models
        if path in _OPEN:
            self._json(200, {"status": "ok"})
        elif path in ("/v1/models", "/models"):
            self._json(200, {"object": "list", "data": models.listed()})
        elif path == "/props":
            self._json(200, models.props())
        elif path == "/metrics":
            self._send(200, self.server.metrics.text().encode(), "text/plain; version=0.0.4")
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "This route does not exist.")

    do_HEAD = do_GET  # noqa: N815 (the name of the base class)

    def do_POST(self) -> None:
        """What is asked of a model."""
        path = self.path.partition("?")[0]
        if not self._is_let_in(path):
            return
        try:
            self._post(path, self._body())
        except (BadBody, TooLong, TooMuch) as error:
            self._refuse(HTTPStatus.BAD_REQUEST, str(error))
        except UnknownModel as error:
            self._refuse(HTTPStatus.NOT_FOUND, str(error))
        except CannotServe as error:
            self._refuse(HTTPStatus.INTERNAL_SERVER_ERROR, f"the model failed: {error}")

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 (the name of the base class)
        """Requests are private."""

    def _post(self, path: str, body: dict[str, Any]) -> None:
        if path in (*_CHAT, *_COMPLETION):
            self._answer(read_asked(body, is_chat=path in _CHAT))
        elif path == "/tokenize":
            check_text_limit(body.get("content"))
            model = self.server.models.loaded(str(body.get("model") or ""))
            text = str(body.get("content") or "")
            self._json(200, {"tokens": model.tokenize(text, add_special=bool(body.get("add_special")))})
        elif path == "/detokenize":
            model = self.server.models.loaded(str(body.get("model") or ""))
            pieces = [model.piece(token) for token in _token_ids_of_request(body)]
            self._json(200, {"content": b"".join(pieces).decode(errors="replace")})
        elif path in _NOT_HERE:
            self._refuse(HTTPStatus.NOT_IMPLEMENTED, "An encoder-decoder has no such route: use /v1/completions.")
        else:
            self._refuse(HTTPStatus.NOT_FOUND, "This route does not exist.")

    # ---- answers -------------------------------------------------------------------------------------

    def _answer(self, asked: Asked) -> None:
        reply = _Reply(asked, self.server.models)
        form = AnswerForm(self.server.models.name_of(asked.model), asked.is_chat)
        with self.server.counted(reply):
            if asked.stream:
                self._stream(reply, form)
            elif (text := self._text(reply)) is not None:
                self._json(200, form.whole(text, reply.finish_reason, reply.usage))

    def _text(self, reply: _Reply) -> str | None:
        """The whole text; None once nobody waits for it."""
        pieces = []
        for piece in reply:
            pieces.append(piece)
            if self._is_gone():
                return None
        return "".join(pieces)

    def _stream(self, reply: _Reply, form: AnswerForm) -> None:
        """Server-sent events. The first token is awaited before the status, so that a refusal still is one."""
        pieces = iter(reply)
        pieces = chain([next(pieces, "")], pieces)
        self.send_response(HTTPStatus.OK)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.close_connection = True  # if the client left, which also ends the answer
        with suppress(OSError):
            if (chunk := form.first()) is not None:
                self._event(chunk)
            for piece in pieces:
                if piece:
                    self._event(form.piece(piece))
            self._event(form.last(reply.finish_reason))
            if reply.asked.with_usage:
                self._event(form.usage(reply.usage))
            self._event("[DONE]")
            self.wfile.write(b"0\r\n\r\n")
            self.close_connection = False

    def _event(self, said: dict[str, Any] | str) -> None:
        event = f"data: {said if isinstance(said, str) else json.dumps(said)}\n\n".encode()
        self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))

    def _is_gone(self) -> bool:
        readable, _, _ = select.select([self.connection], [], [], 0)
        if not readable:
            return False
        try:
            return not self.connection.recv(1, socket.MSG_PEEK)
        except OSError:
            return True

    # ---- requests ------------------------------------------------------------------------------------

    def _is_let_in(self, path: str) -> bool:
        if path in _OPEN or self.server.is_known(self.headers.get("Authorization", "")):
            return True
        self._is_unread = self.command == "POST"
        self._refuse(HTTPStatus.UNAUTHORIZED, "Invalid API Key")
        return False

    def _body(self) -> dict[str, Any]:
        length = self.headers.get("Content-Length", "")
        most = LIMITS["body_bytes"].most
        if not length.isdecimal() or int(length) > most:
            self._is_unread = True
            raise BadBody(f"a body must have a Content-Length of at most {most} bytes")
        return parse_json_object(self.rfile.read(int(length)))

    def _json(self, status: int, body: dict[str, Any]) -> None:
        self._send(status, json.dumps(body).encode(), "application/json")

    def _refuse(self, status: int, message: str) -> None:
        self._json(status, error_answer(status, message))

    def _send(self, status: int, data: bytes, kind: str) -> None:
        with suppress(OSError):
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)
        self.close_connection = self._is_unread


def _token_ids_of_request(body: dict[str, Any]) -> list[int]:
    tokens = body.get("tokens")
    if not isinstance(tokens, list) or not all(type(token) is int for token in tokens):
        raise BadBody("tokens must be a list of numbers")
    return [token for token in tokens if 0 <= token < 2**31]
