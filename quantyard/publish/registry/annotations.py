"""The annotations of an artifact in a registry: its source, and what was measured. All values are strings: numbers are
plain decimals, intervals "value [low, high]" at 95 %, and shares and changes fractions (0.01: 1 %).
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import PurePosixPath

from quantyard.errors import BadRequest
from quantyard.formatting.numbers import format_for_machine
from quantyard.metrics.intervals import ppl_change_interval
from quantyard.protocol.divergence_results import Divergence
from quantyard.protocol.estimates import Estimate, Interval
from quantyard.protocol.gate import OUTCOMES
from quantyard.protocol.measurements import Comparison, Measurement
from quantyard.protocol.speed_results import Speed
from quantyard.publish.registry.errors import plain_registry_text
from quantyard.store.manifest import Manifest

Pairs = Iterator[tuple[str, str]]


def oci_evaluation_annotations(manifest: Manifest, quant: str, suite: str) -> dict[str, str]:
    """`org.opencontainers.image.*` and `quantyard.*` of one file; a value that was not measured gets no key.

    Raises:
        BadRequest: the manifest has no such file, or this suite has not measured it.
    """
    found = oci_measurement(manifest, quant, suite)
    pairs = dict(_annotated_origin(manifest, quant))
    pairs |= {"quantyard.suite": suite, "quantyard.baseline": manifest.evaluations[suite].baseline}
    pairs |= dict(_annotated_divergence(found.divergence)) | dict(_annotated_speed(found.speed))
    for comparison in found.comparisons:
        pairs |= dict(_annotated_task(comparison))
    pairs |= dict(_annotated_contract(manifest, quant)) | dict(_annotated_gate(manifest, quant, suite))
    return {key: plain_registry_text(value) for key, value in sorted(pairs.items()) if plain_registry_text(value)}


def oci_measurement(manifest: Manifest, quant: str, suite: str) -> Measurement:
    """What this suite measured on exactly this file.

    Raises:
        BadRequest: it measured nothing, or another file of that name.
    """
    remedy = f"Type: make eval MODEL=… QUANT={quant} SUITE={suite}"
    record, report = manifest.quants.get(quant), manifest.evaluations.get(suite)
    if record is None:
        there = ", ".join(manifest.quants) or "none"
        raise BadRequest(f"The manifest does not have {quant}: {there}.", f"Type: make build MODEL=… QUANT={quant}")
    found = next((m for m in report.measurements if m.file.label == quant), None) if report else None
    if found is None:
        raise BadRequest(f"{record.file} has not been measured by the suite {suite}.", remedy)
    if found.file.sha256 not in (None, record.sha256):
        raise BadRequest(f"The suite {suite} has measured another {record.file}, not this one.", remedy)
    return found


def oci_made_at(manifest: Manifest, quant: str) -> datetime:
    """When the file was made, so that publishing it again gives the same annotations."""
    record = manifest.quants[quant]
    return manifest.stages[record.made_by or record.verified_by].finished_at.astimezone(UTC)


def oci_time(when: datetime) -> str:
    """2026-11-20T12:00:00Z."""
    return when.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _annotated_origin(manifest: Manifest, quant: str) -> Pairs:
    source, record = manifest.source, manifest.quants[quant]
    yield "org.opencontainers.image.title", PurePosixPath(record.file).stem
    yield "org.opencontainers.image.created", oci_time(oci_made_at(manifest, quant))
    yield "org.opencontainers.image.revision", source.commit
    yield "org.opencontainers.image.licenses", manifest.stated_license or source.license or ""
    if source.repo_id and not source.card.private:  # a folder's path is private too
        yield "org.opencontainers.image.source", f"https://huggingface.co/{source.repo_id}"
    yield "quantyard.version", manifest.quantyard
    yield "quantyard.quant", quant
    yield "quantyard.sha256", record.sha256
    yield "quantyard.bits-per-weight", format_for_machine(record.bits_per_weight)


def _annotated_divergence(found: Divergence | None) -> Pairs:
    if found is None:
        return
    yield "quantyard.ppl", format_for_machine(found.perplexity.value)
    yield "quantyard.baseline-ppl", _annotated_estimate(found.baseline_perplexity)
    if (change := ppl_change_interval(found)) is not None:
        yield "quantyard.ppl-change", _annotated_interval(change)
    yield "quantyard.mean-kld", _annotated_estimate(found.mean_kld)
    yield "quantyard.p99-kld", format_for_machine(found.kld_percentiles["99"]) if "99" in found.kld_percentiles else ""
    yield "quantyard.top1-agreement", _annotated_estimate(found.top1_agreement)


def _annotated_speed(found: Speed | None) -> Pairs:
    if found is None:
        return
    yield "quantyard.prompt-tokens-per-s", format_for_machine(found.prompt_tokens_per_s)
    yield "quantyard.generated-tokens-per-s", format_for_machine(found.generated_tokens_per_s)
    yield "quantyard.peak-memory-bytes", str(found.peak_memory_bytes)


def _annotated_task(found: Comparison) -> Pairs:
    name = plain_registry_text(f"quantyard.task.{found.task}.{found.metric}")
    yield name, format_for_machine(found.value)
    yield f"{name}.delta", f"{_annotated_interval(found.delta)} {found.verdict}"


def _annotated_contract(manifest: Manifest, quant: str) -> Pairs:
    report = manifest.contracts.get(quant)
    if report is None:
        return
    failed = len(report.with_status("failed"))
    yield "quantyard.contract", "passed" if report.passed else f"{failed} of {len(report.checks)} checks failed"
    if report.schemas is not None:
        rate = Interval(value=report.schemas.rate, low=report.schemas.low, high=report.schemas.high)
        yield "quantyard.schema-rate", _annotated_interval(rate)


def _annotated_gate(manifest: Manifest, quant: str, suite: str) -> Pairs:
    """The worst outcome among this file's budgets; "" if the gate judged another evaluation."""
    gate = manifest.gate
    if gate is None or gate.suite != suite:
        return
    found = {result.outcome for result in gate.results if result.quant == quant}
    yield "quantyard.gate", next((outcome for outcome in OUTCOMES if outcome in found), "passed")


def _annotated_estimate(found: Estimate | None) -> str:
    return format_for_machine(found.value) if found else ""


def _annotated_interval(found: Interval) -> str:
    return f"{format_for_machine(found.value)} [{format_for_machine(found.low)}, {format_for_machine(found.high)}]"
