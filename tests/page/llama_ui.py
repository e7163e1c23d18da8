"""llama.cpp's own web page as files, out of the package xllamacpp: stand-ins of its images have an older one."""

from __future__ import annotations

import gzip
import re
import subprocess
from pathlib import Path
from urllib.request import Request, urlopen

from quantyard.paths import REPO_DIR
from tests.docker.compose_project import free_port

_SERVE = """
import sys
import xllamacpp

params = xllamacpp.CommonParams()
params.hostnames, params.port, params.ui, params.n_ctx = ["127.0.0.1"], int(sys.argv[1]), True, 512
params.model.path, params.verbosity = sys.argv[2], 1
server = xllamacpp.Server(params)
print("ready", flush=True)
sys.stdin.read()
"""
_NOT_LISTED = ("index.html", "sw.js", "build.json", "manifest.webmanifest", "_app/version.json")


def write_llama_ui(folder: Path, gguf: Path) -> None:
    """Write every file of the page below the folder. `gguf`: a model, without which the server does not start."""
    port = free_port()
    argv = [str(REPO_DIR / ".venv-local" / "bin" / "python"), "-c", _SERVE, str(port), str(gguf)]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as server:
        assert server.stdin and server.stdout
        assert server.stdout.readline() == "ready\n"
        worker = _read(port, "sw.js").decode()  # the service worker lists what it keeps
        names = {*re.findall(r'url:"([^"]+)"', worker), *_NOT_LISTED} - {"./"}
        for name in names | {f"{script}.js" for script in re.findall(r'"\./(workbox-[^"]+)"', worker)}:
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(_read(port, name))
        server.kill()


def _read(port: int, name: str) -> bytes:
    with urlopen(Request(f"http://127.0.0.1:{port}/{name}", headers={"Accept-Encoding": "gzip"})) as answer:
        body: bytes = answer.read()
        return gzip.decompress(body) if answer.headers["Content-Encoding"] == "gzip" else body
