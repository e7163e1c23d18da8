"""The stage `domains` on real files: its numbers against plain decoding, what it keeps, what it leaves out and why."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("llama_cpp")

from eval.analysis.domain_passages import document_passage
from eval.analysis.domain_reading import domain_reading
from eval.analysis.domain_texts import LONG, DomainDocument, DomainText
from eval.analysis.passage_readers import PassageReaders
from eval.domains import fitting_positions
from eval.llama.context import Context, ContextSettings
from eval.llama.model import GgufModel
from quantyard.paths import REPO_DIR
from quantyard.protocol.base import ExitCode, StageResult
from quantyard.protocol.divergence_results import Domains
from quantyard.protocol.evaluation import DomainSettings
from tests.tiny_gguf import write_tiny

Demo = Callable[[str], Path]
TEXT = "The tide mill at Eddering belonged to the widow Kessler, who had it from her uncle's cousin in 1875. " * 6
TOOL = {"type": "function", "function": {"name": "tide", "parameters": {"type": "object"}}}
ASKED = [
    {"role": "user", "content": "When is high tide?"},
    {"role": "assistant", "content": "", "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "tide", "arguments": {"place": "Eddering"}}}]},
    {"role": "tool", "tool_call_id": "1", "content": "06:14"},
    {"role": "assistant", "content": "High tide at Eddering is at fourteen minutes past six in the morning."},
]  # fmt: skip
TEXTS = {
    "code": [{"id": "a", "text": "def tide(hour):\n    return 2.4 * hour\n" * 6}, {"id": "b", "text": TEXT}],
    "long": [{"id": "a", "text": TEXT * 4}],
    "tools": [{"id": str(n), "messages": ASKED, "tools": [TOOL]} for n in range(2)],
}


@dataclass(frozen=True)
class Done:
    """How a run ended, and what it left, by label."""

    result: StageResult
    found: dict[str, Domains]
    stderr: str


@dataclass
class Runner:
    """Runs the stage as the engines do: a process, folders in and out."""

    folder: Path

    def write(self, models: dict[str, Path], baseline: Path | None, texts: dict[str, Any], **settings: Any) -> None:
        """The request and its inputs; the first of the models is the request's own."""
        (label, model), *others = models.items()
        links = {"model": model} | {f"model-{name}": path for name, path in others}
        links |= {"baseline": baseline} if baseline else {}
        for name, path in links.items():
            (self.folder / "in" / name).mkdir(parents=True)
            (self.folder / "in" / name / path.name).symlink_to(path)
        (self.folder / "in" / "suite" / "texts").mkdir(parents=True)
        for name, documents in texts.items():
            lines = "".join(json.dumps(document) + "\n" for document in documents)
            (self.folder / "in" / "suite" / "texts" / f"{name}.jsonl").write_text(lines)
        (self.folder / "in" / "request.json").write_text(json.dumps({
            "label": label, "model_file": model.name, "baseline_file": baseline.name if baseline else None,
            "others": [{"label": name, "model_file": path.name} for name, path in others],
            "baseline_label": "BF16" if baseline and others else "", "runtime": {"threads": 1},
            "settings": {"texts": "texts", "tokens": 1024, "positions": [64, 256]} | settings,
        }))  # fmt: skip
        (self.folder / "out").mkdir()

    def start(self) -> subprocess.Popen[str]:
        """The process."""
        folders = ["--in", str(self.folder / "in"), "--out", str(self.folder / "out")]
        argv, pipe = [sys.executable, "-m", "eval.domains", *folders], subprocess.PIPE
        return subprocess.Popen(argv, cwd=REPO_DIR, env=dict(os.environ), stdout=pipe, stderr=pipe, text=True)

    def run(self) -> Done:
        """The whole stage."""
        process = self.start()
        _, stderr = process.communicate(timeout=600)
        result = StageResult.model_validate_json((self.folder / "out" / "result.json").read_text())
        assert process.returncode == result.exit_code, stderr
        files = self.folder / "out" / "files"
        found = [Domains.model_validate_json(path.read_text()) for path in sorted(files.rglob("domains.json"))]
        return Done(result, {one.label: one for one in found}, stderr)


@pytest.fixture
def runner(tmp_path: Path) -> Callable[..., Runner]:
    def made(models: dict[str, Path], baseline: Path | None = None, texts: Any = None, **settings: Any) -> Runner:
        one = Runner(tmp_path / f"run{len(list(tmp_path.iterdir()))}")
        one.write(models, baseline, TEXTS if texts is None else texts, **settings)
        return one

    return made


