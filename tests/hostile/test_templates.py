"""Chat templates that mean harm: each is ended within seconds and megabytes, and named, wherever one is rendered."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from builder.calibrate import _our_calibration_text
from builder.convert import _write_tokenizer_reference
from quantyard.engines.docker import connect_docker
from quantyard.paths import REPO_DIR
from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import Stage, StageFailure
from quantyard.sandbox.bounded_process import OverLimit, SandboxBudget, SandboxWorker
from quantyard.sandbox.chat_template import ChatRefused, ChatTemplate
from tests.conftest import run
from tests.gguf_files import TensorSpec, Value, gguf
from tests.hostile.sampling import WHOLE, sampled

HELLO = [{"role": "user", "content": "hi"}]
LOOPS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}x"
DOUBLING = "{% set n = namespace(s='a' * 64) %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}{{ n.s }}"
LISTS = "{% set l = [1] %}" + "{% set l = [l, l] %}" * 60 + "{{ l }}"
IN_PARENTHESES = "{{ " + "(" * 50_000 + "1" + ")" * 50_000 + " }}"
IN_BLOCKS = "{% if 1 %}" * 20_000 + "x" + "{% endif %}" * 20_000
LIMIT, REFUSED = "limit", "refused"
# To add a template: a name, its text, and what becomes of it where Jinja renders it.
TEMPLATES: dict[str, tuple[str, str]] = {
    "nested loops": (LOOPS, LIMIT),
    "loops over products": ("{% for a in 'x' * 99999 %}{% for b in 'x' * 99999 %}{% endfor %}{% endfor %}", LIMIT),
    "a macro that calls itself twice": (
        "{% macro f(n) %}{% if n %}{{ f(n - 1) }}{{ f(n - 1) }}{% endif %}{% endmacro %}{{ f(60) }}", LIMIT,
    ),
    "a number without end": (
        "{% set n = namespace(x=9) %}{% for i in range(99) %}{% set n.x = n.x ** 9 %}{% endfor %}", LIMIT,
    ),
    "a list of lists": (LISTS, LIMIT),
    "a long text": ("{{ 'a' * 10 ** 10 }}", LIMIT),
    "a text that doubles": (DOUBLING, LIMIT),
    "a wide text": ("{{ 'a'|center(5000000000) }}", LIMIT),
    "a wide number": ("{{ '%5000000000d'|format(1) }}", LIMIT),
    "much joined": ("{{ range(90000)|join('a' * 100000)|length }}", LIMIT),
    "much replaced": ("{{ ('a' * 10000000).replace('a', 'b' * 1000) }}", LIMIT),
    "more than fits into an answer": ("{{ 'a' * 50000000 }}", LIMIT),
    "a range without end": ("{% for a in range(10 ** 12) %}{% endfor %}", REFUSED),
    "a macro that calls itself": ("{% macro f(n) %}{{ f(n) }}{% endmacro %}{{ f(1) }}", REFUSED),
    "parentheses": (IN_PARENTHESES, REFUSED),
    "blocks in blocks": (IN_BLOCKS, REFUSED),
    "a file": ("{% include '/etc/passwd' %}", REFUSED),
    "a module": ("{% import 'os' as os %}", REFUSED),
    "a parent": ("{% extends '/etc/passwd' %}", REFUSED),
    "a class": ("{{ ''.__class__.__mro__[1].__subclasses__() }}", REFUSED),
    "a function's globals": ("{{ raise_exception.__globals__ }}", ""),
    "a format that looks inside": ("{{ '{0.__class__.__mro__}'.format('') }}", REFUSED),
    "a change of what it was given": ("{{ messages.append(1) }}{{ messages|length }}", "None2"),
    "half a character": ("{{ '\\ud800' }}", REFUSED),
    "its own error": ("{{ raise_exception('a' * 1000000) }}", REFUSED),
    "no template": ("{% for %}", REFUSED),
    "an undefined name": ("{{ a.b.c }}", REFUSED),
    "NUL": ("{{ '\\0' }}", "\0"),
    "a number": ("{{ 1 }}", "1"),
    "escape sequences": ("\x1b[31m{{ messages[0].content }}", "\x1b[31mhi"),
}


def _gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return False


# ---- Jinja, as transformers and llama-cpp-python render -----------------------------------------------------------


@pytest.mark.parametrize("name", sampled(list(TEMPLATES), 10))
def test_a_template_is_rendered_within_its_limits_or_not_at_all(name: str) -> None:
    text, outcome = TEMPLATES[name]
    template = ChatTemplate(text, "<s>", "</s>", cpu_s=1)
    started = time.monotonic()
    found, reason = _rendered(template)
    assert found == outcome and time.monotonic() - started < 30
    assert len(reason) < 600 and bool(reason) == (found in (LIMIT, REFUSED))


def _rendered(template: ChatTemplate) -> tuple[str, str]:
    """The text, or which kind of no it is and why."""
    try:
        return template.render(HELLO, add_generation_prompt=True), ""
    except (OverLimit, ChatRefused) as error:
        return LIMIT if isinstance(error, OverLimit) else REFUSED, str(error)
    finally:
        template.close()


def test_after_a_template_broke_a_limit_nothing_of_it_runs_and_the_next_conversation_is_rendered() -> None:
    text = "{% if messages|length > 1 %}" + LOOPS + "{% endif %}{{ messages[0].content }}"
    template = ChatTemplate(text, "", "", cpu_s=1)
    assert template.render(HELLO, add_generation_prompt=True) == "hi"
    process = template._worker._process
    assert process is not None
    with pytest.raises(OverLimit, match="runs longer than 1 s"):
        template.render(HELLO * 2, add_generation_prompt=True)
    assert _gone(process.pid)
    assert template.render(HELLO, add_generation_prompt=True) == "hi"
    template.close()


def test_what_a_template_changes_is_as_before_in_the_next_conversation() -> None:
    template = ChatTemplate("{% set l = [] %}{{ l.append(messages.pop()) }}{{ l|length }}{{ messages|length }}", "", "")
    assert [template.render(HELLO, add_generation_prompt=True) for _ in range(2)] == ["None10"] * 2
    template.close()


def test_a_template_longer_than_any_real_one_is_not_even_read() -> None:
    with pytest.raises(StageFailure, match="characters, more than") as caught:
        ChatTemplate("a" * ((1 << 20) + 1), "", "")
    assert (caught.value.exit_code, caught.value.error.kind) == (ExitCode.UNSUPPORTED_MODEL, "chat-template")


def test_many_conversations_that_each_take_long_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(0, 10_000, 5))
    monkeypatch.setattr("quantyard.sandbox.bounded_process.time", SimpleNamespace(monotonic=lambda: next(now)))
    budget = SandboxBudget()
    for _ in range(12):
        with budget.one_more():
            pass
    with pytest.raises(OverLimit, match="each of many conversations"), budget.one_more():
        pass


@pytest.mark.parametrize(
    "code",
    ["import sys; sys.exit(3)", "print('no JSON')", "import os; os.kill(0, 9)", "input(); print('1' * 40000000)"],
)
def test_a_worker_that_does_not_answer_is_an_answer(code: str) -> None:
    worker = SandboxWorker(["/usr/bin/env", "setsid", sys.executable, "-c", code])
    with pytest.raises(OverLimit):
        worker.ask({})
    worker.close()


def test_calibration_names_the_template_too() -> None:
    class Runtime:
        def render_chat(self, messages: object) -> str:
            raise OverLimit("runs longer than 10 s")

    with pytest.raises(StageFailure, match="chat template runs longer than 10 s") as caught:
        _our_calibration_text(Runtime())  # type: ignore[arg-type]
    assert caught.value.exit_code == ExitCode.UNSUPPORTED_MODEL


# ---- the converter's Python ----------------------------------------------------------------------------------------

_TRANSFORMERS = """
import json, pathlib
from jinja2.sandbox import ImmutableSandboxedEnvironment

