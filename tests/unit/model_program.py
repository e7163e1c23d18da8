"""A program as server/local/model_process.py starts it, without a model: it answers, streams and dies as asked."""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Handler(BaseHTTPRequestHandler):
    """Says what it was asked with; `{"do": …}` in a body asks for more."""

    settings: dict[str, Any]
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self.answer({"model": self.settings["name"], "build_info": "b0-unknown", "path": self.path})

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        do = asked.get("do")
        if do == "crash":
            print("/src/ggml.c:12: GGML_ASSERT(\x1b[31mfalse) failed\nframe 1", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGABRT)
        elif do == "end":
            os._exit(asked["code"])
        elif do == "say":
            print(asked["text"], file=sys.stderr, flush=True)
            self.answer({})
        elif do == "stream":
            self.stream(asked)
        else:
            headers = dict(self.headers)
            self.answer({"model": self.settings["name"], "asked": asked, "headers": headers, "path": self.path})

    def stream(self, asked: dict[str, Any]) -> None:
        """Pieces until the client leaves, which is noted in a file."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("X-Own", "kept")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            for number in range(asked["n"]):
                self.piece(f"data: {number}\n\n")
                time.sleep(asked.get("pause_s", 0))
            self.piece("")
        except OSError:
            open(asked["left"], "w").close()  # noqa: PTH123

    def piece(self, text: str) -> None:
        self.wfile.write(f"{len(text):x}\r\n{text}\r\n".encode())
        self.wfile.flush()

    def answer(self, value: object) -> None:
        data = json.dumps(value).encode()
        is_right = self.headers["Authorization"] == f"Bearer {self.settings['key']}"
        self.send_response(200 if is_right else 401)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_: object) -> None:
        """Nothing."""


def main() -> None:
    Handler.settings = json.loads(sys.stdin.readline())
    print("loading \x1b]0;title\x07", file=sys.stderr, flush=True)
    if "broken" in Handler.settings["path"]:
        sys.exit("error loading model: no GGUF")
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    print(f"http://127.0.0.1:{server.server_port}", flush=True)
    sys.stdin.read()
    os._exit(0)


if __name__ == "__main__":
    main()
