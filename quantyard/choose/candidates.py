"""The files that can be chosen: built, present, and measured with their current bytes. Each other file has a reason.

    memory = measured peak + what the context needs when served - what the context took when measured

The first term is measured, the others are exact. Files are compared within one evaluation: the same text, the same
machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quantyard.errors import BadRequest
from quantyard.formats.gguf import GgufError, GgufHeader, read_gguf_model
from quantyard.memory.kv_cache import ContextUse, context_bytes, context_cache_bytes
from quantyard.memory.layers import ModelLayers, read_cache_layers
from quantyard.metrics.pareto import Metric, ParetoEntry, pareto_metric, pareto_quality
from quantyard.plan.suites import BUILTIN
from quantyard.protocol.measurements import Estimate, EvalReport, Measurement, Speed
from quantyard.store.manifest import Manifest, QuantRecord

DEFAULT_CONTEXT: Final = 8192


@dataclass(frozen=True)
class ChoiceCandidate:
    """One file with its measurements.

    Attributes:
        memory_bytes: at the wanted context; None if the context's share is not known exactly.
        context_bytes: KV cache and recurrent states; None if they are not known exactly.
        quality: mean KL divergence in nats, or ln(PPL / baseline PPL); the lower the better.
        tokens_per_s: generated.
    """

    quant: str
    path: Path
    size_bytes: int
    bits_per_weight: float
    memory_bytes: int | None
    context_bytes: int | None
    quality: Estimate
    tokens_per_s: float
    speed: Speed
    layers: ModelLayers | None

    @property
    def entry(self) -> ParetoEntry:
        """Size, quality and speed, as the Pareto front compares them."""
        return ParetoEntry(self.quant, self.size_bytes, self.quality.value, self.tokens_per_s)


@dataclass(frozen=True)
class ChoiceSet:
    """The files to choose from; `others` maps each other quant to the reason why it cannot be chosen."""

    name: str
    report: EvalReport
    metric: Metric
    architecture: str
    trained_context: int | None
    use: ContextUse
    candidates: tuple[ChoiceCandidate, ...]
    others: Mapping[str, str]


def find_choice_set(
    manifest: Manifest, name: str, paths: Mapping[str, Path], suite: str, context_tokens: int, parallel: int
) -> ChoiceSet:
    """The files of a manifest that can be chosen.

    Args:
        paths: quant → path of each file in question.
        suite: the evaluation to use; "": the one that measured most of the files.
        context_tokens: the context to serve with; 0: the trained context, at most `DEFAULT_CONTEXT`.

    Raises:
        BadRequest: none of them was measured.
    """
    report = _report_to_choose_from(manifest, paths, suite)
    metric = pareto_metric(report)
    reasons = {quant: _why_not_candidate(manifest, report, metric, quant, path) for quant, path in paths.items()}
    headers = {quant: _candidate_header(paths[quant]) for quant, reason in reasons.items() if not reason}
    if not headers:
        raise no_candidates_error("; ".join(f"{quant} {reason}" for quant, reason in reasons.items()), list(paths))
    first = next(iter(headers.values()))
    use = ContextUse(_candidate_context(first, context_tokens), parallel, unified=False)  # as our server runs
    found = tuple(_choice_candidate(manifest, report, metric, quant, headers[quant], use) for quant in headers)
    others = {quant: reason for quant, reason in reasons.items() if reason}
    return ChoiceSet(name, report, metric, first.architecture, first.context_length, use, found, others)


def no_candidates_error(why: str, quants: Sequence[str]) -> BadRequest:
    """The error if no file can be chosen."""
    hint = f"Measure them in one run: make eval MODEL=… QUANT={','.join(quants)}"
    return BadRequest(f"Nothing to choose from: {why}.", hint)


def choice_eval_command(choices: ChoiceSet, model: str, *more: str) -> str:
    """The command that measures all files in one run, and the quants in `more`."""
    suite = choices.report.suite.name
    quants = ",".join([*(c.quant for c in choices.candidates), *choices.others, *more])
    return f"make eval MODEL={model} QUANT={quants} SUITE={suite if suite in BUILTIN else '…'}"


def candidate_memory_bytes(found: ChoiceCandidate, use: ContextUse) -> int | None:
    """Bytes this file would take at another context."""
    return None if found.layers is None else _candidate_memory(found.speed, found.layers, use)


def _candidate_context(header: GgufHeader, asked: int) -> int:
    return asked or min(header.context_length or DEFAULT_CONTEXT, DEFAULT_CONTEXT)


def _report_to_choose_from(manifest: Manifest, paths: Mapping[str, Path], suite: str) -> EvalReport:
    """The evaluation that measured most of these files; with a tie, the one with most questions."""
    reports = {name: r for name, r in manifest.evaluations.items() if suite in ("", name)}
    if not reports:
        what = f"the suite {suite} was not run" if suite and manifest.evaluations else "nothing was measured"
        what = f"{what} for the model's commit {manifest.source.commit[:12]}"
        raise no_candidates_error(what, list(paths))

    def rank(report: EvalReport) -> tuple[int, int]:
        fit = sum(
            not _why_not_candidate(manifest, report, pareto_metric(report), quant, path)
            for quant, path in paths.items()
        )
        return fit, report.n_questions

    return max(reports.values(), key=rank)


def _why_not_candidate(manifest: Manifest, report: EvalReport, metric: Metric, quant: str, path: Path) -> str:
    """Why this file cannot be chosen; empty if it can."""
    record, found = manifest.quants[quant], _candidate_measurement(report, quant)
    if not path.is_file():
        return f"is missing: {path}"
    if not record.parts and path.stat().st_size != record.size_bytes:
        return f"was changed after it was verified: {path}"
    if found is None:
        return f"was not measured with the suite {report.suite.name}"
    if found.file.sha256 != record.sha256:
        return f"was built again since it was measured with the suite {report.suite.name}"
    if found.speed is None or pareto_quality(report, found, metric) is None:
        return f"has no {'speed' if found.speed is None else metric} in the suite {report.suite.name}"
    return ""


def _candidate_measurement(report: EvalReport, quant: str) -> Measurement | None:
    return next((m for m in report.measurements if m.file.label == quant), None)


def _candidate_header(path: Path) -> GgufHeader:
    try:
        return read_gguf_model(path)
    except GgufError as error:
        raise BadRequest(f"{path} cannot be read: {error}.", "Remove it and make it again: make build") from error


def _choice_candidate(
    manifest: Manifest, report: EvalReport, metric: Metric, quant: str, header: GgufHeader, use: ContextUse
) -> ChoiceCandidate:
    found, record = _candidate_measurement(report, quant), manifest.quants[quant]
    assert found is not None, "files without a measurement were left out before"
    quality, layers = pareto_quality(report, found, metric), read_cache_layers(header)
    assert found.speed is not None, "files without this value were left out before"
    assert quality is not None, "files without this value were left out before"
    return ChoiceCandidate(
        quant=quant,
        path=header.paths[0],
        size_bytes=record.size_bytes,
        bits_per_weight=record.bits_per_weight,
        memory_bytes=_candidate_memory(found.speed, layers, use),
        context_bytes=context_cache_bytes(layers, use) if layers else None,
        quality=quality,
        tokens_per_s=found.speed.generated_tokens_per_s,
        speed=found.speed,
        layers=layers,
    )


def _candidate_memory(speed: Speed, layers: ModelLayers | None, use: ContextUse) -> int | None:
    """The measured peak, corrected to the wanted context. If the cache size is unknown, only the measured context has
    a value.
    """
    measured = ContextUse(speed.n_ctx, whole_windows=True)
    if layers is None:
        return speed.peak_memory_bytes if (use.cells, use.sequences) == (measured.cells, 1) else None
    return speed.peak_memory_bytes + context_bytes(layers, use) - context_bytes(layers, measured)


def candidate_paths(manifest: Manifest, folder: Path, source: Path | None, quants: Sequence[str]) -> dict[str, Path]:
    """Quant → path of each file; a GGUF that was only measured stays in its own folder.

    Raises:
        BadRequest: one of them is not built.
    """
    if missing := [quant for quant in quants if quant not in manifest.quants]:
        built = ", ".join(manifest.quants) or "nothing"
        hint = f"Build and measure: make eval MODEL=… QUANT={','.join([*manifest.quants, *missing])}"
        raise BadRequest(f"{', '.join(missing)} is not built; built: {built}.", hint)
    return {quant: _candidate_path(folder, source, manifest.quants[quant]) for quant in quants or manifest.quants}


def _candidate_path(folder: Path, source: Path | None, record: QuantRecord) -> Path:
    return (folder if record.made_by or source is None else source) / record.file
