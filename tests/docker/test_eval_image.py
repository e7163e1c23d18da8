"""The eval image as a stage sees it: no network, a read-only root, and a uid that nobody has a name for."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from quantyard.engines.images import SHARED
from quantyard.paths import REPO_DIR
from tests.conftest import Demo, run_json

HARDENED = (
    "--network", "none", "--read-only", "--tmpfs", "/tmp:rw,nosuid,nodev,noexec,size=1g", "--cap-drop", "ALL",
    "--security-opt", "no-new-privileges", "--user", "1234:1234",
)  # fmt: skip


def _python(image: str, code: str, *options: str) -> subprocess.CompletedProcess[str]:
    argv = ["docker", "run", "--rm", *HARDENED, *options, image, "python3", "-c", code]
    return subprocess.run(argv, capture_output=True, text=True, timeout=300, check=False)


def _answer(image: str, code: str, *options: str) -> Any:
    """What the last line says that the code prints, as JSON."""
    done = _python(image, code, *options)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("module", [
    "lm_eval.evaluator", "llama_cpp", "matplotlib.pyplot", "scipy.stats", "quantyard.protocol.evaluation",
    "quantyard.protocol.runner",
])
def test_what_measuring_needs_is_imported_without_a_word(eval_image: str, module: str) -> None:
    done = _python(eval_image, f"import {module}")
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "not a writable directory" not in done.stderr, done.stderr


def test_neither_torch_nor_transformers_nor_a_compiler_is_there(eval_image: str) -> None:
    code = """if True:
        import importlib.util, json, shutil
        print(json.dumps([n for n in ("torch", "transformers", "gguf") if importlib.util.find_spec(n)]
                         + [n for n in ("cc", "c++", "g++", "cmake", "ninja", "apt-key") if shutil.which(n)]))"""
    assert _answer(eval_image, code) == []


def test_it_renders_a_chat_template(eval_image: str) -> None:
    """Its libraries are known by PYTHONPATH alone, which the isolated process of a template does not read."""
    code = """if True:
        import json
        from quantyard.sandbox.chat_template import ChatTemplate
        template = ChatTemplate("{% for m in messages %}[{{ m.content }}]{% endfor %}", "", "")
        print(json.dumps(template.render([{"role": "user", "content": "hi"}], add_generation_prompt=False)))"""
    assert _answer(eval_image, code) == "[hi]"


def test_of_ours_it_holds_the_eval_package_and_what_is_shared(eval_image: str) -> None:
    code = """if True:
        import json, pathlib
        src = pathlib.Path("/opt/quantyard/src")
        print(json.dumps(sorted(str(p.relative_to(src)) for p in src.rglob("*.py"))))"""
    folders = ["eval", *(f"quantyard/{room}" for room in SHARED["eval"])]
    ours = (path for folder in folders for path in (REPO_DIR / folder).rglob("*.py"))
    assert _answer(eval_image, code) == sorted(["quantyard/__init__.py", *(str(p.relative_to(REPO_DIR)) for p in ours)])


def test_by_itself_it_runs_as_nobody_and_starts_nothing(eval_image: str, docker_client: Any) -> None:
    config = docker_client.images.get(eval_image).attrs["Config"]
    assert config["User"] == "65532:65532"
    assert not config.get("Entrypoint") and not config.get("Cmd")


def test_nothing_can_be_written_to_but_tmp(eval_image: str) -> None:
    code = """if True:
        import json, os
        places = ["/opt/quantyard", "/opt/quantyard/lib", "/usr/local", "/root", "/"]
        print(json.dumps([p for p in places if os.access(p, os.W_OK)] + [os.path.expanduser("~")]))"""
    assert _answer(eval_image, code) == ["/tmp"]


def test_threads_that_wait_are_openmps_and_soon_sleep(eval_image: str) -> None:
    """ggml's own spin for ever, and beside other work on the same cores they are ten times slower."""
    code = """if True:
        import json, llama_cpp, os
        print(json.dumps([llama_cpp.llama_print_system_info().decode(), os.environ["GOMP_SPINCOUNT"]]))"""
    info, spins = _answer(eval_image, code)
    assert "OPENMP = 1" in info and int(spins) <= 1000


def test_llama_cpp_uses_avx2_and_never_amx_whatever_this_cpu_advertises(eval_image: str) -> None:
    code = """if True:
        import json, llama_cpp, pathlib
        folder = pathlib.Path(llama_cpp.__file__).parent / "lib"
        print(json.dumps({"info": llama_cpp.llama_print_system_info().decode(),
                          "cpu": sorted(p.name for p in folder.glob("libggml-cpu*.so"))}))"""
    answer = _answer(eval_image, code)
    assert answer["cpu"] == ["libggml-cpu.so"], "one build, and none chosen at run time"
    assert "AMX" not in answer["info"] and "AVX512" not in answer["info"]
    if os.uname().machine == "x86_64":
        assert "AVX2 = 1" in answer["info"] and "FMA = 1" in answer["info"]


def test_a_quantized_model_decodes_in_it(
    eval_image: str, builder_image: str, built_demo: Callable[[str], Demo], tmp_path: Path
) -> None:
    """Quantized on purpose: it is their kernels that die of an illegal instruction where AMX is but a promise."""
    demo = built_demo("docker")
    demo.lend(tmp_path, "convert", "quantize", "verify")
    made = run_json("build", MODEL=str(demo.model), QUANT="Q4_0,Q4_K_M", ENGINE="docker", ARTIFACTS=str(tmp_path))
    code = """if True:
        import json, llama_cpp
        model = llama_cpp.Llama("/in/model.gguf", n_ctx=256, n_threads=2, logits_all=True, verbose=False)
        said = model.create_completion("The capital of France is", max_tokens=4, temperature=0, logprobs=1)
        print(json.dumps([float(value) for value in said["choices"][0]["logprobs"]["token_logprobs"]]))"""
    for file in made["files"]:
        logprobs = _answer(eval_image, code, "--volume", f"{file['path']}:/in/model.gguf:ro")
        assert len(logprobs) == 4 and all(-10 < value <= 0 for value in logprobs)