class AutoTokenizer:
    bos_token, all_special_tokens = None, []
    @classmethod
    def from_pretrained(cls, folder, **_):
        found = cls()
        found.chat_template = json.loads((pathlib.Path(folder) / "tokenizer_config.json").read_text())["chat_template"]
        return found
    def __call__(self, text, **_):
        return {"input_ids": [1]}
    def apply_chat_template(self, messages, **_):
        named = self.chat_template
        text = named["default"] if isinstance(named, dict) else named
        return ImmutableSandboxedEnvironment().from_string(text).render(messages=messages)
"""


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """The stage `convert` with a stand-in for transformers, whose Jinja is the real one."""
    (tmp_path / "lib" / "transformers").mkdir(parents=True)
    (tmp_path / "lib" / "transformers" / "__init__.py").write_text(_TRANSFORMERS)
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path}/lib exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    (tmp_path / "out" / "files").mkdir(parents=True)
    environment = {"CONVERTER_PYTHON": str(python), "PATH": os.defpath}
    return Stage("convert", tmp_path, tmp_path / "out", environment=environment)


# To add a template of a Hugging Face folder: a name, what stands in its tokenizer_config.json, and words of the answer.
OF_FOLDERS: dict[str, tuple[object, str]] = {
    "memory": (TEMPLATES["a long text"][0], "needs more than 1,024 MiB of memory on the conversation 'user'"),
    "time": (LOOPS, "runs longer than 10 s on the conversation 'user'"),
    "only with an answer in it": (
        "{% for m in messages %}{% if m.role == 'assistant' %}{{ 'a' * 10 ** 10 }}{% endif %}{% endfor %}",
        "on the conversation 'multi-turn'",
    ),
    "size of the answer": ("{{ 'a' * 5000000 }}", "writes more than"),
    "size": ("a" * 2_000_000, "2,000,000 characters, more than the 1,048,576 allowed"),
    "size of one of several": ({"default": "x", "tool_use": "a" * 2_000_000}, "characters, more than"),
    "doubling, one of several": ({"default": DOUBLING, "tool_use": "x"}, "needs more than 1,024 MiB of memory"),
}


@pytest.mark.parametrize("name", sampled(list(OF_FOLDERS), 3))
def test_a_folders_template_is_named_and_the_user_is_not_asked_for_memory(stage: Stage, name: str) -> None:
    template, words = OF_FOLDERS[name]
    (stage.in_dir / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    with pytest.raises(StageFailure) as caught:
        _write_tokenizer_reference(stage, stage.in_dir)
    assert (caught.value.exit_code, caught.value.error.kind) == (ExitCode.UNSUPPORTED_MODEL, "chat-template")
    assert words in caught.value.error.message and "MEMORY=" not in caught.value.error.hint


@pytest.mark.parametrize("name", sampled(["half a character", "parentheses", "its own error", "a class"], 2))
def test_a_folders_template_that_refuses_every_conversation_is_recorded_as_such(stage: Stage, name: str) -> None:
    template = TEMPLATES[name][0] if name != "half a character" else "{{ '\ud800' }}"
    (stage.in_dir / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    assert _write_tokenizer_reference(stage, stage.in_dir) == "AutoTokenizer"
    found = json.loads((stage.files_dir / "reference.json").read_text())
    assert found["chats"] == [] and len(found["refused_chats"]) == 10
    assert all(len(reason) <= 500 for reason in found["refused_chats"].values())


# ---- llama.cpp -----------------------------------------------------------------------------------------------------

# The tokenizer's metadata of a GGUF that llama.cpp loads: the bytes and three special tokens.
_BYTES = [f"<0x{byte:02X}>" for byte in range(256)]
_VOCABULARY: dict[str, Value] = {
    "general.architecture": "llama", "llama.context_length": 512, "llama.embedding_length": 32,
    "llama.block_count": 1, "llama.feed_forward_length": 32, "llama.attention.head_count": 1,
    "llama.attention.layer_norm_rms_epsilon": 1e-5, "tokenizer.ggml.model": "llama",
    "tokenizer.ggml.tokens": ["<unk>", "<s>", "</s>", *_BYTES], "tokenizer.ggml.token_type": [2, 3, 3, *[6] * 256],
    "tokenizer.ggml.bos_token_id": 1, "tokenizer.ggml.eos_token_id": 2,
}  # fmt: skip
_TENSORS = [
    TensorSpec("token_embd.weight", (32, 259)), TensorSpec("output_norm.weight", (32,)),
    TensorSpec("blk.0.attn_norm.weight", (32,)), TensorSpec("blk.0.ffn_norm.weight", (32,)),
    *(TensorSpec(f"blk.0.{name}.weight", (32, 32)) for name in (
        "attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down",
    )),
]  # fmt: skip
# To add a template of a GGUF: a name, the metadata it adds, and words of the answer ("": it passes).
OF_GGUFS: dict[str, tuple[dict[str, Value], str]] = {
    "a template that is fine": ({"tokenizer.chat_template": "{{ messages[0]['content'] }}"}, ""),
    "no template": ({}, ""),
    "time": ({"tokenizer.chat_template": LOOPS}, "runs longer than 10 s"),
    "memory or time": ({"tokenizer.chat_template": DOUBLING}, "The chat template"),
    "calls without end": ({"tokenizer.chat_template": TEMPLATES["a macro that calls itself"][0]}, "SIGSEGV"),
    "blocks": ({"tokenizer.chat_template": IN_BLOCKS}, "SIGSEGV"),
    "parentheses": ({"tokenizer.chat_template": IN_PARENTHESES}, "SIGSEGV"),
    "no template at all": ({"tokenizer.chat_template": "{% for %}"}, "is not accepted by llama.cpp"),
    "a file": ({"tokenizer.chat_template": "{% include '/etc/passwd' %}"}, "is not accepted by llama.cpp"),
    "its own error": ({"tokenizer.chat_template": "{{ raise_exception('no') }}"}, "is not accepted by llama.cpp"),
    "size": ({"tokenizer.chat_template": "a" * 2_000_000}, "more than the 1,048,576 allowed"),
    "one of several": (
        {"tokenizer.chat_template": "x", "tokenizer.chat_template.tool_use": IN_BLOCKS}, "SIGSEGV",
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def verify_of(builder_image: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[object]:
    """Runs the stage `verify` on a GGUF in the builder image, as the engine does; returns result.json."""
    client = connect_docker()

    def verify(metadata: dict[str, Value]) -> dict[str, object]:
        folder = tmp_path_factory.mktemp("verify")
        for name in ("in/model", "in/source", "out"):
            (folder / name).mkdir(parents=True)
        for name in ("in/model", "in/source"):
            (folder / name / "model.gguf").write_bytes(gguf(metadata, _TENSORS))
        request = {"stage": "verify", "quant": "COPY", "has_reference": False}
        (folder / "in/request.json").write_text(json.dumps(request))
        client.containers.run(
            builder_image, ["sh", "-c", "python3 -m builder.verify || true"], network_mode="none", read_only=True,
            tmpfs={"/tmp": ""}, user=f"{os.getuid()}:{os.getgid()}", cap_drop=["ALL"], remove=True, mem_limit="3g",
            volumes={str(folder / "in"): {"bind": "/in", "mode": "ro"}, str(folder / "out"): {"bind": "/out"}},
        )
        found: dict[str, object] = json.loads((folder / "out/result.json").read_text())
        return found

    yield verify
    client.close()


@pytest.mark.parametrize("name", sampled(list(OF_GGUFS), 3))
def test_llama_cpp_ends_a_ggufs_template_within_its_limits_and_it_is_named(verify_of: object, name: str) -> None:
    added, words = OF_GGUFS[name]
    started = time.monotonic()
    result = verify_of({**_VOCABULARY, **added})  # type: ignore[operator]
    assert time.monotonic() - started < 90
    if not words:
        assert result["exit_code"] == 0, result
        return
    assert result["exit_code"] == ExitCode.UNSUPPORTED_MODEL
    assert result["error"]["kind"] == "chat-template" and words in result["error"]["message"], result
    assert "MEMORY=" not in result["error"]["hint"]


@pytest.mark.skipif(not WHOLE, reason="a whole build; make test-all runs it")
def test_a_build_of_a_model_whose_template_runs_without_end_is_refused_by_its_name(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    subprocess.run(["cp", "-rL", str(tiny_model), str(folder)], check=True)
    (folder / "chat_template.jinja").write_text(LOOPS)
    done = run("build", MODEL=str(folder), QUANT="Q8_0", ARTIFACTS=str(tmp_path / "artifacts"))
    assert done.returncode == ExitCode.UNSUPPORTED_MODEL, done.stderr
    assert "chat template runs longer than 10 s on the conversation 'user'" in done.stderr, done.stderr
    assert "MEMORY=" not in done.stderr


# ---- served files --------------------------------------------------------------------------------------------------

_UP = """#!{python}
import http.server, sys, time
time.sleep(1)
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()
server = http.server.HTTPServer(("127.0.0.1", int(sys.argv[sys.argv.index("--port") + 1])), Handler)
end = time.monotonic() + 6
server.timeout = 0.2
while time.monotonic() < end:
    server.handle_request()
"""


@pytest.mark.skipif(shutil.which("curl") is None, reason="the server image has curl")
@pytest.mark.parametrize(("program", "code"), [("#!/bin/sh\nwhile :; do :; done\n", 2), (_UP, 0)])
def test_a_served_file_that_never_comes_up_is_ended_and_named(tmp_path: Path, program: str, code: int) -> None:
    (tmp_path / "m.gguf").write_bytes(gguf(_VOCABULARY, _TENSORS))
    (tmp_path / "server").write_text(program.format(python=sys.executable))
    (tmp_path / "server").chmod(0o755)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    variables = {
        "PATH": os.environ["PATH"], "MODEL": str(tmp_path / "m.gguf"), "API_KEY": "off", "HOST": "127.0.0.1",
        "PORT": port, "LLAMA_SERVER": str(tmp_path / "server"), "START_TIMEOUT": "3",
    }  # fmt: skip
    done = subprocess.run(
        ["sh", str(REPO_DIR / "server" / "image" / "entrypoint.sh")], env=variables, capture_output=True, text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stderr
    assert ("chat template loops forever" in done.stderr) == (code == 2)
