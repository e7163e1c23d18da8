"""The llama-server client, against a stand-in server: what it asks, and what it says when the server dies."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from builder.llama.server_runtime import ServerRuntime
from builder.llama.template_server import TemplateServer
from quantyard.formats.gguf import read_gguf_header
from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure
from quantyard.sandbox.bounded_process import OverLimit, sandbox_grant_cpu_time
from quantyard.sandbox.chat_template import ChatRefused
from tests.gguf_files import SMALL

pytestmark = pytest.mark.commands

_SERVER = """#!{python}
import http.server, json, os, signal, sys
mode = open(os.path.join(os.path.dirname(__file__), "mode")).read()
if "template.gguf" not in " ".join(sys.argv) and mode.startswith("template-"):
    mode = "good"
print("loading the model", file=sys.stderr, flush=True)
if mode == "no-load":
    sys.exit("unknown architecture")
if mode == "template-bad":
    sys.exit("0.1 E common_chat_templates_init: error: Unexpected token")
if mode == "template-loops":
    while True:
        pass
if mode == "template-bomb":
    sys.exit("terminate called after throwing an instance of 'std::bad_alloc'")
if mode == "asserts":
    print("/build/src/llama-vocab.cpp:7: GGML_ASSERT(a == b) failed", file=sys.stderr)
    print("\\n".join("#%d 0x0000 in main ()" % i for i in range(50)), file=sys.stderr, flush=True)
    os.abort()
if mode == "killed":
    os.kill(os.getpid(), signal.SIGKILL)

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    seen = 0

    def do_GET(self):
        Handler.seen += 1
        status = 503 if self.path == "/health" and Handler.seen < 3 else 200
        self.answer(status, {{"build_info": "b1-test"}})

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if mode == "dies":
            os._exit(9)
        if self.path == "/tokenize":
            self.answer(200, {{"tokens": [1] * body["add_special"] + [ord(c) for c in body["content"]]}})
        elif self.path == "/apply-template" and mode == "refuses":
            self.answer(400, {{"error": {{"message": "no such role"}}}})
        elif self.path == "/apply-template":
            self.answer(200, {{"prompt": body["messages"][0]["content"]}})
        else:
            logprob = None if mode == "nan" else -1.5
            row = {{"logprob": logprob, "top_logprobs": [{{"logprob": logprob}}]}}
            self.answer(200, {{"completion_probabilities": [row] * body["n_predict"]}})

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *args):
        pass

port = int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""


def _runtime(folder: Path, mode: str) -> ServerRuntime:
    binary = folder / "llama-server"
    binary.write_text(_SERVER.format(python=sys.executable))
    binary.chmod(0o755)
    (folder / "mode").write_text(mode)
    (folder / "model.gguf").write_bytes(SMALL)
    header = read_gguf_header(folder / "model.gguf")
    return ServerRuntime(binary, folder / "model.gguf", 1, TemplateServer(binary, header, folder))


def test_the_server_is_asked_for_ids_text_and_logits_once_it_is_healthy(tmp_path: Path) -> None:
    with _runtime(tmp_path, "good") as runtime:
        assert runtime.version() == "b1-test"
        assert runtime.tokenize("aé", add_special=True) == [1, 97, 233]
        assert runtime.render_chat([{"role": "user", "content": "hi"}]) == "hi"
        assert runtime.finite_logits(["a", "b"]) == 4


def test_the_server_is_gone_afterwards(tmp_path: Path) -> None:
    with _runtime(tmp_path, "good") as runtime:
        runtime.version()
        process = runtime._server._process
        assert process is not None
    with pytest.raises(ProcessLookupError):
        os.kill(process.pid, 0)


def test_a_null_logprob_means_the_logits_are_not_finite(tmp_path: Path) -> None:
    with _runtime(tmp_path, "nan") as runtime, pytest.raises(StageFailure) as caught:
        runtime.finite_logits(["hello"])
    assert caught.value.error.kind == "verify-logits"


def test_a_template_the_server_cannot_run_is_refused_with_its_words(tmp_path: Path) -> None:
    with _runtime(tmp_path, "refuses") as runtime, pytest.raises(ChatRefused, match="no such role"):
        runtime.render_chat([{"role": "user", "content": "hi"}])


def test_a_template_that_llama_cpp_does_not_accept_is_told_from_a_model_that_does_not_load(tmp_path: Path) -> None:
    with _runtime(tmp_path, "template-bad") as runtime:
        assert runtime.tokenize("a", add_special=False) == [97]
        with pytest.raises(ChatRefused, match="Unexpected token"):
            runtime.check_template()


def test_a_template_that_eats_all_memory_is_not_told_as_memory_of_the_model(tmp_path: Path) -> None:
    with _runtime(tmp_path, "template-bomb") as runtime, pytest.raises(OverLimit, match="MiB of memory"):
        runtime.check_template()


def test_a_template_that_runs_without_end_is_ended_and_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("quantyard.sandbox.bounded_process.CPU_S", 1)  # what it starts with
    monkeypatch.setattr(
        "builder.llama.template_server.sandbox_grant_cpu_time", lambda pid: sandbox_grant_cpu_time(pid, 1)
    )
    with _runtime(tmp_path, "template-loops") as runtime:
        with pytest.raises(OverLimit, match="runs longer than"):
            runtime.check_template()
        assert runtime._templates is not None
        pid = runtime._templates._server.pid
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    assert not (tmp_path / "template.gguf").exists()


def test_a_model_that_does_not_load_carries_the_end_of_the_log(tmp_path: Path) -> None:
    with _runtime(tmp_path, "no-load") as runtime, pytest.raises(StageFailure) as caught:
        runtime.tokenize("a", add_special=False)
    assert (caught.value.exit_code, caught.value.error.kind) == (ExitCode.UNSUPPORTED_MODEL, "verify-load")
    assert "unknown architecture" in caught.value.error.detail


def test_an_assertion_on_the_vocabulary_is_not_put_down_to_the_template(tmp_path: Path) -> None:
    with _runtime(tmp_path, "asserts") as runtime, pytest.raises(StageFailure) as caught:
        runtime.check_template()
    assert caught.value.exit_code == ExitCode.UNSUPPORTED_MODEL
    assert "aborted (SIGABRT): llama-vocab.cpp:7: GGML_ASSERT(a == b) failed" in caught.value.error.message


def test_a_server_that_is_killed_ran_out_of_memory(tmp_path: Path) -> None:
    with _runtime(tmp_path, "killed") as runtime, pytest.raises(StageFailure) as caught:
        runtime.tokenize("a", add_special=False)
    assert (caught.value.exit_code, caught.value.error.kind) == (ExitCode.RESOURCES, "out-of-memory")


def test_a_server_that_dies_while_it_answers_is_a_failure_with_its_exit_code(tmp_path: Path) -> None:
    with _runtime(tmp_path, "dies") as runtime, pytest.raises(StageFailure, match="exit code 9"):
        runtime.tokenize("a", add_special=False)


def test_a_missing_binary_says_so(tmp_path: Path) -> None:
    with pytest.raises(StageFailure, match="does not start"), ServerRuntime(tmp_path / "none", tmp_path, 0, None):
        pass
