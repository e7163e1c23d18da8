"""The files that can be chosen: built, present, and measured with their current bytes. Each other file has a reason.

    memory = measured peak + what the context needs when served - what the context took when measured

The first term is measured, the others are exact. Files are compared within one evaluation: the same text, the same
machine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from quantyard.choose.measured_candidate import (
    CACHE_NOT_MEASURED,
    cache_removal,
    candidate_measurement,
    measured_caches,
    measured_worse_behaviours,
    measured_worst_domain,
)
from quantyard.errors import BadRequest
from quantyard.formats.gguf import GgufError, GgufHeader, read_gguf_model
from quantyard.memory.kv_cache import ContextUse, context_bytes, context_cache_bytes
from quantyard.memory.layers import ModelLayers, read_cache_layers
from quantyard.metrics.pareto import Metric, ParetoEntry, pareto_metric, pareto_quality
from quantyard.plan.suites import BUILTIN
from quantyard.protocol.cache_results import CacheTypeResult
from quantyard.protocol.cache_types import DEFAULT_CACHE
from quantyard.protocol.estimates import Estimate, Interval
from quantyard.protocol.measurements import EvalReport, Measurement
from quantyard.protocol.removals import Removal
from quantyard.protocol.speed_results import Speed
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
    cache_type: str = DEFAULT_CACHE
    worst_domain: Interval | None = None  # its mean KLD, as the suite that read most domains found it
    worse_behaviours: int | None = None  # in how many it is measurably worse than the baseline; None: not measured
    whole_kld: float | None = None  # with what the backend adds, where `quality` is the file's alone
    cache_results: tuple[CacheTypeResult, ...] = ()  # every type of the KV cache that was measured on this file

    @property
    def cache(self) -> CacheTypeResult | None:
        """What was measured of the type that it will be served with; None for f16."""
        return next((found for found in self.cache_results if found.type == self.cache_type and found.mean_kld), None)

    @property
    def served_kld(self) -> float:
        """The divergence from the baseline as it will be served, in nats: that of file, backend and cache together."""
        if self.cache and self.cache.baseline_kld:
            return self.cache.baseline_kld.value
        return self.quality.value if self.whole_kld is None else self.whole_kld

    @property
    def entry(self) -> ParetoEntry:
        """Size, quality and speed, as the Pareto front compares them."""
        return ParetoEntry(self.quant, self.size_bytes, self.quality.value, self.tokens_per_s)


@dataclass(frozen=True)
class ChoiceSet:
    """The files to choose from; `others` maps each other quant to the reason why it cannot be chosen, and `left_out`
    to the same with a name for programs.
    """

    name: str
    report: EvalReport
    metric: Metric
    architecture: str
    trained_context: int | None
    use: ContextUse
    candidates: tuple[ChoiceCandidate, ...]
    others: Mapping[str, str]
    cache_type: str = DEFAULT_CACHE
    left_out: Mapping[str, Removal] = field(default_factory=dict)


def find_choice_set(
    manifest: Manifest, name: str, paths: Mapping[str, Path], suite: str, context_tokens: int, parallel: int,
    cache_type: str = DEFAULT_CACHE,
) -> ChoiceSet:
    """The files of a manifest that can be chosen.

    Args:
        paths: quant → path of each file in question.
        suite: the evaluation to use; "": the one that measured most of the files.
        context_tokens: the context to serve with; 0: the trained context, at most `DEFAULT_CONTEXT`.
        cache_type: of the KV cache to serve with; a file on which it was not measured cannot be chosen.

    Raises:
        BadRequest: none of them was measured.
    """
    report = _report_to_choose_from(manifest, paths, suite)
    metric = pareto_metric(report)
    left_out = {
        quant: removal for quant, path in paths.items()
        if (removal := _why_not_candidate(manifest, report, metric, quant, path)
            or cache_removal(manifest, quant, cache_type))
    }  # fmt: skip
    reasons = {quant: left_out[quant].text if quant in left_out else "" for quant in paths}
    headers = {quant: _candidate_header(paths[quant]) for quant, reason in reasons.items() if not reason}
    if not headers:
        why = "; ".join(f"{quant} {reason}" for quant, reason in reasons.items())
        lacking = f"cache CACHE_TYPE={cache_type}" if CACHE_NOT_MEASURED in why else ""
        raise no_candidates_error(why, list(paths), lacking)
    first = next(iter(headers.values()))
    use = ContextUse(_candidate_context(first, context_tokens), parallel, unified=False)  # as our server runs
    found = tuple(
        _choice_candidate(manifest, report, metric, quant, headers[quant], use, cache_type) for quant in headers
    )
    others = {quant: reason for quant, reason in reasons.items() if reason}
    return ChoiceSet(
        name, report, metric, first.architecture, first.context_length, use, found, others, cache_type,
        left_out,
    )  # fmt: skip


def no_candidates_error(why: str, quants: Sequence[str], suite: str = "") -> BadRequest:
    """The error if no file can be chosen; `suite` measures what is lacking."""
    hint = f"Measure them in one run: make eval MODEL=… QUANT={','.join(quants)}{f' SUITE={suite}' if suite else ''}"
    return BadRequest(f"Nothing to choose from: {why}.", hint)


def choice_eval_command(choices: ChoiceSet, model: str, *more: str, suite: str = "") -> str:
    """The command that measures all files in one run, and the quants in `more`, with the suite of the choice."""
    suite = suite or choices.report.suite.name
    quants = ",".join([*(c.quant for c in choices.candidates), *choices.others, *more])
    return f"make eval MODEL={model} QUANT={quants} SUITE={suite if suite in BUILTIN else '…'}"


def candidate_memory_bytes(found: ChoiceCandidate, use: ContextUse, cache_type: str = DEFAULT_CACHE) -> int | None:
    """Bytes this file would take at another context, or with another type of the KV cache."""
    return None if found.layers is None else _candidate_memory(found.speed, found.layers, use, cache_type)


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


def _why_not_candidate(
    manifest: Manifest, report: EvalReport, metric: Metric, quant: str, path: Path
) -> Removal | None:
    """Why this file cannot be chosen; None if it can."""
    record, found = manifest.quants[quant], candidate_measurement(report, quant)
    if not path.is_file():
        return Removal(name="MISSING", text=f"is missing: {path}")
    if not record.parts and path.stat().st_size != record.size_bytes:
        return Removal(name="CHANGED", text=f"was changed after it was verified: {path}")
    if found is None:
        return Removal(name="NOT_MEASURED", text=f"was not measured with the suite {report.suite.name}")
    if found.file.sha256 != record.sha256:
        text = f"was built again since it was measured with the suite {report.suite.name}"
        return Removal(name="NOT_MEASURED", text=text)
    if found.speed is None or pareto_quality(report, found, metric) is None:
        text = f"has no {'speed' if found.speed is None else metric} in the suite {report.suite.name}"
        return Removal(name="NOT_MEASURED", text=text)
    return None


def _whole_kld(found: Measurement) -> float | None:
    return found.divergence.mean_kld.value if found.divergence and found.divergence.mean_kld else None


def _candidate_header(path: Path) -> GgufHeader:
    try:
        return read_gguf_model(path)
    except GgufError as error:
        raise BadRequest(f"{path} cannot be read: {error}.", "Remove it and make it again: make build") from error


def _choice_candidate(
    manifest: Manifest, report: EvalReport, metric: Metric, quant: str, header: GgufHeader, use: ContextUse,
    cache_type: str,
) -> ChoiceCandidate:
    found, record = candidate_measurement(report, quant), manifest.quants[quant]
    assert found is not None, "files without a measurement were left out before"
    quality, layers = pareto_quality(report, found, metric), read_cache_layers(header)
    assert found.speed is not None, "files without this value were left out before"
    assert quality is not None, "files without this value were left out before"
    return ChoiceCandidate(
        quant=quant,
        path=header.paths[0],
        size_bytes=record.size_bytes,
        bits_per_weight=record.bits_per_weight,
        memory_bytes=_candidate_memory(found.speed, layers, use, cache_type),
        context_bytes=context_cache_bytes(layers, use, cache_type) if layers else None,
        quality=quality,
        tokens_per_s=found.speed.generated_tokens_per_s,
        speed=found.speed,
        layers=layers,
        cache_type=cache_type,
        cache_results=measured_caches(manifest, quant),
        whole_kld=_whole_kld(found) if metric == "KLD of the file" else None,
        worst_domain=measured_worst_domain(manifest, quant),
        worse_behaviours=measured_worse_behaviours(manifest, quant),
    )


def _candidate_memory(speed: Speed, layers: ModelLayers | None, use: ContextUse, cache_type: str) -> int | None:
    """The measured peak, corrected to the wanted context. If the cache size is unknown, only the measured context has
    a value.
    """
    measured = ContextUse(speed.n_ctx, whole_windows=True)
    if layers is None:
        same = (use.cells, use.sequences, cache_type) == (measured.cells, 1, DEFAULT_CACHE)
        return speed.peak_memory_bytes if same else None
    return speed.peak_memory_bytes + context_bytes(layers, use, cache_type) - context_bytes(layers, measured)


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
