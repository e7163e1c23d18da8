"""A whole manifest, as `make release` leaves it: built, measured, tested; its numbers are simulated."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime

from pydantic import JsonValue

from quantyard.formats.names import safe_file_name
from quantyard.protocol.api_tests import CheckRecord, ContractReport, SchemaRate
from quantyard.protocol.base import FileEntry, files_digest
from quantyard.protocol.measurements import EvalReport
from quantyard.protocol.narrow_rows import NarrowRows
from quantyard.store.manifest import ImatrixRecord, Manifest, QuantRecord, SourceCard, SourceRecord, StageRecord
from tests.evaluations import SMALL, simulated

NAME = "Lagoon-1B-Instruct"
COMMIT = "7ae557604adf67be50417f59c2c2f167def9a775"
BASE_DIGEST = "sha256:" + "b7" * 32


def sha256_of(text: str) -> str:
    """The hash that a file of this name has here."""
    return hashlib.sha256(text.encode()).hexdigest()


def manifest_of(
    quants: Sequence[tuple[str, float, float]] = SMALL, *, n_params: float = 1.1e9, n_tasks: int = 6,
    suite: str = "standard", title: str = NAME, license: str | None = "apache-2.0", card: SourceCard | None = None,
) -> Manifest:
    """`quants` are (label, bits per weight, mean KLD), the baseline's first with 0; it is no file of the release."""
    report = simulated(quants, title=title, n_params=n_params, n_tasks=n_tasks)
    measured = tuple(
        m.model_copy(update={"file": m.file.model_copy(update={"sha256": sha256_of(m.file.label)})})
        for m in report.measurements
    )
    report = EvalReport.model_validate(
        report.model_dump() | {"measurements": measured, "suite": report.suite.model_copy(update={"name": suite})}
    )
    labels = [label for label, *_ in quants[1:]]
    files = [FileEntry(path=name, size_bytes=1000, sha256=sha256_of(name)) for name in ("config.json", "LICENSE")]
    source = SourceRecord(
        kind="huggingface", title=f"lagoon/{title} at {COMMIT[:12]}", repo_id=f"lagoon/{title}", revision="main",
        commit=COMMIT, license=license, files=files, dtypes={"BF16": int(n_params)},
        card=card or SourceCard(languages=["en"], pipeline_tag="text-generation"),
    )
    return Manifest(
        source=source, stages=_stages(labels, report),
        quants={m.file.label: _quant(title, m.file.label, m.file.size_bytes, m.file.bits_per_weight)
                for m in measured[1:]},
        evaluations={suite: report}, contracts={label: contract_report(label) for label in labels},
    )  # fmt: skip


def with_twin(manifest: Manifest, **facts: JsonValue) -> Manifest:
    """The manifest, the model having been compared with Transformers."""
    made = _stage("convert", {}, {})
    twin = made.model_copy(update={"request": {"stage": "twin"}, "facts": facts})
    return manifest.model_copy(update={"stages": {**manifest.stages, "twin": twin}})


def with_imatrix(manifest: Manifest, *quants: str, made: bool = True) -> Manifest:
    """The manifest, these files having been made with one importance matrix: of our text, or given (`made` False)."""
    entries = [FileEntry(path="imatrix.gguf", size_bytes=4_000_000, sha256=sha256_of("imatrix"))]
    entries += [FileEntry(path="calibration.txt", size_bytes=600_000, sha256=sha256_of("text"))] if made else []
    digest, stages, files = files_digest(tuple(entries)), dict(manifest.stages), dict(manifest.quants)
    if made:
        facts = {"text": "Quantyard's own", "text_sha256": sha256_of("text"), "chunks": 234, "chunk_tokens": 512}
        stages["calibrate"] = _stage("calibrate", {}, {"llama.cpp": "b7640"}).model_copy(
            update={"outputs": entries, "facts": facts})
    record = ImatrixRecord(file=f"{NAME}.imatrix.gguf", size_bytes=4_000_000,
                           sha256=sha256_of("imatrix"), given=entries)
    for quant in quants:
        stage = stages[f"quantize {quant}"]
        request = stage.request | {"imatrix_file": "imatrix.gguf"}
        stages[f"quantize {quant}"] = stage.model_copy(update={"inputs": {"imatrix": digest}, "request": request})
        files[quant] = files[quant].model_copy(update={"imatrix": record})
    return manifest.model_copy(update={"stages": stages, "quants": files})


