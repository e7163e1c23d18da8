"""The stage `twin` on configs as they are published: what llama.cpp computes otherwise is found, and nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from builder.imatrix.calibration_text import OUR_TEXT
from quantyard.paths import REPO_DIR
from quantyard.protocol.base import ExitCode, StageResult
from quantyard.protocol.facts import TwinFacts
from tests.conftest import run_json
from tests.tiny_model import write_tiny_model
from tests.twins import (
    DEEPSEEK_V3,
    DEEPSEEK_V3_SILENT,
    EXAONE4,
    FLAN_T5,
    LLAMA,
    MISTRAL,
    STARCODER2,
    T5_TIED,
    Config,
)

VENV = REPO_DIR / ".venv-local"
_SENTENCEPIECE = """
import sys, sentencepiece
sentencepiece.SentencePieceTrainer.train(input=sys.argv[1], model_prefix=sys.argv[2], model_type="unigram",
    vocab_size=600, hard_vocab_limit=False, max_sentence_length=100000, minloglevel=2)
"""


@dataclass(frozen=True)
class Twins:
    """Runs the stage as the local engine does."""

    folder: Path
    demo: Path

    def run(self, config: Config, **asked: Any) -> StageResult:
        """The stage's result for a folder of this config and a tokenizer that fits it."""
        source = self.folder / "in" / "source"
        source.mkdir(parents=True)
        (source / "config.json").write_text(json.dumps(config))
        if config["model_type"] == "t5":
            self._write_sentencepiece(source)
        else:
            for name in ("tokenizer.json", "tokenizer_config.json"):
                shutil.copy(self.demo / name, source / name)
        (self.folder / "in" / "request.json").write_text(json.dumps({"stage": "twin", **asked}))
        self._python("-m", "builder.twin", "--in", str(self.folder / "in"), "--out", str(self.folder / "out"))
        return StageResult.model_validate_json((self.folder / "out" / "result.json").read_bytes())

    def _write_sentencepiece(self, source: Path) -> None:
        text = self.folder / "text.txt"
        text.write_text(OUR_TEXT.read_text(encoding="utf-8")[:300_000], encoding="utf-8")
        self._python("-c", _SENTENCEPIECE, str(text), str(source / "spiece"))

    def _python(self, *argv: str) -> None:
        (self.folder / "out").mkdir(exist_ok=True)
        environment = {
            "PATH": "/usr/bin:/bin", "HOME": str(self.folder), "LANG": "C.UTF-8", "PYTHONPATH": str(REPO_DIR),
            "LLAMA_CONVERTER": str(VENV / "share" / "llama.cpp" / "convert_hf_to_gguf.py"),
            "CONVERTER_PYTHON": str(VENV / "bin" / "python"), "HF_HUB_OFFLINE": "1",
            "CONVERTER_PACKAGES": str(VENV / "share" / "transformers-4.57"),
        }
        subprocess.run(
            [str(VENV / "bin" / "python"), *argv], env=environment, cwd=self.folder, timeout=1200, check=False
        )


@pytest.fixture
def twins(local_tools: None, demo_source: Path, tmp_path: Path) -> Twins:
    return Twins(tmp_path, demo_source)


def _is_proved(result: StageResult) -> TwinFacts:
    assert result.error is None, result.error
    facts = TwinFacts.read(result.facts)
    assert facts.status == "proved" and "Computes what Transformers computes" in facts.finding, facts.finding
    assert facts.max_delta is not None and facts.spread is not None and facts.max_delta < 0.02 * facts.spread
    return facts


def test_deepseek_without_a_word_on_its_scores_is_refused_with_the_cause_and_the_remedy(twins: Twins) -> None:
    result = twins.run(DEEPSEEK_V3_SILENT)
    assert result.exit_code is ExitCode.UNSUPPORTED_MODEL and result.error is not None
    assert "softmax where the model has sigmoid" in result.error.message
    assert "scoring_func" in result.error.hint and "ALLOW_TWIN_MISMATCH=1" in result.error.hint
    assert "differs is layer 1 " in result.error.message, "layer 0 is dense: it has no experts to choose"


