"""A SOCKS5 proxy (RFC 1928, with the login of RFC 1929) for which every name is this machine."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from socketserver import StreamRequestHandler, ThreadingTCPServer
from typing import BinaryIO

_WITH_LOGIN, _NONE = 2, 0xFF


@dataclass
class SocksProxy:
    """The login it asks for, its port, and what it was asked."""

    login: tuple[str, str]
    port: int = 0
    hosts: list[str] = field(default_factory=list)  # names that clients left to the proxy


@contextmanager
def socks_proxy(login: tuple[str, str]) -> Iterator[SocksProxy]:
    """A proxy on the loopback interface that asks for this login."""
    proxy = SocksProxy(login)

    class Handler(StreamRequestHandler):
        def handle(self) -> None:
            with suppress(OSError, EOFError):
                _serve(proxy, self.rfile, self.request)

    with ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        proxy.port = server.server_address[1]
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        try:
            yield proxy
        finally:
            server.shutdown()


def _serve(proxy: SocksProxy, asked: BinaryIO, client: socket.socket) -> None:
    _, n_methods = _read(asked, 2)
    if _WITH_LOGIN not in _read(asked, n_methods):
        client.sendall(bytes([5, _NONE]))
        return
    client.sendall(bytes([5, _WITH_LOGIN]))
    _, length = _read(asked, 2)
    user = _read(asked, length).decode()
    word = _read(asked, _read(asked, 1)[0]).decode()
    client.sendall(bytes([1, (user, word) != proxy.login]))
    if (user, word) != proxy.login:
        return
    *_, kind = _read(asked, 4)
    address = _read(asked, {1: 4, 4: 16}.get(kind) or _read(asked, 1)[0])
    port = int.from_bytes(_read(asked, 2))
    if kind == 3:
        proxy.hosts.append(address.decode())
    with socket.create_connection(("127.0.0.1", port), timeout=10) as there:
        client.sendall(bytes([5, 0, 0, 1, 0, 0, 0, 0, 0, 0]))
        back = threading.Thread(target=_pass, args=(there, client), daemon=True)
        back.start()
        while block := asked.read1(65536):  # type: ignore[attr-defined]
            there.sendall(block)


def _pass(source: socket.socket, sink: socket.socket) -> None:
    with suppress(OSError):
        while block := source.recv(65536):
            sink.sendall(block)


def _read(stream: BinaryIO, n: int) -> bytes:
    found = stream.read(n)
    if len(found) < n:
        raise EOFError
    return found
