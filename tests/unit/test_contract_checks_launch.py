"""The process of a server under test: what it is told, how it becomes ready, and what its death is called."""

from __future__ import annotations

import json
import os
import re
import stat
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from quantyard.paths import REPO_DIR
from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure
from server.api_checks.launch import Launch, ServedModel, Wire
from server.api_checks.launch_proxy import api_proxy_config

pytestmark = pytest.mark.commands

_SERVER = """#!{python}
import http.server, json, os, signal, sys, time
mode = open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "mode")).read()
known = os.environ.get("API_KEY_FILE") or sys.argv[sys.argv.index("--api-key-file") + 1]
key = open(known).read().strip()
print("key is", key, file=sys.stderr, flush=True)
if mode.startswith("says "):
    sys.exit(mode[5:])
if mode == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
if mode == "slow":
    time.sleep(60)

class Handler(http.server.BaseHTTPRequestHandler):
    seen = 0

    def do_GET(self):
        Handler.seen += 1
        status = 503 if Handler.seen < 3 else 200
        data = json.dumps({{"argv": sys.argv[1:], "environment": dict(os.environ)}}).encode()
        self.send_response(status)
        self.end_headers()
        self.wfile.write(data)
        if self.path == "/die":
            os._exit(9)

    def log_message(self, *args):
        pass

port = int(os.environ.get("PORT") or sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def _launch(folder: Path, mode: str, *, entrypoint: bool = False, load_timeout_s: float = 30.0) -> Launch:
    program = folder / "llama-server"
    program.write_text(_SERVER.format(python=sys.executable))
    program.chmod(0o755)
    (folder / "mode").write_text(mode)
    scratch = folder / "scratch"
    scratch.mkdir()
    where = {"SERVER_ENTRYPOINT": str(program)} if entrypoint else {"LLAMA_BIN": str(folder)}
    environment = {"PATH": os.environ["PATH"], "HF_TOKEN": "not for a server", **where}
    return Launch(folder / "model-Q8_0.gguf", scratch, environment, 1, 2048, 3, load_timeout_s)


def test_a_server_is_ready_once_its_health_says_so_and_gone_afterwards(tmp_path: Path) -> None:
    with ServedModel(_launch(tmp_path, "good")) as served:
        assert Wire(served.address, served.key).get("/health").status == 200
        (process,) = served._processes
        served.check_alive()
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


@pytest.mark.parametrize("entrypoint", [True, False])
def test_the_key_is_in_a_private_file_and_nowhere_else(tmp_path: Path, entrypoint: bool) -> None:
    with ServedModel(_launch(tmp_path, "good", entrypoint=entrypoint)) as served:
        told = Wire(served.address, served.key).get("/props").text
    key_file = tmp_path / "scratch" / "api-key"
    assert stat.S_IMODE(key_file.stat().st_mode) == 0o600 and key_file.read_text().strip() == served.key
    assert served.key not in told and "HF_TOKEN" not in told and len(served.key) >= 32


def test_llama_server_is_told_the_context_of_all_clients_together(tmp_path: Path) -> None:
    with ServedModel(_launch(tmp_path, "good")) as served:
        flags = dict(zip(served.argv[1::2], served.argv[2::2], strict=True))
    assert (flags["--ctx-size"], flags["--parallel"], flags["--threads"]) == ("6144", "3", "1")
    assert (flags["--alias"], flags["--host"]) == ("model-Q8_0", "127.0.0.1")


def test_an_entrypoint_is_told_by_its_environment_and_decides_the_rest(tmp_path: Path) -> None:
    with ServedModel(_launch(tmp_path, "good", entrypoint=True)) as served:
        told = Wire(served.address, served.key).get("/props").body
    assert told["argv"] == []
    expected = {"HOST": "127.0.0.1", "THREADS": "1", "MODEL": str(tmp_path / "model-Q8_0.gguf")}
    assert {name: told["environment"][name] for name in expected} == expected


def test_without_either_the_local_server_serves_with_the_key_in_a_private_file(tmp_path: Path) -> None:
    served = ServedModel(Launch(tmp_path / "m.gguf", tmp_path, {}, 2, 2048))
    argv, variables = served._command(tmp_path / "api-key", served.port)
    config = tmp_path / "server.json"
    assert argv[-2:] == ("server.local.server", str(config)) and served.key not in " ".join(argv) and variables == {}
    assert stat.S_IMODE(config.stat().st_mode) == 0o600
    written = json.loads(config.read_text())
    assert (written["key"], written["context_size"], written["parallel"]) == (served.key, 4 * 2048, 4)
    assert written["models"] == [{"path": str(tmp_path / "m.gguf"), "name": "m"}]


@pytest.mark.parametrize(
    ("mode", "code", "kind"),
    [
        ("says error loading model: unknown model architecture: 'x'", ExitCode.UNSUPPORTED_MODEL, "serve-load"),
        ("says ggml: failed to allocate buffer", ExitCode.RESOURCES, "out-of-memory"),
        ("killed", ExitCode.RESOURCES, "out-of-memory"), ("says segmentation fault", ExitCode.BUG, "serve-start"),
    ],
)  # fmt: skip
def test_a_death_is_called_by_what_the_log_says(tmp_path: Path, mode: str, code: ExitCode, kind: str) -> None:
    served = ServedModel(_launch(tmp_path, mode))
    with pytest.raises(StageFailure) as caught, served:
        pass
    assert (caught.value.exit_code, caught.value.error.kind) == (code, kind)
    assert "key is …" in caught.value.error.detail and served.key not in caught.value.error.detail


def test_a_server_that_is_never_ready_fails_at_the_deadline(tmp_path: Path) -> None:
    with pytest.raises(StageFailure) as caught, ServedModel(_launch(tmp_path, "slow", load_timeout_s=0.3)):
        pass
    assert caught.value.error.kind == "serve-slow"


def test_a_death_during_a_check_names_the_check(tmp_path: Path) -> None:
    with ServedModel(_launch(tmp_path, "good")) as served:
        Wire(served.address, served.key).get("/die")
        served._processes[0].wait(10)
        with pytest.raises(StageFailure, match="exit code 9 during the check 'stop'"):
            served.check_alive("the check 'stop'")


def test_a_missing_program_says_so(tmp_path: Path) -> None:
    environment = {"SERVER_ENTRYPOINT": str(tmp_path / "none")}
    with pytest.raises(StageFailure, match="does not start"), ServedModel(Launch(tmp_path, tmp_path, environment)):
        pass


_PROXY = """#!{python}
import http.server, re, sys, urllib.request
config = open(sys.argv[sys.argv.index("-c") + 1]).read()
port, model = re.search(r"listen 127.0.0.1:(\\d+) ", config)[1], re.search(r"server 127.0.0.1:(\\d+) ", config)[1]

