"""A token service for a real registry (`auth: token`), as the large registries have one: visitors may pull from what is
public, the user of `docker_config` may do everything.
"""

from __future__ import annotations

import base64
import json
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from tests.docker.registry import tls_certificate

_NAME = "tokens"


@contextmanager
def token_service(folder: Path, public: str) -> Iterator[str]:
    """One with TLS, for a registry whose repositories below `public` are everybody's; the registry's setting `auth`.

    Its certificate is `cert.pem` in the folder, and signs the tokens too.
    """
    certificate = tls_certificate(folder, "IP:127.0.0.1")

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked = parse_qs(urlsplit(self.path).query)
            is_member = self.headers.get("Authorization", "").startswith("Basic ")
            token = _token(folder, [_granted(scope, public, is_member) for scope in asked.get("scope", [])])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(json.dumps({"token": token}).encode())

        def log_message(self, *_: object) -> None:
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, folder / "key.pem")
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    realm = f"https://127.0.0.1:{server.server_port}/token"
    try:
        yield f"token: {{realm: '{realm}', service: {_NAME}, issuer: {_NAME}, rootcertbundle: {certificate}}}"
    finally:
        server.shutdown()
        server.server_close()


def _granted(scope: str, public: str, is_member: bool) -> dict[str, object]:
    kind, name, actions = scope.split(":")
    readable = ["pull"] if name.startswith(public) else []
    return {"type": kind, "name": name, "actions": actions.split(",") if is_member else readable}


def _token(folder: Path, access: list[dict[str, object]]) -> str:
    """A JSON web token that the registry trusts by the certificate."""
    certificate = "".join((folder / "cert.pem").read_text().splitlines()[1:-1])
    now = int(time.time())
    claims = {"iss": _NAME, "aud": _NAME, "sub": "", "exp": now + 60, "nbf": now - 60, "iat": now, "jti": "1"}
    head = {"typ": "JWT", "alg": "RS256", "x5c": [certificate]}
    text = f"{_encoded(json.dumps(head).encode())}.{_encoded(json.dumps(claims | {'access': access}).encode())}"
    argv = ["openssl", "dgst", "-sha256", "-sign", str(folder / "key.pem")]
    signed = subprocess.run(argv, input=text.encode(), capture_output=True, check=True).stdout
    return f"{text}.{_encoded(signed)}"


def _encoded(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
