"""verify: what it lets pass, and what it calls each thing it does not."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from builder import verify as verify_module
from builder.checks.corpus import running_text
from builder.checks.hf_reference import hf_reference_facts as make_reference
from builder.checks.text_parity import first_text_difference, is_same_chat, tokenizer_differences
from builder.dequantize import PRE_TOKENIZERS, restore_dequantized_tokenizer
from builder.llama.runtime import llama_not_finite
from builder.verify import verify
from quantyard.formats.gguf import GgufHeader, read_gguf_header, why_gguf_cannot_generate
from quantyard.protocol.base import ExitCode
from quantyard.protocol.builder import VerifyRequest
from quantyard.protocol.facts import VerifyFacts
from quantyard.protocol.reference import Reference
from quantyard.protocol.runner import Stage, StageFailure, StageOutcome
from quantyard.sandbox.bounded_process import OverLimit
from quantyard.sandbox.chat_template import ChatRefused, Messages
from tests.gguf_files import SMALL_METADATA, TensorSpec, Value, gguf

GERMAN = next(passage["text"] for passage in running_text() if passage["name"] == "german")
SOURCE = (TensorSpec("blk.0.ffn_up.weight", (256, 2), "BF16"), TensorSpec("output_norm.weight", (7,), "F32"))
QUANTIZED = (TensorSpec("blk.0.ffn_up.weight", (256, 2), "Q4_K"), TensorSpec("output_norm.weight", (7,), "F32"))


class FakeTokenizer:
    """Stands for the Hugging Face side: one id per character, BOS is 1."""

    bos_token = "<s>"
    all_special_tokens = ("<s>",)
    chat_template = "x"

    def __call__(self, text: str, *, add_special_tokens: bool, return_attention_mask: bool) -> dict[str, list[int]]:
        return {"input_ids": [1] * add_special_tokens + [ord(character) for character in text]}

    def apply_chat_template(self, messages: Messages, *, tokenize: bool, add_generation_prompt: bool) -> str:
        if messages[0]["role"] == "system":
            raise ValueError("no system role")
        return "<s>" + "".join(f"[{m['role']}]{m['content']}" for m in messages) + "[assistant]"


class FakeRuntime:
    """Stands for llama.cpp, and agrees with `FakeTokenizer` unless told otherwise."""

    def __init__(
        self, ids: Mapping[str, list[int]] | None = None, chat: str | None = None, *, finite: bool = True,
        template: Exception | None = None,
    ) -> None:
        self.ids, self.chat, self.finite, self.is_open = ids or {}, chat, finite, False
        self.template = template

    def __enter__(self) -> Self:
        self.is_open = True
        return self

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, at: TracebackType | None) -> None:
        self.is_open = False

    @property
    def argv(self) -> tuple[str, ...]:
        return ("llama-server",)

    def version(self) -> str:
        return "b1"

    def tokenize(self, text: str, *, add_special: bool) -> list[int]:
        return self.ids.get(text, [1] * add_special + [ord(character) for character in text])

    def render_chat(self, messages: Messages) -> str:
        if self.chat is not None:
            raise ChatRefused(self.chat)
        return FakeTokenizer().apply_chat_template(messages, tokenize=False, add_generation_prompt=True)[3:]

    def check_template(self) -> None:
        if self.template is not None:
            raise self.template

    def text_logprob(self, ids: Sequence[int]) -> float | None:
        return -float(len(ids))

    def finite_logits(self, prompts: Sequence[str]) -> int:
        if not self.finite:
            raise llama_not_finite(prompts[0])
        return len(prompts)


Run = Callable[..., StageOutcome]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs the stage on a small model; keyword arguments make one thing of it wrong."""

    def run_verify(
        source: Sequence[TensorSpec] = SOURCE, model: Sequence[TensorSpec] = QUANTIZED,
        metadata: Mapping[str, Value] = SMALL_METADATA, runtime: FakeRuntime | None = None, **request: Any,
    ) -> StageOutcome:  # fmt: skip
        for folder, tensors, keys in (("source", source, SMALL_METADATA), ("model", model, metadata)):
            (tmp_path / "in" / folder).mkdir(parents=True)
            (tmp_path / "in" / folder / "model.gguf").write_bytes(gguf(keys, tensors))
        (tmp_path / "in/reference").mkdir()
        (tmp_path / "in/reference/reference.json").write_text(json.dumps(make_reference(FakeTokenizer())))
        monkeypatch.setattr(verify_module, "open_llama_runtime", lambda *_: runtime or FakeRuntime())
        stage = Stage("verify", tmp_path / "in", tmp_path / "out", {})
        return verify(stage, VerifyRequest(**{"quant": "Q4_K_M"} | request))

    return run_verify