def test_a_window_that_llama_cpp_ignores_is_a_warning_with_the_length_up_to_which_it_is_right(twins: Twins) -> None:
    result = twins.run(MISTRAL)
    assert result.exit_code is ExitCode.DONE
    facts = TwinFacts.read(result.facts)
    assert (facts.status, facts.right_up_to_tokens) == ("limited", 4096)
    assert "up to 4,096 tokens, its sliding window" in facts.finding
    assert result.facts["first_wrong_position"] == 32, "the first token that the window leaves out is the first"


@pytest.mark.slow
def test_starcoder2_is_right_up_to_its_window(twins: Twins) -> None:
    facts = TwinFacts.read(twins.run(STARCODER2).facts)
    assert (facts.status, facts.right_up_to_tokens) == ("limited", 4096)


@pytest.mark.slow
def test_a_tied_t5_is_refused_with_the_cause(twins: Twins) -> None:
    result = twins.run(T5_TIED)
    assert result.exit_code is ExitCode.UNSUPPORTED_MODEL and result.error is not None
    assert "leaves out the scale of the logits" in result.error.message


@pytest.mark.slow
def test_what_differs_and_is_allowed_passes_with_a_record(twins: Twins) -> None:
    result = twins.run(T5_TIED, allow_twin_mismatch=True)
    facts = TwinFacts.read(result.facts)
    assert result.exit_code is ExitCode.DONE and facts.status == "differs" and facts.allowed


@pytest.mark.slow
@pytest.mark.parametrize(
    "config", [LLAMA, DEEPSEEK_V3, EXAONE4, FLAN_T5, {**MISTRAL, "sliding_window": None}],
    ids=["llama", "deepseek", "exaone4", "flan-t5", "mistral"],
)  # fmt: skip
def test_what_both_compute_alike_is_proved(twins: Twins, config: Config) -> None:
    _is_proved(twins.run(config))


@pytest.mark.slow
def test_a_model_whose_class_comes_as_code_is_not_proved_and_passes(twins: Twins) -> None:
    config = LLAMA | {"architectures": ["OddForCausalLM"], "auto_map": {"AutoConfig": "odd.OddConfig"}}
    result = twins.run(config | {"model_type": "odd"})
    assert result.exit_code is ExitCode.DONE
    assert TwinFacts.read(result.facts).status == "unproved" and "code" in str(result.facts["finding"])


def test_a_build_proves_its_model_before_it_converts_it(engine: str, demo_source: Path, tmp_path: Path) -> None:
    model = write_tiny_model(tmp_path / "tiny", demo_source)
    asked = {"MODEL": str(model), "QUANT": "Q8_0", "ENGINE": engine, "ARTIFACTS": str(tmp_path / "artifacts")}
    made = run_json("build", **asked, PARITY="twin")
    assert made["ran"] == ["twin", "convert", "quantize Q8_0", "verify Q8_0"]
    facts = json.loads(Path(made["manifest"]).read_text())["stages"]["twin"]["facts"]
    assert facts["status"] == made["twin"]["status"] == "proved" and facts["real_depth"] == 1


@pytest.mark.slow
def test_the_model_itself_is_as_near_to_transformers_as_its_type_allows(
    engine: str, demo_source: Path, tmp_path: Path
) -> None:
    asked = {"MODEL": str(demo_source), "QUANT": "BF16", "ENGINE": engine, "ARTIFACTS": str(tmp_path / "artifacts")}
    made = run_json("build", **asked, PARITY="full")
    assert made["ran"] == ["twin", "convert", "parity", "verify BF16"]
    facts = json.loads(Path(made["manifest"]).read_text())["stages"]["parity"]["facts"]
    assert facts["status"] == "proved" and facts["mean_kld"] < 0.01 and facts["floor_mean_kld"] < 0.05
