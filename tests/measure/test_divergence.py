"""The stage `divergence` on real files: its definitions against plain decoding, what it refuses, what it keeps."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

pytest.importorskip("llama_cpp")

from eval.analysis.chunks import OUR_PROSE, DivergenceText, read_divergence_text
from eval.analysis.kl_divergence import divergence_comparison, perplexity_value
from eval.divergence import (
    divergence_chunks,
    divergence_rolling_perplexity,
    divergence_rolling_windows,
    divergence_side_by_side,
)
from eval.llama.context import Context, ContextSettings
from eval.llama.float_copy import why_no_float_copies
from eval.llama.model import GgufModel
from quantyard.paths import REPO_DIR
from quantyard.protocol.base import ExitCode, StageResult
from quantyard.protocol.divergence_results import Divergence
from quantyard.protocol.evaluation import DivergenceSettings
from quantyard.protocol.runner import StageFailure
from tests.tiny_gguf import write_tiny

ONE_THREAD = 1  # the tests of other folders may run beside
NOISE_NATS = 0.05  # of one token in a batch of another size: random weights are sharp; another row is off by several
NOISE = 0.01  # of a mean over many tokens
PROSE = read_divergence_text(Path("/nowhere"), None)
Demo = Callable[[str], Path]


@dataclass(frozen=True)
class Done:
    """How a stage ended, and what it left."""

    result: StageResult
    progress: list[dict[str, Any]]
    stderr: str
    found: Divergence | None
    files: Path


@pytest.fixture
def run_divergence(tmp_path: Path) -> Callable[..., Done]:
    """Runs the stage as the engines do: a process, folders in and out."""

    def run(
        model: Path, baseline: Path | None = None, text: bytes | None = None, others: dict[str, Path] | None = None,
        baseline_label: str = "", **settings: Any,
    ) -> Done:
        folder = Path(tmp_path / f"run{len(list(tmp_path.iterdir()))}")
        request: dict[str, Any] = {"label": "Q", "runtime": {"threads": ONE_THREAD}, "model_file": model.name}
        _link(model, folder / "in" / "model")
        if baseline is not None:
            _link(baseline, folder / "in" / "baseline")
            request["baseline_file"] = baseline.name
        members = others or {}
        for label, file in members.items():
            _link(file, folder / "in" / f"model-{label}")
        request["others"] = [{"label": label, "model_file": file.name} for label, file in members.items()]
        request["baseline_label"] = baseline_label
        if text is not None:
            (folder / "in" / "suite").mkdir()
            (folder / "in" / "suite" / "text.txt").write_bytes(text)
            settings["text"] = "text.txt"
        (folder / "in" / "request.json").write_text(json.dumps({**request, "settings": settings}))
        (folder / "out").mkdir()
        argv = [sys.executable, "-m", "eval.divergence", "--in", str(folder / "in"), "--out", str(folder / "out")]
        done = subprocess.run(argv, cwd=REPO_DIR, env=dict(os.environ), capture_output=True, text=True, timeout=600)
        result = StageResult.model_validate_json((folder / "out" / "result.json").read_text())
        assert done.returncode == result.exit_code, done.stderr
        left = folder / "out" / "files" / "divergence.json"
        found = Divergence.model_validate_json(left.read_text()) if left.exists() else None
        return Done(
            result, [json.loads(line) for line in done.stdout.splitlines()], done.stderr, found,
            folder / "out" / "files",
        )

    return run


def _link(file: Path, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / file.name).symlink_to(file)


@pytest.fixture(scope="module")
def tiny(demo_gguf: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(demo_gguf("BF16"), tmp_path_factory.mktemp("tiny") / "tiny.gguf")


@pytest.fixture(scope="module")
def other(demo_gguf: Demo, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One more layer than `tiny`, the others alike."""
    return write_tiny(demo_gguf("BF16"), tmp_path_factory.mktemp("tiny") / "other.gguf", n_layers=3)


@pytest.fixture(scope="module")
def tiny_model(tiny: Path) -> Iterator[GgufModel]:
    with GgufModel.load(tiny) as model:
        yield model