def _failure(run: Run, **wrong: Any) -> StageFailure:
    with pytest.raises(StageFailure) as caught:
        run(**wrong)
    return caught.value


@pytest.mark.parametrize("wrong", [OverLimit("runs longer than 10 s"), ChatRefused("Unknown statement: include")])
def test_a_template_that_would_stop_a_server_is_refused_whatever_is_allowed(run: Run, wrong: Exception) -> None:
    failure = _failure(run, runtime=FakeRuntime(template=wrong), allow_mismatch=("plain-text",))
    assert (failure.exit_code, failure.error.kind) == (ExitCode.UNSUPPORTED_MODEL, "chat-template")
    assert "The chat template" in failure.error.message and "memory=" not in failure.error.hint.lower()


def test_a_faithful_model_passes_and_everything_checked_is_counted(run: Run) -> None:
    outcome = run()
    facts = outcome.facts
    assert facts["findings"] == []
    assert isinstance(facts["probes"], int)
    assert facts["probes"] >= 220
    assert facts["chats"] == 6
    assert facts["chats_refused_by_template"] == ["empty-system", "system-multi-turn", "system-user", "unicode"]
    assert (facts["tensors"], facts["types"], facts["n_params"]) == (2, {"Q4_K": 1, "F32": 1}, 519)
    assert facts["bits_per_weight"] == round(8 * (288 + 28) / 519, 4)
    assert (facts["architecture"], facts["context_length"], facts["logits"]) == ("llama", 2048, 3)
    assert outcome.tools == {"llama.cpp": "b1"}


def test_the_runtime_is_closed_after_a_failure(run: Run) -> None:
    runtime = FakeRuntime(finite=False)
    _failure(run, runtime=runtime)
    assert not runtime.is_open


def test_running_text_that_differs_is_refused_with_what_permits_it(run: Run) -> None:
    failure = _failure(run, runtime=FakeRuntime(ids={GERMAN: [7, 8]}))
    assert (failure.exit_code, failure.error.kind) == (ExitCode.UNSUPPORTED_MODEL, "verify-tokenizer")
    assert "plain-text: 5.1 %" in failure.error.message and "of running text differ" in failure.error.message
    assert "in german: [65, 109," in failure.error.message and "[7, 8] found" in failure.error.message
    assert "ALLOW_MISMATCH=plain-text" in failure.error.hint


def test_a_mismatch_that_is_permitted_by_name_passes_and_is_recorded(run: Run) -> None:
    facts = run(runtime=FakeRuntime(ids={GERMAN: [7, 8]}), allow_mismatch=("plain-text",)).facts
    [finding] = VerifyFacts.read(facts).findings
    assert (finding.kind, finding.outcome, finding.probes) == ("plain-text", "allowed", 0)
    assert 0 < finding.differing < finding.tokens
    assert facts["chats"] == 6


def test_permission_for_one_kind_is_none_for_another(run: Run) -> None:
    runtime = FakeRuntime(ids={GERMAN: [7, 8]})
    failure = _failure(run, runtime=runtime, allow_mismatch=("script:hebrew", "normalization"))
    assert failure.error.kind == "verify-tokenizer"