class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        try:
            urllib.request.urlopen("http://127.0.0.1:" + model + self.path, timeout=5).read()
            self.send_response(200)
        except OSError:
            self.send_response(503)
        self.end_headers()

    def log_message(self, *args):
        pass

http.server.HTTPServer(("127.0.0.1", int(port)), Handler).serve_forever()
"""


def test_a_proxy_stands_before_the_server_where_the_image_has_one(tmp_path: Path) -> None:
    launch = _launch(tmp_path, "good", entrypoint=True)
    program, key_file = tmp_path / "nginx", tmp_path / "proxy-key"
    program.write_text(_PROXY.format(python=sys.executable))
    program.chmod(0o755)
    proxy = {"PROXY_NGINX": str(program), "PROXY_ROOT": "/opt/proxy", "PROXY_KEY_FILE": str(key_file)}
    with ServedModel(replace(launch, environment={**launch.environment, **proxy})) as served:
        server, before = served._processes
        assert key_file.read_text().strip() == served.key and stat.S_IMODE(key_file.stat().st_mode) == 0o600
        assert Wire(served.address, None).get("/health").status == 200
        before.kill()
        before.wait(10)
        with pytest.raises(StageFailure, match="during the check 'stop'"):
            served.check_alive("the check 'stop'")
    assert server.poll() is not None


def test_the_proxys_configuration_is_that_of_the_compose_file_but_for_where_things_are() -> None:
    text = (REPO_DIR / "server" / "proxy" / "nginx.conf").read_text()
    told = api_proxy_config(text, "/opt/proxy", 18080, 18081)
    changed = [(old, new) for old, new in zip(text.splitlines(), told.splitlines(), strict=True) if old != new]
    assert len(changed) == 7
    assert all(re.search(r"load_module|listen 8080|model:8080|resolver|errors\.conf", old) for old, _new in changed)
    with pytest.raises(StageFailure, match="0 times, not 1"):
        api_proxy_config(told, "/opt/proxy", 1, 2)