def test_several_files_beside_one_baseline_have_the_numbers_that_they_have_alone(
    runner: Callable[..., Runner], demo_gguf: Demo
) -> None:
    baseline, quants = demo_gguf("BF16"), {name: demo_gguf(name) for name in ("Q4_K_M", "Q8_0")}
    together = runner(quants, baseline).run()
    assert together.result.exit_code == ExitCode.DONE
    assert {entry.path for entry in together.result.outputs} == {
        f"{label}/domains.json" for label in ("BF16", "Q4_K_M", "Q8_0")
    }, "no part of the work is left"  # fmt: skip
    alone = runner({"Q4_K_M": quants["Q4_K_M"]}, baseline, names=["tools"]).run()
    assert alone.found["Q4_K_M"].domains == together.found["Q4_K_M"].domains[-1:]
    for worse, better in zip(together.found["Q4_K_M"].domains, together.found["Q8_0"].domains, strict=True):
        assert worse.mean_kld and better.mean_kld and worse.mean_kld.value > 2 * better.mean_kld.value
    assert all(one.mean_kld is None and not one.parts for one in together.found["BF16"].domains)
    by_name = {one.domain: one for one in together.found["Q8_0"].domains}
    assert by_name["tools"].form == "chat template, tools as text", "the demo's template knows no tools"
    assert [part.name for part in by_name["tools"].parts] == ["tool calls", "answers"]
    assert [part.name for part in by_name["long"].parts] == ["0-64", "64-256"]
    assert {one.domain for one in together.found["Q8_0"].left_out} == {"code", "long", "tools"}
    facts = together.result.facts["Q4_K_M"]
    assert isinstance(facts, dict) and facts["n_domains"] == 3 and facts["worst"] in by_name


def test_a_killed_run_goes_on_with_the_domain_that_it_was_in(runner: Callable[..., Runner], demo_gguf: Demo) -> None:
    given = ({"Q8_0": demo_gguf("Q8_0")}, demo_gguf("BF16"))
    whole, killed = runner(*given).run(), runner(*given)
    process = killed.start()
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line)["done"] == 1:
            break
    process.send_signal(signal.SIGKILL)
    process.communicate()
    again = killed.run()
    assert "code was measured before" in again.stderr
    assert again.found["Q8_0"].domains == whole.found["Q8_0"].domains
    assert not (killed.folder / "out" / "files" / "finished").exists()


def test_the_divergence_is_that_of_plain_decoding(demo_gguf: Demo, tmp_path: Path) -> None:
    paths = [write_tiny(demo_gguf("BF16"), tmp_path / f"{n}.gguf", n_layers=n) for n in (2, 3)]
    models = [GgufModel.load(path) for path in paths]
    passage = document_passage(models[0], models[0].tokenize(TEXT, add_special=False), "text")
    with PassageReaders(models, 1) as readers:
        (found,) = readers.read([passage]).models()
    rows = []
    for model in models:
        with Context(model, ContextSettings(len(passage.tokens), threads=1)) as context:
            logits = np.concatenate(context.decode_one(passage.tokens, n_rows=len(passage.tokens))).astype(np.float64)
        rows.append(logits - np.logaddexp.reduce(logits, axis=1)[:, None])
        model.close()
    x, y = (row[:-1] for row in rows)
    kld = (np.exp(x) * (x - y)).sum(axis=1)
    start = len(passage.tokens) - 1 - len(found.kld)
    assert found.kld == pytest.approx(kld[start:], abs=0.05)
    assert found.kld.mean() == pytest.approx(kld[start:].mean(), rel=0.01)


@pytest.mark.parametrize("architecture", [
    "llama", pytest.param("gemma2", marks=pytest.mark.slow), pytest.param("mamba", marks=pytest.mark.slow),
])  # fmt: skip
def test_every_kind_of_memory_is_measured(
    runner: Callable[..., Runner], demo_gguf: Demo, tmp_path: Path, architecture: str
) -> None:
    window = 32 if architecture == "gemma2" else 0
    made = [
        write_tiny(demo_gguf("BF16"), tmp_path / f"{n}.gguf", architecture, n_layers=n, window=window) for n in (2, 3)
    ]
    done = runner({"Q8_0": made[1]}, made[0], {"code": TEXTS["code"]}).run()
    (one,) = done.found["Q8_0"].domains
    assert one.mean_kld and one.mean_kld.value > 0 and one.n_tokens == one.n_read


def test_a_context_that_is_too_short_leaves_out_what_does_not_fit_and_says_so(
    runner: Callable[..., Runner], demo_gguf: Demo, tmp_path: Path
) -> None:
    made = [write_tiny(demo_gguf("BF16"), tmp_path / f"{n}.gguf", n_layers=n, context=64) for n in (2, 3)]
    long_question = [{"role": "user", "content": TEXT}, ASKED[-1]]
    texts = TEXTS | {"chat": [{"id": "a", "messages": long_question}]}
    found = runner({"Q8_0": made[1]}, made[0], texts).run().found["Q8_0"]
    assert {one.domain for one in found.domains} >= {"code", "long"} and "chat" not in {d.domain for d in found.domains}
    reasons = [one.reason for one in found.left_out if one.domain == "chat"]
    assert any("no answer begins in their first 64 tokens" in reason for reason in reasons)
    assert any("not measured: 0 tokens" in reason for reason in reasons)


def test_long_documents_are_read_as_far_as_memory_is_enough(demo_gguf: Demo, tmp_path: Path) -> None:
    text = DomainText(LONG, (DomainDocument("a", TEXT * 20),))
    with GgufModel.load(write_tiny(demo_gguf("BF16"), tmp_path / "tiny.gguf")) as model:
        assert fitting_positions([model, model], 1) > 10_000
        whole, part = (domain_reading(model, text, DomainSettings(), fitting=n) for n in (10_000, 100))
    assert [passage.n_read for passage in part.passages] == [98] and whole.passages[0].n_read > 1000
    assert part.left_out == (
        "positions from 100 on: memory is enough for 100, and the model was trained for 2,048",
    )  # fmt: skip