@pytest.mark.parametrize(
    ("nats", "cost", "outcome"), [(-1.0, 0.1, "warn"), (-4.0, None, "refuse"), (-99.0, None, "warn")]
)
def test_what_a_script_costs_decides_unless_the_model_only_guesses(
    run: Run, monkeypatch: pytest.MonkeyPatch, nats: float, cost: float | None, outcome: str
) -> None:
    hebrew = next(passage["text"] for passage in running_text() if passage["name"] == "hebrew-pointed")
    runtime = FakeRuntime(ids={hebrew: [ord(letter) for letter in hebrew[: len(hebrew) // 2]]})
    further = {"warn": 0.1, "refuse": 2.0}[outcome] * len(hebrew)
    monkeypatch.setattr(
        runtime, "text_logprob", lambda ids: nats * len(hebrew) - (further if len(ids) < len(hebrew) else 0)
    )
    if outcome == "refuse":
        assert "ALLOW_MISMATCH=script:hebrew" in _failure(run, runtime=runtime).error.hint
        return
    [finding] = VerifyFacts.read(run(runtime=runtime).facts).findings
    assert (finding.kind, finding.outcome, finding.nats_per_token) == ("script:hebrew", outcome, cost)


def test_a_conversation_that_llama_cpp_refuses_fails_the_template(run: Run) -> None:
    failure = _failure(run, runtime=FakeRuntime(chat="unknown filter"))
    assert (failure.exit_code, failure.error.kind) == (ExitCode.UNSUPPORTED_MODEL, "verify-chat-template")
    assert "'user'" in failure.error.message
    assert "unknown filter" in failure.error.message


def test_a_gguf_without_the_template_fails(run: Run) -> None:
    metadata = {key: item for key, item in SMALL_METADATA.items() if key != "tokenizer.chat_template"}
    assert _failure(run, metadata=metadata).error.kind == "verify-chat-template"


def test_logits_that_are_not_finite_fail_and_name_the_prompt(run: Run) -> None:
    failure = _failure(run, runtime=FakeRuntime(finite=False))
    assert failure.error.kind == "verify-logits"
    assert "Hello, world!" in failure.error.message


_BAD_BLOCK = TensorSpec("blk.0.ffn_up.weight", (256, 2), "Q4_K", b"\x00\x7e" + bytes(286))
_BAD_SOURCE = TensorSpec("blk.0.ffn_up.weight", (256, 2), "BF16", b"\xc0\x7f" + bytes(1022))


def test_nan_that_quantizing_made_is_our_bug(run: Run) -> None:
    failure = _failure(run, model=(_BAD_BLOCK, QUANTIZED[1]))
    assert (failure.exit_code, failure.error.kind) == (ExitCode.BUG, "verify-tensors")
    assert "blk.0.ffn_up.weight (1)" in failure.error.message


def test_nan_that_the_source_had_is_the_models_own(run: Run) -> None:
    failure = _failure(run, source=(_BAD_SOURCE, SOURCE[1]), model=(_BAD_BLOCK, QUANTIZED[1]))
    assert failure.exit_code == ExitCode.UNSUPPORTED_MODEL


def test_a_lost_tensor_is_our_bug(run: Run) -> None:
    failure = _failure(run, model=QUANTIZED[:1])
    assert (failure.exit_code, failure.error.kind) == (ExitCode.BUG, "verify-tensors")
    assert "output_norm.weight" in failure.error.message


def test_a_file_that_is_no_gguf_fails_at_its_header(run: Run, tmp_path: Path) -> None:
    run()
    (tmp_path / "in/model/model.gguf").write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 1 << 60, 0))
    stage = Stage("verify", tmp_path / "in", tmp_path / "out", {})
    with pytest.raises(StageFailure, match="claims 1152921504606846976 tensors") as caught:
        verify(stage, VerifyRequest(quant="Q4_K_M"))
    assert caught.value.error.kind == "verify-header"


def test_without_a_reference_the_source_gguf_is_the_witness_and_the_facts_say_so(run: Run) -> None:
    facts = run(has_reference=False).facts
    assert "source GGUF" in str(facts["reference"])
    assert facts["tokenizer_keys"] == 3
    assert "probes" not in facts


def test_without_a_reference_a_changed_vocabulary_is_our_bug(run: Run) -> None:
    metadata = {**SMALL_METADATA, "tokenizer.ggml.tokens": ["a", "bc", "", "DEF"]}
    failure = _failure(run, metadata=metadata, has_reference=False)
    assert (failure.exit_code, failure.error.kind) == (ExitCode.BUG, "verify-tokenizer")
    assert "tokenizer.ggml.tokens" in failure.error.message


def _header(folder: Path, metadata: Mapping[str, Value]) -> GgufHeader:
    path = folder / "header.gguf"
    path.write_bytes(gguf(metadata, []))
    return read_gguf_header(path)


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ({"general.architecture": "llama"}, None),
        ({"general.architecture": "bert", "bert.attention.causal": False}, "not causal"),
        ({"general.architecture": "qwen3", "qwen3.pooling_type": 3}, "pooled"),
        ({"general.architecture": "qwen3", "qwen3.pooling_type": 0}, None),
        ({"general.architecture": "t5encoder"}, "not a decoder"),
        ({"general.architecture": "clip", "general.type": "mmproj"}, "mmproj"),
    ],
)
def test_models_that_do_not_generate_are_recognised(
    tmp_path: Path, metadata: Mapping[str, Value], reason: str | None
) -> None:
    found = why_gguf_cannot_generate(_header(tmp_path, metadata))
    assert (reason is None) == (found is None)
    assert reason is None or reason in str(found)


