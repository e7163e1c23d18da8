"""The stage `verify_foreign` with llama.cpp itself: files as other people make them, of a tiny model of ours."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import llama_cpp
import numpy as np
import pytest

from builder.verify_foreign import verify_foreign
from quantyard.protocol.builder import VerifyForeignRequest
from quantyard.protocol.measuring_facts import ForeignFacts
from quantyard.protocol.runner import Stage, StageFailure
from tests.tiny_gguf import write_tiny

FTYPES = {
    "F16": llama_cpp.LLAMA_FTYPE_MOSTLY_F16, "Q8_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_0": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_0, "Q5_1": llama_cpp.LLAMA_FTYPE_MOSTLY_Q5_1,
    "IQ4_NL": llama_cpp.LLAMA_FTYPE_MOSTLY_IQ4_NL, "Q4_K_M": llama_cpp.LLAMA_FTYPE_MOSTLY_Q4_K_M,
}  # fmt: skip


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(None, tmp_path_factory.mktemp("ours") / "model.gguf")


def quantized(source: Path, path: Path, quant: str) -> Path:
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = FTYPES[quant]
    assert llama_cpp.llama_model_quantize(str(source).encode(), str(path).encode(), params) == 0
    return path


Change = Callable[[str, Any], Any]


def changed(
    source: Path, path: Path, fields: Change = lambda _n, v: v, tensors: Change = lambda _n, v: v,
    more: dict[str, Any] | None = None,
) -> Path:
    """A copy whose metadata and tensors a function may change, with more tensors; None leaves one out."""
    reader, writer = gguf.GGUFReader(source), gguf.GGUFWriter(path, "llama")
    for name, field in reader.fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        kind = field.types[0]
        inner = field.types[-1] if kind == gguf.GGUFValueType.ARRAY else None
        if (value := fields(name, field.contents())) is not None:
            writer.add_key_value(name, value, kind, inner)
    for tensor in reader.tensors:
        if (data := tensors(tensor.name, np.array(tensor.data))) is not None:
            writer.add_tensor(tensor.name, data)
    for name, data in (more or {}).items():
        writer.add_tensor(name, data)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def check(tmp_path: Path, ours: Path, theirs: Path, named: str = "") -> ForeignFacts:
    stage = Stage("verify_foreign", tmp_path / "in", tmp_path / "out", {})
    stage.files_dir.mkdir(parents=True, exist_ok=True)
    for name, path in (("model", theirs), ("source", ours)):
        (stage.in_dir / name).mkdir(parents=True)
        shutil.copy(path, stage.in_dir / name / "model.gguf")
    request = VerifyForeignRequest(has_reference=False, named_type=named)
    return ForeignFacts.read(verify_foreign(stage, request).facts)


def refusal(tmp_path: Path, ours: Path, theirs: Path) -> StageFailure:
    with pytest.raises(StageFailure) as failed:
        check(tmp_path, ours, theirs)
    assert failed.value.exit_code == 2 and failed.value.error.hint
    return failed.value


@pytest.mark.parametrize("quant", FTYPES)
def test_a_file_of_our_model_has_no_finding_and_the_error_of_its_type(tmp_path: Path, ours: Path, quant: str) -> None:
    facts = check(tmp_path, ours, quantized(ours, tmp_path / "theirs.gguf", quant), quant)
    # 16 bits round by less than what two conversions may differ by, which is the least that is told.
    assert facts.findings == [] and facts.worst_error_ratio == pytest.approx(0.0 if quant == "F16" else 1.0, abs=0.05)


def _low_rank(name: str, data: Any) -> Any:
    """As a merged adapter changes the weights: by two directions."""
    if not name.endswith(("attn_q.weight", "ffn_up.weight")):
        return data
    rng = np.random.default_rng(3)
    return data + (rng.standard_normal((data.shape[0], 2)) @ rng.standard_normal((2, data.shape[1])) * 0.1).astype("f4")


def _rescaled(name: str, data: Any) -> Any:
    return data * np.float32(1.5) if name == "blk.1.ffn_down.weight" else data


def _permuted(name: str, data: Any) -> Any:
    return data[::-1].copy() if name == "blk.0.attn_k.weight" else data


@pytest.mark.parametrize("change", [_low_rank, _rescaled, _permuted])
@pytest.mark.parametrize("quant", ["F16", "Q4_0"])
def test_other_weights_are_refused_with_the_tensors_that_differ(
    tmp_path: Path, ours: Path, change: Change, quant: str
) -> None:
    theirs = quantized(changed(ours, tmp_path / "f32.gguf", tensors=change), tmp_path / "theirs.gguf", quant)
    error = refusal(tmp_path, ours, theirs).error
    assert error.kind == "foreign-other-weights" and "hold other weights" in error.message


def test_another_model_vocabulary_shape_and_missing_tensors_are_refused(tmp_path: Path, ours: Path) -> None:
    other = write_tiny(None, tmp_path / "other.gguf", "gemma2")
    assert refusal(tmp_path / "a", ours, other).error.kind == "foreign-other-architecture"

    def tokens(name: str, value: Any) -> Any:
        return [f"x{token}" for token in value] if name == "tokenizer.ggml.tokens" else value

    renamed = changed(ours, tmp_path / "renamed.gguf", fields=tokens)
    assert refusal(tmp_path / "b", ours, renamed).error.kind == "foreign-other-vocabulary"
    deeper = write_tiny(None, tmp_path / "deeper.gguf", n_layers=1)
    assert refusal(tmp_path / "c", ours, deeper).error.kind == "foreign-missing-tensors"


def test_a_file_that_is_cut_short_or_holds_nan_is_refused(tmp_path: Path, ours: Path) -> None:
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(ours.read_bytes()[:-1000])
    assert refusal(tmp_path / "a", ours, cut).error.kind == "foreign-header"

    def spoil(name: str, data: Any) -> Any:
        if name == "blk.0.ffn_up.weight":
            data[0, 0] = np.nan
        return data

    spoilt = changed(ours, tmp_path / "spoilt.gguf", tensors=spoil)
    assert refusal(tmp_path / "b", ours, spoilt).error.kind == "foreign-damaged-weights"


_CHANGES: dict[str, Change] = {
    "other-template": lambda name, value: "{{ messages[0].content }}" if name.endswith("chat_template") else value,
    "no-template": lambda name, value: None if name.endswith("chat_template") else value,
    "template-refused": lambda name, value: "{% for %}" if name.endswith("chat_template") else value,
    "other-rope": lambda name, value: 128 if name == "llama.context_length" else value,
    "other-hyperparameters": lambda name, value: 1e-6 if name.endswith("layer_norm_rms_epsilon") else value,
    "other-special-tokens": lambda name, value: 3 if name.endswith("eos_token_id") else value,
    "other-pre-tokenizer": lambda name, value: "llama-bpe" if name.endswith("ggml.pre") else value,
    "other-tokens": lambda name, value: [*value[:-2], "<|pad|>", value[-1]] if name.endswith("ggml.tokens") else value,
}


@pytest.mark.parametrize("kind", _CHANGES)
def test_what_behaves_otherwise_is_a_warning_and_the_file_is_measured(tmp_path: Path, ours: Path, kind: str) -> None:
    theirs = quantized(changed(ours, tmp_path / "f32.gguf", fields=_CHANGES[kind]), tmp_path / "theirs.gguf", "Q8_0")
    facts = check(tmp_path, ours, theirs)
    assert [found.kind for found in facts.findings] == [kind]
    assert facts.findings[0].grade == "warning"


def test_a_name_that_promises_another_type_is_told(tmp_path: Path, ours: Path) -> None:
    theirs = quantized(ours, tmp_path / "theirs.gguf", "Q8_0")
    assert [found.kind for found in check(tmp_path, ours, theirs, "Q4_0").findings] == ["other-type-than-named"]


def test_stored_output_weights_are_a_note_if_they_repeat_the_embeddings(tmp_path: Path, ours: Path) -> None:
    embeddings = next(np.array(t.data) for t in gguf.GGUFReader(ours).tensors if t.name == "token_embd.weight")
    same = changed(ours, tmp_path / "same.gguf", more={"output.weight": embeddings})
    assert [found.kind for found in check(tmp_path / "a", ours, same).findings] == ["output-stored"]
    other = changed(ours, tmp_path / "other.gguf", more={"output.weight": embeddings[::-1].copy()})
    assert refusal(tmp_path / "b", ours, other).error.kind == "foreign-other-weights"