def with_narrow_rows(manifest: Manifest) -> Manifest:
    """Rows of 576: Q4_K_M is not what its name says."""
    narrow = NarrowRows(
        quant="Q4_K_M", named="Q4_K", block=256, share=0.2, types=("Q5_0", "Q8_0", "Q4_K"), bits_per_weight=6.17,
        instead="IQ4_NL", instead_bits_per_weight=5.37,
    )
    quants = manifest.quants | {"Q4_K_M": manifest.quants["Q4_K_M"].model_copy(update={"narrow_rows": narrow})}
    return manifest.model_copy(update={"quants": quants})


def _quant(title: str, label: str, size_bytes: int, bits_per_weight: float) -> QuantRecord:
    return QuantRecord(
        file=f"{safe_file_name(title)}-{label}.gguf", size_bytes=size_bytes, sha256=sha256_of(label),
        bits_per_weight=bits_per_weight, made_by=f"quantize {label}", verified_by=f"verify {label}",
    )


def _stages(labels: Sequence[str], report: EvalReport) -> dict[str, StageRecord]:
    stages = {"convert": _stage("convert", {"outtype": "bf16"}, {"convert_hf_to_gguf.py": "b7640"})}
    for label in labels:
        tools = {"llama-quantize": "version: 7640 (1a2b3c4d)"}
        stages[f"quantize {label}"] = _stage("quantize", {"quant": label}, tools, output=sha256_of(label))
        stages[f"verify {label}"] = _stage("verify", {"quant": label}, {"llama-server": "7640"})
        stages[f"contract {label}"] = _stage("contract", {"label": label}, {"server": "llama-server b7640"})
    stages["report"] = _stage("report", {"title": report.title}, dict(report.versions))
    return stages


def _stage(name: str, request: dict[str, str], tools: dict[str, str], output: str = "") -> StageRecord:
    outputs = [FileEntry(path="model.gguf", size_bytes=1, sha256=output)] if output else []
    ran_by = {
        "engine": "docker", "docker": "28.5.1", "builder_image": "sha256:" + "5c" * 32,
        "base_image": "ghcr.io/ggml-org/llama.cpp:full", "base_digest": BASE_DIGEST,
    }
    return StageRecord(
        key=sha256_of(f"key of {name} {request}"), request={"stage": name, **request}, inputs={}, outputs=outputs,
        facts={"bits_per_weight": 4.9} if name == "verify" else {}, tools=tools,
        argv=[[f"/app/llama-{name}", "/in/source/model.gguf"]], duration_s=12.5, ran_by=ran_by,
        cpu="x86_64 AMD EPYC 9B14", finished_at=datetime(2026, 11, 20, 12, 0, tzinfo=UTC),
    )


def contract_report(label: str, *, n_valid: int = 60) -> ContractReport:
    """18 checks in the report's form are not needed here: three of each kind are."""
    checks = (
        CheckRecord(name="health", promise="GET /health answers once the model does", status="passed",
                    finding="200 in 3 ms", duration_s=0.1),
        CheckRecord(name="tools", promise="tool calls", status="not supported",
                    finding="the chat template has no tools", duration_s=0.1),
        CheckRecord(name="crowd", promise="32 clients at once are all answered", status="passed",
                    finding="32 of 32 in 9.1 s", duration_s=9.1),
    )  # fmt: skip
    share = n_valid / 60
    rate = SchemaRate(n=60, n_valid=n_valid, n_cut=0, rate=share, low=0.94 * share, high=min(1.0, share + 0.02),
                      gate=0.95, request_form="json_schema")  # fmt: skip
    return ContractReport(label=label, server="llama-server b7640", model=f"{NAME}-{label}", checks=checks,
                          schemas=rate, duration_s=31.0)
