"""The memory that `choose` reckons with is the memory that llama-server takes: its log says the cache to the byte, and
its peak stays below what was predicted from the measurement.

The peak is read with `--no-repack`: some CPUs lay the weights out anew, and the pages of the file stay in memory beside
them until the kernel wants them back. That they do go back is what the last test shows.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from quantyard.choose.candidates import ChoiceCandidate, candidate_memory_bytes, find_choice_set
from quantyard.formats.gguf import read_gguf_model
from quantyard.memory.kv_cache import ContextUse, kv_bytes, recurrent_state_bytes
from quantyard.memory.layers import ModelLayers, read_cache_layers
from quantyard.store.manifest import read_manifest
from tests.measure.conftest import ARTIFACTS, DEMO_NAME, demo_gguf  # noqa: F401  (a fixture)
from tests.tiny_gguf import write_tiny

SEQUENCES = 4
READY_S, ANSWER_S = 60.0, 300.0
MIB = 2**20
ROUNDING = 0.01  # the log says MiB with two places
TOLERANCE = 1.25  # the measured peak is of a Python process; it may be so much above the server's
ASK = """
import json, sys, urllib.request
body = json.dumps({"prompt": " word" * int(sys.argv[1]), "n_predict": 4}).encode()
request = urllib.request.Request("http://127.0.0.1:8080/completion", body, {"Content-Type": "application/json"})
print(json.load(urllib.request.urlopen(request))["tokens_evaluated"])
"""


@dataclass(frozen=True)
class Server:
    """A llama-server that is ready."""

    container: Any

    def log(self) -> str:
        return str(self.container.logs().decode(errors="replace"))

    def said(self, kind: str) -> float:
        """MiB of its buffers of this kind, as its log has them."""
        return sum(float(x) for x in re.findall(rf"{kind} buffer size =\s*([\d.]+) MiB", self.log()))

    def peak_bytes(self) -> int:
        code, output = self.container.exec_run(["grep", "VmHWM", "/proc/1/status"])
        assert code == 0
        return int(output.split()[1]) * 1024

    def read(self, n_words: int) -> int:
        """Let it read a prompt; how many tokens it counted."""
        code, output = self.container.exec_run(["python3", "-c", ASK, str(n_words)])
        assert code == 0, self.log()[-2000:]
        return int(output)


@pytest.fixture
def serve(docker_client: Any, builder_image: str) -> Callable[..., Any]:
    @contextmanager
    def start(gguf: Path, use: ContextUse, *options: str, **limits: Any) -> Iterator[Server]:
        argv = ["--model", "/model.gguf", "--ctx-size", str(use.tokens), "--parallel", str(use.sequences), "--port",
                "8080", "--host", "127.0.0.1", "--threads", "1", "--cache-ram", "0", "-lv", "4"]
        argv += ["--kv-unified" if use.unified else "--no-kv-unified", *options]
        container = docker_client.containers.run(
            builder_image, argv, entrypoint="/app/llama-server", detach=True, network_mode="none",
            volumes={str(gguf.resolve()): {"bind": "/model.gguf", "mode": "ro"}}, **limits,
        )
        try:
            server = Server(container)
            deadline = time.monotonic() + READY_S
            while "listening on" not in server.log():
                container.reload()
                assert container.status != "exited", server.log()[-2000:]
                assert time.monotonic() < deadline, server.log()[-2000:]
                time.sleep(0.02)
            yield server
        finally:
            container.remove(force=True, v=True)

    return start


@pytest.fixture(scope="module")
def measured() -> ChoiceCandidate:
    """The demo's Q8_0, with what `make demo` measured of it."""
    for path in sorted(ARTIFACTS.glob("**/manifest.json")):
        manifest = read_manifest(path) if DEMO_NAME in path.parts else None
        if manifest is not None and manifest.evaluations and "Q8_0" in manifest.quants:
            gguf = path.parent / manifest.quants["Q8_0"].file
            return find_choice_set(manifest, DEMO_NAME, {"Q8_0": gguf}, "", 1024, SEQUENCES).candidates[0]
    pytest.skip(f"the demo was never measured under {ARTIFACTS}: run `make demo`")


