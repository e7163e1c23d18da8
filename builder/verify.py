"""The stage `verify`: is this GGUF the model it claims to be?

It is held against two things: the GGUF it was quantized from (names, shapes and types of the tensors), and what
the Hugging Face tokenizer and chat template said when the model was converted. And it is run: it must load, and
its logits must be finite. A stage that passes writes no file; what it counted is in its facts.

Exit code 3 means that this model cannot be represented faithfully by this llama.cpp (or was broken before we
had it), 70 that we broke it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Final, NoReturn

from pydantic import JsonValue, ValidationError

from builder.checks.embedding_parity import compare_embeddings
from builder.checks.grades import COMMON_OF_EMBEDDERS, COMMON_SCRIPTS
from builder.checks.tensors import (
    check_recipe_types,
    compare_tensors,
    count_nonfinite_blocks,
    count_tensor_types,
    exceeds_f16,
)
from builder.checks.text_parity import check_chat_template, compare_chats, tokenizer_differences
from builder.checks.text_report import token_findings
from builder.llama.open import open_llama_runtime
from builder.llama.runtime import LlamaRuntime
from quantyard.formats.gguf import GgufError, GgufHeader, read_gguf_model, why_gguf_cannot_generate
from quantyard.formats.purpose import gguf_purpose
from quantyard.formats.tensor_patterns import PatternProblem, resolve_tensor_patterns
from quantyard.protocol.base import ExitCode
from quantyard.protocol.builder import VerifyForeignRequest, VerifyRequest
from quantyard.protocol.embeddings import EMBEDDINGS_FILE, EmbeddingReference
from quantyard.protocol.reference import Reference
from quantyard.protocol.runner import Stage, StageFailure, StageOutcome, run_stage
from quantyard.protocol.text_findings import PLAIN_TEXT, TextFinding

PROMPTS: Final = ("Hello, world!", "def add(a, b):\n    return", "Однажды 千里の道も 3 + 4 =")
_ONE_THREAD_BELOW_BYTES: Final = 1 << 30
_MAX_NAMED: Final = 5
_REPORT: Final = "Report it, with the log: this should never happen."


def verify(stage: Stage, request: VerifyRequest) -> StageOutcome:
    """Check `/in/model` against `/in/source` and `/in/reference/reference.json`.

    Raises:
        StageFailure: kinds `verify-header`, `verify-tensors`, `verify-load`, `chat-template`, `verify-tokenizer`,
            `verify-chat-template` and `verify-logits`, in the order of the checks.
    """
    model = _read_gguf_to_verify(stage.in_dir / "model" / request.model_file)
    source = _read_gguf_to_verify(stage.in_dir / "source" / request.source_file)
    reference = _reference_to_verify(stage) if request.has_reference else None
    _verify_structure(source, model, request)
    with open_llama_runtime(stage, model, verify_threads(request, model)) as runtime:
        _verify_blocks(stage, model, source)
        stage.begin("tokenizer and chat template")
        check_chat_template(runtime)
        facts = {**_verified_model_facts(model), **_verify_texts(runtime, reference, model, source, request)}
        stage.begin("first decode")
        facts["logits"] = _verify_logits(runtime, model)
        facts |= compare_embeddings(runtime, model, _embeddings_to_verify(stage))
        return StageOutcome(facts=facts, tools={"llama.cpp": runtime.version()}, argv=(runtime.argv,))


def _read_gguf_to_verify(path: Path) -> GgufHeader:
    try:
        return read_gguf_model(path)
    except GgufError as error:
        hint = "Build the model again."
        raise StageFailure(ExitCode.UNSUPPORTED_MODEL, "verify-header", f"{error}.", hint) from error
    except FileNotFoundError as error:
        raise StageFailure(ExitCode.BAD_REQUEST, "verify-header", f"{path} does not exist.") from error


def _reference_to_verify(stage: Stage) -> Reference:
    path = stage.in_dir / "reference" / "reference.json"
    try:
        return Reference.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        message = f"The Hugging Face reference cannot be read: {error}"
        raise StageFailure(ExitCode.BAD_REQUEST, "verify-reference", message, "Convert the model again.") from error


def _embeddings_to_verify(stage: Stage) -> EmbeddingReference | None:
    path = stage.in_dir / "reference" / EMBEDDINGS_FILE
    try:
        return EmbeddingReference.model_validate_json(path.read_bytes()) if path.is_file() else None
    except ValidationError as error:
        message = f"The original's embeddings cannot be read: {error}"
        raise StageFailure(ExitCode.BAD_REQUEST, "verify-reference", message, "Convert the model again.") from error


def verify_threads(request: VerifyRequest | VerifyForeignRequest, model: GgufHeader) -> int:
    """One for a small model: it gains nothing from more, and threads that wait for each other on busy cores
    were seen to turn 0.3 s into 25 s.
    """
    return request.threads or (1 if model.tensor_bytes < _ONE_THREAD_BELOW_BYTES else 0)


def _verify_structure(source: GgufHeader, model: GgufHeader, request: VerifyRequest) -> None:
    """Same architecture, same tensors, types as the recipe says, or else as the quant's name promises."""
    types = _recipe_types_to_verify(source, request)
    wrong = compare_tensors(source, model, None if types else request.quant) + check_recipe_types(types, model)
    if model.architecture != source.architecture:
        wrong.insert(0, f"The architecture is {model.architecture!r}, in the source {source.architecture!r}.")
    if wrong:
        message = f"{wrong[0]} ({len(wrong)} differences from the source in all.)"
        detail = "\n".join(wrong[:20])
        raise StageFailure(ExitCode.BUG, "verify-tensors", message, _REPORT, detail)