def test_an_embedding_model_is_recorded_as_not_checked(run: Run) -> None:
    facts = run(metadata={**SMALL_METADATA, "llama.attention.causal": False}, runtime=FakeRuntime(finite=False)).facts
    assert str(facts["logits"]).startswith("not checked: ")


@pytest.mark.parametrize(
    ("expected", "got", "has_date", "is_same"),
    [
        ("<s>hi", "<s>hi", False, True), ("<s>hi", "hi", False, True), ("hi", "<s>hi", False, True),
        ("<s><s>hi", "hi", False, False), ("hi", "hi ", False, False),
        ("Today: 21 Nov 2026\nhi", "Today: 22 Nov 2026\nhi", False, False),
        ("Today: 30 Nov 2026\nhi", "Today: 1 December 2026\nhi", True, True),
        ("Today: 30 Nov 2026\nhi", "Today: 30 Nov 2026\nho", True, False),
    ],
)  # fmt: skip
def test_chats_are_the_same_but_for_one_bos_and_the_date(
    *, expected: str, got: str, has_date: bool, is_same: bool
) -> None:
    assert is_same_chat(expected, got, "<s>", has_date=has_date) is is_same


def test_a_missing_bos_token_is_no_problem() -> None:
    assert is_same_chat("hi", "hi", None, has_date=False)


def test_the_first_difference_is_where_texts_part() -> None:
    assert first_text_difference("abcd", "abXd").startswith("from character 2 on, 'cd' is expected and 'Xd' found")
    assert "'' is expected and 'c' found" in first_text_difference("ab", "abc")


def test_tokenizers_are_compared_by_content_not_by_place(tmp_path: Path) -> None:
    source = _header(tmp_path, SMALL_METADATA)
    moved = _header(tmp_path, {"a.long.key.before": "x" * 100, **SMALL_METADATA})
    assert tokenizer_differences(source, moved) == []
    assert tokenizer_differences(source, _header(tmp_path, {})) == sorted(
        key for key in SMALL_METADATA if key.startswith("tokenizer.")
    )


def test_a_reference_is_what_the_contract_expects_and_keeps_what_the_template_refuses() -> None:
    made = Reference.model_validate(make_reference(FakeTokenizer()))
    assert made.tokenizer_class == "FakeTokenizer"
    assert made.probe_ids["<s>"] == [60, 115, 62]
    assert made.probe_ids_with_special["a"] == [1, 97]
    assert made.refused_chats["system-user"] == "ValueError: no system role"
    assert len(made.chats) == 10 - len(made.refused_chats)


def test_the_pre_tokenizer_a_gguf_names_is_put_back(tmp_path: Path) -> None:
    guess = {"pre_tokenizer": None, "added_tokens": [{"id": 2, "content": "<end>"}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(guess | {"model": {"vocab": {"é": 0}, "byte_fallback": True}}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<wrong>", "eos_token_id": 1}))
    metadata: dict[str, Value] = {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": "smollm"}
    metadata["tokenizer.ggml.eos_token_id"] = 2
    assert restore_dequantized_tokenizer(tmp_path, _header(tmp_path, metadata))
    tokenizer = json.loads((tmp_path / "tokenizer.json").read_text())
    assert tokenizer["pre_tokenizer"] == PRE_TOKENIZERS["smollm"]
    assert tokenizer["model"] == {"vocab": {"é": 0}, "byte_fallback": False, "fuse_unk": False, "unk_token": None}
    assert json.loads((tmp_path / "tokenizer_config.json").read_text()) == {"eos_token": "<end>"}


@pytest.mark.parametrize("pre", ["unheard-of", "default"])
def test_an_unknown_pre_tokenizer_is_left_alone(tmp_path: Path, pre: str) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_text("{}")
    header = _header(tmp_path, {"tokenizer.ggml.model": "gpt2", "tokenizer.ggml.pre": pre})
    assert not restore_dequantized_tokenizer(tmp_path, header)
    assert path.read_text() == "{}"