def _layers(gguf: Path) -> ModelLayers:
    layers = read_cache_layers(read_gguf_model(gguf))
    assert layers is not None
    return layers


@pytest.mark.parametrize("use", [
    ContextUse(1024, SEQUENCES), ContextUse(8192, SEQUENCES), ContextUse(3000, SEQUENCES),
    ContextUse(3000, SEQUENCES, unified=False),
])  # fmt: skip
def test_the_cache_of_the_demo_model_is_what_the_server_says(
    serve: Callable[..., Any], demo_gguf: Callable[[str], Path], use: ContextUse  # noqa: F811
) -> None:
    gguf = demo_gguf("Q8_0")
    with serve(gguf, use) as server:
        assert server.said("KV") == pytest.approx(kv_bytes(_layers(gguf), use) / MIB, abs=ROUNDING)


@pytest.mark.parametrize("unified", [True, False])
def test_the_cache_of_a_sliding_window_is_what_the_server_says(
    serve: Callable[..., Any], demo_gguf: Callable[[str], Path], tmp_path: Path, unified: bool  # noqa: F811
) -> None:
    gguf = write_tiny(demo_gguf("Q8_0"), tmp_path / "window.gguf", "gemma2", n_layers=5, window=300)
    use = ContextUse(4096, SEQUENCES, unified=unified)
    with serve(gguf, use) as server:
        assert server.said("KV") == pytest.approx(kv_bytes(_layers(gguf), use) / MIB, abs=2 * ROUNDING)  # two caches


def test_the_states_of_a_recurrent_model_are_what_the_server_says(
    serve: Callable[..., Any], demo_gguf: Callable[[str], Path], tmp_path: Path  # noqa: F811
) -> None:
    gguf = write_tiny(demo_gguf("Q8_0"), tmp_path / "mamba.gguf", "mamba", n_layers=24)
    use = ContextUse(1024, 8)
    with serve(gguf, use) as server:
        assert server.said("RS") == pytest.approx(recurrent_state_bytes(_layers(gguf), use) / MIB, abs=ROUNDING)
        assert server.said("KV") == 0


def test_the_peak_grows_with_the_context_as_the_cache_does(
    serve: Callable[..., Any], demo_gguf: Callable[[str], Path]  # noqa: F811
) -> None:
    gguf, peaks, uses = demo_gguf("Q8_0"), [], [ContextUse(tokens, SEQUENCES) for tokens in (1024, 8192)]
    for use in uses:
        with serve(gguf, use) as server:
            peaks.append(server.peak_bytes())
    grown = kv_bytes(_layers(gguf), uses[1]) - kv_bytes(_layers(gguf), uses[0])
    assert peaks[1] - peaks[0] == pytest.approx(grown, abs=2 * MIB)


@pytest.mark.parametrize("tokens", [512, 1024])
def test_the_predicted_memory_holds_a_context_that_is_full(
    serve: Callable[..., Any], measured: ChoiceCandidate, tokens: int
) -> None:
    use = ContextUse(tokens * SEQUENCES, SEQUENCES, unified=False)
    predicted = candidate_memory_bytes(measured, use)
    assert predicted is not None
    with serve(measured.path, use, "--no-repack") as server:
        assert server.read(tokens - 64) > tokens - 128
        assert server.peak_bytes() <= predicted <= TOLERANCE * server.peak_bytes()


def test_a_server_that_may_use_no_more_than_predicted_answers(
    serve: Callable[..., Any], measured: ChoiceCandidate
) -> None:
    use = ContextUse(1024 * SEQUENCES, SEQUENCES, unified=False)
    limit = candidate_memory_bytes(measured, use)
    with serve(measured.path, use, mem_limit=limit, memswap_limit=limit) as server:
        assert server.read(900) > 800
        server.container.reload()
        assert not server.container.attrs["State"]["OOMKilled"]
