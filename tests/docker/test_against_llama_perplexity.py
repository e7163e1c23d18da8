"""The stage `divergence` agrees with the image's own llama-perplexity: same files, text, context and chunks.

Two builds of llama.cpp, and even one with flash attention on and off, differ in the last bits; on the demo model that
is 0.2 % of the perplexity over 2,000 tokens (one standard error), and 0.5 % over the 381 tokens of every change, whose
tolerance is therefore four times as wide.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from eval.analysis.chunks import read_divergence_text
from quantyard.paths import REPO_DIR
from quantyard.protocol.divergence_results import Divergence
from tests.hostile.sampling import WHOLE
from tests.measure.conftest import demo_gguf  # noqa: F401  (a fixture)

N_CTX, N_CHUNKS, SLACK = (512, 12, 1) if WHOLE else (256, 3, 4)
THREADS = int(os.environ.get("THREADS") or os.cpu_count() or 1)
TIMEOUT_S = 1800
_VALUE = r"\s*:\s*(-?[\d.]+) ±"


@dataclass(frozen=True)
class Files:
    """What both programs read."""

    baseline: Path
    model: Path
    text: Path


@pytest.fixture(scope="module")
def bench_python() -> Path:
    """An interpreter with llama_cpp: BENCH_PYTHON, or that of `.venv-bench`."""
    path = Path(os.environ.get("BENCH_PYTHON") or REPO_DIR / ".venv-bench" / "bin" / "python")
    if not path.exists():
        pytest.skip(f"no {path}: set BENCH_PYTHON to an interpreter with llama-cpp-python")
    return path


@pytest.fixture(scope="module")
def files(
    demo_model: Path, demo_gguf: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory  # noqa: F811
) -> Files:
    """The demo's, which is built where it is not."""
    del demo_model
    text = tmp_path_factory.mktemp("text") / "prose.txt"
    text.write_text(read_divergence_text(Path("/nowhere"), None).whole)
    return Files(demo_gguf("BF16"), demo_gguf("Q4_K_M"), text)


@pytest.fixture(scope="module")
def theirs(builder_image: str, files: Files, tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """What llama-perplexity says, with the logits of the baseline in a file between."""
    work = tmp_path_factory.mktemp("logits")
    _llama_perplexity(builder_image, files.baseline, files.text, work)
    said = _llama_perplexity(builder_image, files.model, files.text, work, "--kl-divergence")
    (work / "logits").unlink()
    lines = {
        "perplexity": r"Mean PPL\(Q\)", "baseline_perplexity": r"Mean PPL\(base\)", "mean_kld": "Mean    KLD",
        "top1_agreement": "Same top p", "rms_delta_p": "RMS Δp",
    }  # fmt: skip
    return {name: float(re.search(line + _VALUE, said)[1]) for name, line in lines.items()}  # type: ignore[index]


@pytest.fixture(scope="module")
def ours(bench_python: Path, files: Files, tmp_path_factory: pytest.TempPathFactory) -> Divergence:
    folder = tmp_path_factory.mktemp("ours")
    for name, path in (("model", files.model), ("baseline", files.baseline), ("suite", files.text)):
        (folder / "in" / name).mkdir(parents=True)
        (folder / "in" / name / path.name).symlink_to(path)
    (folder / "out").mkdir()
    request: dict[str, Any] = {
        "label": "Q4_K_M", "model_file": files.model.name, "baseline_file": files.baseline.name,
        "settings": {"text": files.text.name, "n_ctx": N_CTX, "n_chunks": N_CHUNKS}, "runtime": {"threads": THREADS},
    }
    (folder / "in" / "request.json").write_text(json.dumps(request))
    argv = [str(bench_python), "-m", "eval.divergence", "--in", str(folder / "in"), "--out", str(folder / "out")]
    done = subprocess.run(argv, cwd=REPO_DIR, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 0, done.stderr
    return Divergence.model_validate_json((folder / "out" / "files" / "divergence.json").read_text())


def _llama_perplexity(image: str, model: Path, text: Path, work: Path, *options: str) -> str:
    """Its output; `work` is where it keeps the logits."""
    mounts = (f"{model}:/in/model.gguf:ro", f"{text}:/in/text.txt:ro", f"{work}:/work")
    argv = ["docker", "run", "--rm", "--network", "none", "--user", f"{os.getuid()}:{os.getgid()}"]
    argv += [part for mount in mounts for part in ("--volume", mount)]
    argv += ["--entrypoint", "/app/llama-perplexity", image, "--model", "/in/model.gguf", "--file", "/in/text.txt"]
    argv += ["--ctx-size", str(N_CTX), "--chunks", str(N_CHUNKS), "--threads", str(THREADS)]
    done = subprocess.run(
        [*argv, "--kl-divergence-base", "/work/logits", *options], capture_output=True, text=True, timeout=TIMEOUT_S
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout + done.stderr


@pytest.mark.parametrize("name", ["perplexity", "baseline_perplexity"])
def test_perplexity_is_llama_perplexitys(
    ours: Divergence, theirs: dict[str, float], name: str
) -> None:
    assert getattr(ours, name).value == pytest.approx(theirs[name], rel=0.005 * SLACK)


def test_the_mean_divergence_is_llama_perplexitys(
    ours: Divergence, theirs: dict[str, float]
) -> None:
    assert ours.mean_kld is not None
    assert ours.mean_kld.value == pytest.approx(theirs["mean_kld"], rel=0.02 * SLACK)


def test_agreement_and_change_of_probability_are_llama_perplexitys(
    ours: Divergence, theirs: dict[str, float]
) -> None:
    assert ours.top1_agreement is not None and ours.rms_delta_p is not None
    assert 100 * ours.top1_agreement.value == pytest.approx(theirs["top1_agreement"], abs=2)
    assert 100 * ours.rms_delta_p.value == pytest.approx(theirs["rms_delta_p"], abs=0.5)


def test_as_many_tokens_are_scored(ours: Divergence) -> None:
    assert (ours.n_chunks, ours.n_tokens) == (N_CHUNKS, N_CHUNKS * (N_CTX // 2 - 1))
