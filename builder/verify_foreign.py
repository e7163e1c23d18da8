"""The stage `verify_foreign`: is this GGUF, which somebody else made, one of our model?

It is held against our conversion: tensors, their values within the rounding of their types, vocabulary, settings; and
against what the model's own files say: tokens and rendered conversations. It is loaded and run. What makes a comparison
meaningless (other weights, another vocabulary) fails the stage; everything else is a finding with a grade, and the file
is measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Final, NoReturn

from pydantic import JsonValue, ValidationError

from builder.checks.foreign_metadata import foreign_metadata_findings
from builder.checks.foreign_values import (
    TensorError,
    foreign_tensor_errors,
    foreign_tensor_findings,
    other_weights_finding,
    unreadable_type_finding,
)
from builder.checks.tensors import count_nonfinite_blocks, count_tensor_types
from builder.checks.text_parity import check_chat_template, compare_chats
from builder.checks.text_report import token_findings
from builder.llama.ggml_rows import open_ggml
from builder.llama.open import open_llama_runtime
from builder.llama.runtime import LlamaRuntime
from builder.verify import PROMPTS, verify_threads
from quantyard.formats.gguf import GgufError, GgufHeader, read_gguf_model, why_gguf_cannot_generate
from quantyard.protocol.base import ExitCode
from quantyard.protocol.builder import VerifyForeignRequest
from quantyard.protocol.foreign_findings import ForeignFinding, foreign_finding
from quantyard.protocol.reference import Reference
from quantyard.protocol.runner import Stage, StageFailure, StageOutcome, run_stage

_HINT: Final = "It is not measured. Compare files of the same model and revision as MODEL."


def verify_foreign(stage: Stage, request: VerifyForeignRequest) -> StageOutcome:
    """Check `/in/model` against `/in/source` and `/in/reference/reference.json`.

    Raises:
        StageFailure: `foreign-header` if the file cannot be read, `foreign-…` for a finding that is a refusal, and the
            kinds of `verify` where llama.cpp cannot load or run it.
    """
    model = _read_foreign_gguf(stage.in_dir / "model" / request.model_file)
    source = _read_foreign_gguf(stage.in_dir / "source" / request.source_file)
    findings = [*foreign_metadata_findings(source, model, request.named_type), *foreign_tensor_findings(source, model)]
    _refuse_foreign(findings)
    errors = _foreign_errors(stage, request, source, model)
    of_weights = (_damaged_weights_finding(stage, model), other_weights_finding(errors))
    _refuse_foreign([found for found in of_weights if found])
    with open_llama_runtime(stage, model, verify_threads(request, model)) as runtime:
        stage.begin("tokenizer and chat template")
        reference = _foreign_reference(stage) if request.has_reference else None
        findings += _foreign_text_findings(runtime, reference, source, model)
        stage.begin("first decode")
        if why_gguf_cannot_generate(model) is None:
            runtime.finite_logits(PROMPTS)
        facts = _foreign_facts(model, findings, errors)
        return StageOutcome(facts=facts, tools={"llama.cpp": runtime.version()}, argv=(runtime.argv,))


def _read_foreign_gguf(path: Path) -> GgufHeader:
    try:
        return read_gguf_model(path)
    except (GgufError, FileNotFoundError) as error:
        hint = "The file is damaged, or its upload is not complete. Download it again."
        raise StageFailure(ExitCode.BAD_REQUEST, "foreign-header", f"{error}.", hint) from error


def _refuse_foreign(findings: Sequence[ForeignFinding]) -> None:
    refused = [found for found in findings if found.grade == "refused"]
    if refused:
        detail = "\n".join(f"{found.kind}: {found.text}" for found in findings)
        raise StageFailure(ExitCode.BAD_REQUEST, f"foreign-{refused[0].kind}", refused[0].text, _HINT, detail)


def _foreign_errors(
    stage: Stage, request: VerifyForeignRequest, source: GgufHeader, model: GgufHeader
) -> list[TensorError]:
    stage.begin("values of the tensors")
    ggml, n_tensors = open_ggml(stage), len(model.tensors)
    if unreadable := unreadable_type_finding(ggml, model):
        _refuse_foreign([unreadable])
    report = lambda done, name: stage.progress(done, n_tensors, "tensors", name)  # noqa: E731
    return list(foreign_tensor_errors(ggml, source, model, request.weights, report))


def _damaged_weights_finding(stage: Stage, model: GgufHeader) -> ForeignFinding | None:
    """No block of any tensor may be NaN or infinite; reads the whole file."""
    done, bad = 0, dict[str, int]()
    for tensor in sorted(model.tensors, key=lambda tensor: (tensor.path, tensor.offset)):
        if n_blocks := count_nonfinite_blocks(tensor.path, tensor):
            bad[tensor.name] = n_blocks
        done += tensor.size_bytes
        stage.progress(done, model.tensor_bytes, "bytes", tensor.name)
    if not bad:
        return None
    name, count = next(iter(bad.items()))
    what = f"{len(bad)} tensors have blocks that are NaN or infinite, first {name} ({count})."
    return foreign_finding("damaged-weights", what)


def _foreign_reference(stage: Stage) -> Reference:
    path = stage.in_dir / "reference" / "reference.json"
    try:
        return Reference.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        message = f"The Hugging Face reference cannot be read: {error}"
        raise StageFailure(ExitCode.BAD_REQUEST, "verify-reference", message, "Convert the model again.") from error


def _foreign_text_findings(
    runtime: LlamaRuntime, reference: Reference | None, source: GgufHeader, model: GgufHeader
) -> Iterator[ForeignFinding]:
    if reference is not None:
        yield from _foreign_tokenization_findings(runtime, reference, model)
    if model.chat_template is None and source.chat_template is not None:
        yield foreign_finding("no-template", "Our conversion has a chat template, and this file has none.")
    elif model.chat_template is not None:
        yield from _foreign_template_findings(runtime, reference, source, model)


def _foreign_tokenization_findings(
    runtime: LlamaRuntime, reference: Reference, model: GgufHeader
) -> Iterator[ForeignFinding]:
    """What `verify` would refuse or warn of."""
    try:
        found = token_findings(runtime, reference, frozenset(), can_score=why_gguf_cannot_generate(model) is None)
    except StageFailure as failure:
        if failure.error.kind != "verify-tokenizer":
            raise
        yield foreign_finding("other-tokenization", failure.error.message)
        return
    for one in found:
        if one.outcome == "warn":
            yield foreign_finding("other-tokenization", f"{one.sentence}.")


def _foreign_template_findings(
    runtime: LlamaRuntime, reference: Reference | None, source: GgufHeader, model: GgufHeader
) -> Iterator[ForeignFinding]:
    is_same = model.chat_template == source.chat_template
    try:
        check_chat_template(runtime)
        if reference is not None and not is_same:
            compare_chats(runtime, reference, model)
    except StageFailure as failure:
        if failure.error.kind not in ("chat-template", "verify-chat-template"):
            raise
        kind = "template-refused" if failure.error.kind == "chat-template" else "other-template"
        yield foreign_finding(kind, failure.error.message)
        return
    if not is_same and reference is not None and reference.chat_template:
        what = f"All {len(reference.chats)} conversations are rendered as by the model's own template."
        yield foreign_finding("template-rewritten", f"The chat template has another text. {what}")
    elif not is_same:
        yield foreign_finding("other-template", "The chat template has another text than that of our conversion.")


def _foreign_facts(
    model: GgufHeader, findings: Sequence[ForeignFinding], errors: Sequence[TensorError]
) -> dict[str, JsonValue]:
    worst = max(errors, key=lambda error: error.ratio, default=None)
    types: dict[str, JsonValue] = {**count_tensor_types(model.tensors)}
    bits_per_weight = 8 * model.tensor_bytes / model.n_params if model.n_params else 0.0
    return {
        "architecture": model.architecture, "n_params": model.n_params, "types": types,
        "bits_per_weight": round(bits_per_weight, 4), "tensors_compared": len(errors),
        "findings": [found.model_dump(mode="json") for found in findings],
        "worst_error_ratio": round(worst.ratio, 4) if worst else None, "worst_tensor": worst.name if worst else "",
    }  # fmt: skip


def main() -> NoReturn:
    """Run the stage as this process."""
    run_stage(VerifyForeignRequest, verify_foreign)


if __name__ == "__main__":
    main()
