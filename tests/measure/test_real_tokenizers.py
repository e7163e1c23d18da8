"""llama.cpp against the tokenizers of real models: what `verify` finds of each family, and what its presets say."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from builder.checks.text_report import token_findings
from builder.checks.tokenizer_files import refuse_unconvertible_tokenizer
from builder.llama.bindings_runtime import BindingsRuntime
from quantyard.paths import REPO_DIR
from quantyard.protocol.base import ExitCode
from quantyard.protocol.reference import Reference
from quantyard.protocol.runner import StageFailure
from quantyard.protocol.text_findings import TextFinding
from quantyard.sources.presets import shipped_presets
from tests.real_tokenizers import FAMILIES, write_family

CONVERTER = REPO_DIR / ".venv-local/share/llama.cpp/convert_hf_to_gguf.py"
SAMPLE = ("qwen3", "llama-2", "command-r")  # a change tries these; `make test-all` every family
ADDED = ("Sectionfivea", "[CITY]", "Übergang", "eigenvalue")  # words of a domain


class Vocabulary(BindingsRuntime):
    """A GGUF without weights."""

    def _load(self) -> None:
        params = self._llama.llama_model_default_params()
        params.vocab_only = True
        self._model = self._llama.llama_model_load_from_file(str(self._path).encode(), params)
        assert self._model, "\n".join(self._log)
        self._vocab = self._llama.llama_model_get_vocab(self._model)


def _family(name: str) -> Any:
    return pytest.param(name, marks=() if name in SAMPLE else pytest.mark.slow)


def _compared(folder: Path, *permitted: str) -> tuple[list[TextFinding], Reference]:
    """What verify finds of a folder's tokenizer, converted by llama.cpp."""
    if not CONVERTER.exists():
        pytest.skip("no .venv-local: ENGINE=local make images")
    gguf, said = folder.with_suffix(".gguf"), folder.with_suffix(".json")
    argv = [sys.executable, str(CONVERTER), str(folder), "--vocab-only", "--outfile", str(gguf)]
    script = REPO_DIR / "builder/checks/hf_reference.py"
    asked = [sys.executable, str(script), "--folder", str(folder), "--out", str(said)]
    for command in ([*argv, "--model-name", folder.name], asked):
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
        assert done.returncode == 0, done.stderr[-2000:]
    reference = Reference.model_validate_json(said.read_bytes())
    with Vocabulary(gguf, 1) as runtime:
        return token_findings(runtime, reference, frozenset(permitted), can_score=False), reference


@pytest.mark.parametrize("name", [_family(name) for name in FAMILIES])
def test_a_family_is_tokenized_as_the_table_says(name: str, tmp_path: Path) -> None:
    family = FAMILIES[name]
    findings, reference = _compared(write_family(name, tmp_path / f"{name}-instruct"))
    assert reference.witness.startswith("tokenizer.json (tokenizers ")
    assert {finding.kind for finding in findings if finding.outcome == "record"} == family.recorded
    assert {finding.kind for finding in findings if finding.outcome == "warn"} == family.warned
    assert {finding.outcome for finding in findings} <= {"record", "warn"}


@pytest.mark.parametrize("preset", shipped_presets(), ids=lambda preset: preset.name)
def test_a_preset_says_what_its_family_meets(preset: Any) -> None:
    families = [family for family in FAMILIES.values() if preset.name.startswith(family.presets or "no preset")]
    assert len(families) <= 1
    for family in families:
        assert preset.gguf_file or {*preset.differs} == family.recorded | family.warned


def _with_added(folder: Path, **flags: bool) -> Path:
    """Put words of a domain into tokenizer.json, which does not mark them special unless told so."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_bytes())
    first = json.loads((folder / "config.json").read_bytes())["vocab_size"]
    default = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    tokenizer["added_tokens"] += [
        {"id": first + i, "content": word, **default, **flags} for i, word in enumerate(ADDED)
    ]  # fmt: skip
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")
    config = json.loads((folder / "config.json").read_bytes())
    (folder / "config.json").write_text(json.dumps(config | {"vocab_size": first + len(ADDED)}))
    return folder


@pytest.mark.parametrize(
    ("flags", "is_kept"),
    # llama.cpp's converter decodes what is not normalized, which breaks "Ü" in a byte-level vocabulary.
    [({}, False), ({"normalized": True}, True), ({"single_word": True}, False), ({"lstrip": True}, False),
     pytest.param({"rstrip": True}, False, marks=pytest.mark.slow)],
    ids=str,
)  # fmt: skip
def test_words_added_to_a_tokenizer_are_tried_with_their_flags(
    flags: dict[str, bool], *, is_kept: bool, tmp_path: Path
) -> None:
    folder = _with_added(write_family("falcon", tmp_path / "falcon"), **flags)
    if is_kept:
        assert _compared(folder)[0] == []
        return
    with pytest.raises(StageFailure) as refused:
        _compared(folder)
    assert refused.value.error.kind == "verify-tokenizer" and "plain-text: " in refused.value.error.message
    assert any(word in refused.value.error.message for word in ADDED)


def test_a_sentencepiece_model_needs_its_tokenizer_model(tmp_path: Path) -> None:
    folder = write_family("llama-2", tmp_path / "llama-2")
    refuse_unconvertible_tokenizer(folder, "LlamaForCausalLM")
    (folder / "tokenizer.model").unlink()
    with pytest.raises(StageFailure) as refused:
        refuse_unconvertible_tokenizer(folder, "LlamaForCausalLM")
    assert refused.value.exit_code == ExitCode.BAD_REQUEST and "Copy tokenizer.model" in refused.value.error.hint


def test_the_space_that_llama_cpp_puts_after_special_tokens_is_a_warning(tmp_path: Path) -> None:
    folder = write_family("llama-2", tmp_path / "llama-2")
    (folder / "tokenizer.json").unlink()  # which would say that the space belongs there
    config = json.loads((folder / "tokenizer_config.json").read_bytes())
    (folder / "tokenizer_config.json").write_text(json.dumps(config | {"legacy": False}))
    findings, reference = _compared(folder)
    assert reference.witness.startswith("tokenizer.model (sentencepiece ")
    assert [(finding.kind, finding.outcome) for finding in findings] == [("leading-space", "warn")]