def _recipe_types_to_verify(source: GgufHeader, request: VerifyRequest) -> dict[str, str]:
    """What the recipe makes of each tensor it names; nothing without one."""
    try:
        return resolve_tensor_patterns(
            source.tensors, request.tensor_types, request.output_type, request.token_embedding_type
        )
    except PatternProblem as problem:
        raise StageFailure(ExitCode.BAD_REQUEST, "recipe", problem.message, problem.hint) from problem


def _verify_blocks(stage: Stage, model: GgufHeader, source: GgufHeader) -> None:
    """No NaN or infinity in any block of any tensor; reads the whole file."""
    bad: dict[str, int] = {}
    done = 0
    for tensor in sorted(model.tensors, key=lambda tensor: (tensor.path, tensor.offset)):
        if n_blocks := count_nonfinite_blocks(tensor.path, tensor):
            bad[tensor.name] = n_blocks
        done += tensor.size_bytes
        stage.progress(done, model.tensor_bytes, "bytes", tensor.name)
    if bad:
        raise _nonfinite_tensors_failure(bad, source)


def _nonfinite_tensors_failure(bad: Mapping[str, int], source: GgufHeader) -> StageFailure:
    """Ours if the source's same tensors are clean, the model's own otherwise."""
    were_bad = [t.name for t in source.tensors if t.name in bad and count_nonfinite_blocks(t.path, t)]
    names = ", ".join(f"{name} ({count})" for name, count in list(bad.items())[:_MAX_NAMED])
    message = f"{len(bad)} tensors have blocks that are NaN or infinite: {names}."
    if were_bad:
        hint = "The source has them too: try OUTTYPE=bf16 or f32, or another checkpoint."
        return StageFailure(ExitCode.UNSUPPORTED_MODEL, "verify-tensors", message, hint)
    if large := [tensor.name for tensor in source.tensors if tensor.name in bad and exceeds_f16(tensor)]:
        message += f" The source has values beyond 65,504 in {large[0]}, which the scales of this quant cannot hold."
        hint = "Build a type with a wider range: QUANT=BF16, or leave such tensors unquantized with a recipe."
        return StageFailure(ExitCode.BAD_REQUEST, "outtype-overflow", message, hint)
    hint = "Quantizing made them: try another quant, and report it."
    return StageFailure(ExitCode.BUG, "verify-tensors", message, hint)


def _verify_texts(
    runtime: LlamaRuntime, reference: Reference | None, model: GgufHeader, source: GgufHeader, request: VerifyRequest
) -> dict[str, JsonValue]:
    if reference is None:
        return _verify_against_source(model, source)
    permitted = frozenset(request.allow_mismatch)
    can_score = why_gguf_cannot_generate(model) is None
    common = COMMON_SCRIPTS if gguf_purpose(model) == "generate" else COMMON_OF_EMBEDDERS
    findings = token_findings(runtime, reference, permitted, can_score=can_score, common=common)
    n_chats, wrong_chat = _verify_chats(runtime, reference, model, permitted)
    return {
        "reference": reference.witness, "witnesses_that_differ": [*reference.disagreements],
        "probes": len(reference.probe_ids), "added_tokens": len(reference.added_tokens),
        "running_text_tokens": sum(len(passage.ids) for passage in reference.passages), "chats": n_chats,
        "chats_refused_by_template": [*sorted(reference.refused_chats)],
        "findings": [finding.model_dump(mode="json") for finding in [*findings, *wrong_chat]],
    }  # fmt: skip


def _verify_chats(
    runtime: LlamaRuntime, reference: Reference, model: GgufHeader, permitted: frozenset[str]
) -> tuple[int | None, list[TextFinding]]:
    """How many conversations are the same, and the finding of one that differs and may."""
    try:
        return compare_chats(runtime, reference, model), []
    except StageFailure as failure:
        if failure.error.kind == "chat-template" or PLAIN_TEXT not in permitted:
            raise
        return None, [TextFinding(kind=PLAIN_TEXT, outcome="allowed", example=failure.error.message[:800])]


def _verify_against_source(model: GgufHeader, source: GgufHeader) -> dict[str, JsonValue]:
    """Without a Hugging Face side the best witness is the GGUF we started from: its tokenizer must be kept."""
    wrong = tokenizer_differences(source, model)
    if wrong:
        message = f"The tokenizer is not the source's: {', '.join(wrong[:_MAX_NAMED])} differ."
        raise StageFailure(ExitCode.BUG, "verify-tokenizer", message, _REPORT)
    kept = sum(key.startswith("tokenizer.") for key in model.metadata)
    return {"reference": "the source GGUF (no Hugging Face tokenizer to compare with)", "tokenizer_keys": kept}


def _verify_logits(runtime: LlamaRuntime, model: GgufHeader) -> JsonValue:
    """Rows of logits that were finite, or why there are none to check."""
    if reason := why_gguf_cannot_generate(model):
        return f"not checked: {reason}"
    return runtime.finite_logits(PROMPTS)


def _verified_model_facts(model: GgufHeader) -> dict[str, JsonValue]:
    types: dict[str, JsonValue] = {**count_tensor_types(model.tensors)}
    bits_per_weight = 8 * model.tensor_bytes / model.n_params if model.n_params else 0.0
    return {
        "architecture": model.architecture, "context_length": model.context_length, "tensors": len(model.tensors),
        "types": types, "n_params": model.n_params, "bits_per_weight": round(bits_per_weight, 4),
        "file_size_bytes": model.file_size, "chat_template": model.chat_template is not None, "nonfinite_blocks": 0,
    }  # fmt: skip


def main() -> NoReturn:
    """Run the stage as this process."""
    run_stage(VerifyRequest, verify)


if __name__ == "__main__":
    main()