@pytest.fixture(scope="module")
def other_model(other: Path) -> Iterator[GgufModel]:
    with GgufModel.load(other) as model:
        yield model


def plain_logprobs(model: GgufModel, tokens: list[int]) -> npt.NDArray[np.float64]:
    """All rows of one sequence decoded token by token in order, log-softmax in float64."""
    with Context(model, ContextSettings(len(tokens), threads=ONE_THREAD)) as context:
        rows = np.concatenate(context.decode_one(np.array(tokens, np.int32), n_rows=len(tokens)))
    exact = rows.astype(np.float64)
    return exact - np.logaddexp.reduce(exact, axis=1, keepdims=True)


# ---- the definitions ---------------------------------------------------------------------------------


@pytest.mark.parametrize("n_ctx", [64, 600])
def test_chunks_are_scored_as_plain_decoding_scores_them(
    tiny_model: GgufModel, other_model: GgufModel, n_ctx: int
) -> None:
    cut = divergence_chunks([tiny_model, other_model], PROSE.whole, DivergenceSettings(n_ctx=n_ctx, n_chunks=2))
    done: list[int] = []
    rows = divergence_side_by_side([tiny_model, other_model], cut, ONE_THREAD, done.append)
    scored = np.arange(n_ctx // 2, n_ctx - 1)
    nll, kld = [], []
    for chunk in cut:
        log_p, log_q = (plain_logprobs(model, chunk.tolist())[scored] for model in (tiny_model, other_model))
        nll.append(-log_q[np.arange(len(scored)), chunk[scored + 1]])
        kld.append((np.exp(log_p) * (log_p - log_q)).sum(axis=1))
    (values,) = rows.models()
    assert done == [1, 2]
    np.testing.assert_allclose(values.nll, np.concatenate(nll), atol=NOISE_NATS)
    np.testing.assert_allclose(values.kld, np.concatenate(kld), atol=NOISE_NATS)


def test_the_text_is_cut_as_llama_perplexity_cuts_it(tiny_model: GgufModel) -> None:
    tokens = tiny_model.tokenize(PROSE.whole, add_special=True, parse_special=False)
    cut = divergence_chunks([tiny_model], PROSE.whole, DivergenceSettings(n_ctx=100))
    assert cut.shape == (len(tokens) // 100, 100)
    assert cut[:, 1:].ravel().tolist() == [t for i, t in enumerate(tokens[: cut.size]) if i % 100]
    begin = {tiny_model.bos} if tiny_model.adds_bos else {tokens[i] for i in range(0, cut.size, 100)}
    assert set(cut[:, 0].tolist()) == begin


def test_special_tokens_written_in_the_text_are_mere_text(tiny_model: GgufModel) -> None:
    assert len(tiny_model.tokenize("<|im_end|>", add_special=False)) == 1
    assert len(tiny_model.tokenize("<|im_end|>", add_special=False, parse_special=False)) > 1


def test_rolling_perplexity_scores_every_token_of_every_document_once(tiny_model: GgufModel) -> None:
    text = DivergenceText("t", "", ("The otter swam upstream. " * 20, "A short one."))
    requests = divergence_rolling_windows(tiny_model, text, DivergenceSettings(n_ctx=64))
    nll: list[float] = []
    for document in text.documents:
        tokens = [tiny_model.bos, *tiny_model.tokenize(document, add_special=False)]
        for start in range(0, len(tokens) - 1, 64):  # a full window; what went before it is left out …
            end = min(start + 64, len(tokens) - 1)
            first = start if end - start == 64 else max(0, end - 64)  # … but for the last, which is shorter
            log_p = plain_logprobs(tiny_model, tokens[first:end])[start - first :]
            nll += (-log_p[np.arange(end - start), tokens[start + 1 : end + 1]]).tolist()
    found = divergence_rolling_perplexity(tiny_model, requests, ONE_THREAD, lambda _done: None)
    assert found == pytest.approx(perplexity_value(np.array(nll)), rel=NOISE)


def test_rolling_reads_as_many_windows_as_there_may_be_chunks(tiny_model: GgufModel) -> None:
    assert len(divergence_rolling_windows(tiny_model, PROSE, DivergenceSettings(n_ctx=128, n_chunks=3))) == 3
    everything = divergence_rolling_windows(tiny_model, PROSE, DivergenceSettings(n_ctx=128))
    n_tokens = sum(len(tiny_model.tokenize(document, add_special=False)) for document in PROSE.documents)
    assert sum(len(request.targets) for request in everything) == n_tokens


def test_no_buffer_of_context_times_vocabulary_is_made(tiny_model: GgufModel, other_model: GgufModel) -> None:
    models = [tiny_model, other_model]
    cut = divergence_chunks(models, PROSE.whole, DivergenceSettings(n_ctx=2048, n_chunks=2))
    tracemalloc.start()
    divergence_side_by_side(models, cut, ONE_THREAD, lambda _done: None)
    _now, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 16 * 1024 * 1024 < cut.shape[1] * tiny_model.n_vocab * 4 / 16


def test_a_recurrent_model_begins_every_chunk_anew(demo_gguf: Demo, tmp_path: Path) -> None:
    path = write_tiny(demo_gguf("BF16"), tmp_path / "mamba.gguf", "mamba")
    with GgufModel.load(path) as model, GgufModel.load(path) as again:
        cut = divergence_chunks([model], PROSE.whole, DivergenceSettings(n_ctx=64, n_chunks=2))
        both = divergence_side_by_side([model, again], cut, ONE_THREAD, lambda _done: None)
        second = divergence_side_by_side([model], cut[1:], ONE_THREAD, lambda _done: None)
    np.testing.assert_allclose(both.baseline_nll()[31:], second.baseline_nll(), atol=NOISE_NATS)
    assert divergence_comparison(both.models()[0], both.baseline_nll(), 1)["mean_kld"].value < NOISE


# ---- the stage ---------------------------------------------------------------------------------------


def test_the_demo_model_diverges_more_in_four_bits_than_in_eight(demo_gguf: Demo) -> None:
    paths = [demo_gguf(quant) for quant in ("BF16", "Q8_0", "Q4_K_M")]
    with GgufModel.load(paths[0]) as base, GgufModel.load(paths[1]) as eight, GgufModel.load(paths[2]) as four:
        models = [base, eight, four]
        cut = divergence_chunks(models, PROSE.whole, DivergenceSettings(n_ctx=256, n_chunks=2))
        rows = divergence_side_by_side(models, cut, ONE_THREAD, lambda _done: None)
    in_eight, in_four = (divergence_comparison(values, rows.baseline_nll(), 1) for values in rows.models())
    assert 0 < in_eight["mean_kld"].value < 0.02 < in_four["mean_kld"].value < 0.2
    assert in_eight["top1_agreement"].value > in_four["top1_agreement"].value > 0.7
    assert in_eight["rms_delta_p"].value < in_four["rms_delta_p"].value
    assert 10 < in_eight["baseline_perplexity"].value < 60


def test_the_stage_leaves_a_divergence_and_its_facts(
    run_divergence: Callable[..., Done], tiny: Path, other: Path
) -> None:
    done = run_divergence(other, tiny, n_ctx=128, n_chunks=3)
    found = done.found
    assert found is not None and done.result.exit_code == ExitCode.DONE
    assert (found.label, found.text, found.n_ctx, found.n_chunks, found.n_tokens) == ("Q", OUR_PROSE, 128, 3, 3 * 63)
    assert found.mean_kld is not None and found.mean_kld.value > 0
    assert done.result.facts == {"perplexity": found.perplexity.value, "mean_kld": found.mean_kld.value}
    assert done.result.tools["llama.cpp"].startswith("llama-cpp-python ")
    counted = {"stage": "divergence", "done": 7, "total": 7, "unit": "chunks", "what": ""}  # 2 again, of both files
    assert done.progress[-1] == {"event": "progress", **counted}
    assert "Traceback" not in done.stderr and "Warning" not in done.stderr


def test_what_the_weights_lose_is_told_from_what_the_backend_adds(
    run_divergence: Callable[..., Done], demo_gguf: Demo
) -> None:
    """Q8_0's weights cost 0.00096 nats (Transformers gives the same); the rest is llama.cpp's activations of 8 bits."""
    done = run_divergence(demo_gguf("Q8_0"), demo_gguf("BF16"), n_chunks=2, weights_chunks=1)
    assert done.found is not None and done.found.parts is not None and done.found.mean_kld is not None
    parts = done.found.parts
    assert parts.n_tokens == 255 and parts.of_file.value == pytest.approx(0.00096, rel=0.15)
    assert parts.of_file.value + parts.of_backend.value == pytest.approx(parts.whole.value)
    assert parts.whole.value > 2 * parts.of_file.value
    assert done.found.backend.startswith("llama.cpp of llama-cpp-python") and "on the CPU" in done.found.backend


def test_a_file_of_float32_loses_all_that_it_loses_itself(
    run_divergence: Callable[..., Done], tiny: Path, other: Path
) -> None:
    """The tiny files hold float32: their copies are computed as they are."""
    found = run_divergence(other, tiny, n_ctx=128, n_chunks=2).found
    assert found is not None and found.parts is not None
    assert found.parts.of_backend.value == pytest.approx(0, abs=1e-6)
    change = found.parts.ln_perplexity
    assert change is not None and change.of_backend.value == pytest.approx(0, abs=1e-6)
    assert change.of_file.value == pytest.approx(change.whole.value, abs=1e-6) and change.whole.value != 0


def test_a_copy_too_large_for_the_machine_is_not_made(tiny_model: GgufModel, tmp_path: Path) -> None:
    missing = why_no_float_copies([tiny_model.header], tmp_path, 0, memory_bytes=1 << 20)
    assert missing is not None and missing.reason == "TOO_LARGE" and "1.00 MiB are free" in missing.finding
    assert why_no_float_copies([tiny_model.header], tmp_path, 0) is None


def test_without_chunks_to_read_again_no_copy_is_made(
    run_divergence: Callable[..., Done], tiny: Path, other: Path
) -> None:
    found = run_divergence(other, tiny, n_ctx=64, n_chunks=2, weights_chunks=0).found
    assert found is not None and found.mean_kld is not None and found.parts is found.parts_missing is None


def test_lm_evals_perplexity_is_read_where_it_is_asked_for(
    run_divergence: Callable[..., Done], tiny: Path, tiny_model: GgufModel
) -> None:
    asked, plain = (run_divergence(tiny, n_ctx=128, n_chunks=3, rolling=rolling) for rolling in (True, False))
    assert asked.found is not None and plain.found is not None
    windows = divergence_rolling_windows(tiny_model, PROSE, DivergenceSettings(n_ctx=128, n_chunks=3))
    expected = divergence_rolling_perplexity(tiny_model, windows, ONE_THREAD, lambda _done: None)
    assert asked.found.rolling_perplexity == expected and plain.found.rolling_perplexity is None
    assert asked.found.perplexity == plain.found.perplexity and asked.progress[-1]["total"] == 6


def test_files_read_in_step_have_the_values_that_each_has_alone(
    run_divergence: Callable[..., Done], tiny: Path, other: Path
) -> None:
    alone = {"B": run_divergence(tiny, n_chunks=2).found, "Q": run_divergence(other, tiny, n_chunks=2).found}
    done = run_divergence(
        other, tiny, n_chunks=2, others={"R": tiny}, baseline_label="B"
    )
    found = {name: _found(done, name) for name in ("B", "Q", "R")}
    for name, before in alone.items():
        assert before is not None
        same = {"label": name, "duration_s": 0.0}
        assert found[name].model_copy(update=same) == before.model_copy(update=same)
    assert found["R"].mean_kld is not None and found["R"].mean_kld.value < 1e-6  # the baseline itself
    assert done.result.facts.keys() == {"B", "Q", "R"} and done.progress[-1]["done"] == done.progress[-1]["total"]


def _found(done: Done, label: str) -> Divergence:
    return Divergence.model_validate_json((done.files / label / "divergence.json").read_text())


def test_without_a_baseline_perplexity_is_all_there_is(
    run_divergence: Callable[..., Done], tiny: Path, other: Path
) -> None:
    alone, against = run_divergence(tiny, n_ctx=64, n_chunks=2), run_divergence(other, tiny, n_ctx=64, n_chunks=2)
    assert alone.found is not None and against.found is not None
    assert alone.found.perplexity == against.found.baseline_perplexity
    assert alone.found.baseline_perplexity is None and alone.found.mean_kld is None
    assert alone.result.facts == {"perplexity": alone.found.perplexity.value, "mean_kld": None}


def test_a_users_own_text_is_read_and_named(run_divergence: Callable[..., Done], tiny: Path) -> None:
    found = run_divergence(tiny, text="Zwölf Boxkämpfer jagen Viktor. ".encode() * 40, n_ctx=64).found
    assert found is not None and found.text == "text.txt" and found.n_chunks > 2


def test_a_text_too_short_is_refused(run_divergence: Callable[..., Done], tiny: Path) -> None:
    done = run_divergence(tiny, text=b"Too short.")
    assert done.result.exit_code == ExitCode.BAD_REQUEST and done.found is None
    assert done.result.error is not None and "one chunk needs 512" in done.result.error.message


def test_chunks_are_no_longer_than_what_the_model_was_trained_for(
    run_divergence: Callable[..., Done], tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    short = write_tiny(None, folder / "short.gguf", context=96)
    done = run_divergence(short, n_chunks=2)
    assert done.found is not None and (done.found.n_ctx, done.found.n_chunks) == (96, 2)


def test_a_model_trained_for_too_few_tokens_for_any_chunk_is_refused(
    run_divergence: Callable[..., Done], tmp_path: Path
) -> None:
    folder = tmp_path / "models"
    folder.mkdir()
    done = run_divergence(write_tiny(None, folder / "short.gguf", context=4))
    assert done.result.exit_code == ExitCode.UNSUPPORTED_MODEL and done.result.error is not None
    assert "trained for 4 tokens" in done.result.error.message


def test_a_file_cut_short_is_refused(run_divergence: Callable[..., Done], tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "cut.gguf").write_bytes(tiny.read_bytes()[:-1000])
    done = run_divergence(tmp_path / "cut.gguf", tiny)
    assert done.result.exit_code == ExitCode.BAD_REQUEST
    assert done.result.error is not None and done.result.error.kind == "bad-gguf"


def test_a_baseline_with_another_vocabulary_is_refused(tiny_model: GgufModel, tiny: Path, tmp_path: Path) -> None:
    changed = tmp_path / "changed.gguf"
    changed.write_bytes(tiny.read_bytes().replace(b"<|im_start|>", b"<|im_stort|>"))
    with GgufModel.load(changed) as model, pytest.raises(StageFailure, match="im_stort") as failure:
        divergence_chunks([tiny_model, model], PROSE.whole, DivergenceSettings())
    assert failure.value.exit_code == ExitCode.BAD_REQUEST and failure.value.error.kind == "vocabulary"


def test_a_baseline_that_cuts_the_text_otherwise_is_refused(tiny_model: GgufModel, tiny: Path, tmp_path: Path) -> None:
    """The same tokens, but a tokenizer that splits words in another way first."""
    changed, data = tmp_path / "changed.gguf", tiny.read_bytes()
    name = len(b"smollm").to_bytes(8, "little") + b"smollm"  # the value of tokenizer.ggml.pre
    assert data.count(name) == 1
    changed.write_bytes(data.replace(name, name.replace(b"smollm", b"falcon")))
    with GgufModel.load(changed) as model, pytest.raises(StageFailure, match="tokenize the text differently"):
        divergence_chunks([tiny_model, model], PROSE.whole, DivergenceSettings())
