"""The table of cache types: one row for each file and type, formatted once for report, terminal, page and card.

The divergence is from the same file with an f16 cache, so it is what the cache alone costs; that from the baseline is
what file and cache cost together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from quantyard.formatting.numbers import (
    DASH,
    format_bytes,
    format_change_interval,
    format_count,
    format_kld,
    format_kld_interval,
    format_percent,
)
from quantyard.metrics.intervals import estimate_interval
from quantyard.protocol.cache_results import CacheMeasurement, CacheTypeResult
from quantyard.protocol.cache_types import CACHE_REFUSALS
from quantyard.protocol.estimates import Estimate, Interval
from quantyard.protocol.measurements import Measurement


@dataclass(frozen=True)
class CacheFigure:
    """One column: its head, what it means, its value to sort by, and how it is shown; None where not measured."""

    name: str
    help: str
    value: Callable[[CacheTypeResult], float | None]
    show: Callable[[CacheTypeResult], tuple[str, str]]  # the text, and its interval or ""

    def shown(self, found: CacheTypeResult) -> str:
        """The formatted value without its interval."""
        return DASH if self.value(found) is None else self.show(found)[0]

    def interval(self, found: CacheTypeResult) -> str:
        """The formatted interval; "" where there is none."""
        return "" if self.value(found) is None else self.show(found)[1]


@dataclass(frozen=True)
class CacheRow:
    """One type on one file."""

    label: str
    result: CacheTypeResult
    measured: CacheMeasurement

    @property
    def note(self) -> str:
        """Why there are no figures; "" where there are."""
        return f"not possible: {CACHE_REFUSALS[self.result.refusal]}" if self.result.refusal else ""


def _cache_estimate(pick: Callable[[CacheTypeResult], Estimate | None], *, share: bool = False) -> tuple[
    Callable[[CacheTypeResult], float | None], Callable[[CacheTypeResult], tuple[str, str]]
]:
    def value(found: CacheTypeResult) -> float | None:
        return estimate.value if (estimate := pick(found)) else None

    def show(found: CacheTypeResult) -> tuple[str, str]:
        estimate = pick(found)
        assert estimate is not None, "its value is known"
        if share:
            return format_percent(estimate.value), ""
        written = format_kld_interval(estimate_interval(estimate))
        return written.value, written.ends

    return value, show


def _cache_speed(pick: Callable[[CacheTypeResult], Interval | None]) -> tuple[
    Callable[[CacheTypeResult], float | None], Callable[[CacheTypeResult], tuple[str, str]]
]:
    def value(found: CacheTypeResult) -> float | None:
        return interval.value - 1 if (interval := pick(found)) else None

    def show(found: CacheTypeResult) -> tuple[str, str]:
        interval = pick(found)
        assert interval is not None, "its value is known"
        change = Interval(value=interval.value - 1, low=interval.low - 1, high=interval.high - 1)
        written = format_change_interval(change)
        return written.value, written.ends

    return value, show


def _cache_deepest(found: CacheTypeResult) -> Estimate | None:
    """The divergence in the longest context that was measured."""
    return found.by_position[-1].mean_kld if found.by_position else None


# To add a figure: its field in `protocol.cache_results.CacheTypeResult`, and a row.
CACHE_FIGURES: Final = (
    CacheFigure("KLD from f16", "mean KL divergence from the same file with an f16 cache, nats per token",
                *_cache_estimate(lambda found: found.mean_kld)),
    CacheFigure("at depth", "the same, of the tokens with most context before them",
                *_cache_estimate(_cache_deepest)),
    CacheFigure("p99", "99th percentile over tokens, nats",
                lambda found: found.p99_kld, lambda found: (format_kld(found.p99_kld or 0.0), "")),
    CacheFigure("same top token", "how often f16's most likely next token is the most likely one",
                *_cache_estimate(lambda found: found.top1_agreement, share=True)),
    CacheFigure("from baseline", "mean KL divergence from the baseline: file and cache together, nats per token",
                *_cache_estimate(lambda found: found.baseline_kld)),
    CacheFigure("cache/token", "bytes of cache for a token of context, as llama.cpp allocates them",
                lambda found: found.bytes_per_token,
                lambda found: (format_bytes(round(found.bytes_per_token or 0), binary=True), "")),
    CacheFigure("prompt", "speed of reading a prompt at depth, against f16",
                *_cache_speed(lambda found: found.prompt_speed)),
    CacheFigure("generation", "speed of generation at depth, against f16",
                *_cache_speed(lambda found: found.generation_speed)),
)  # fmt: skip


def cache_rows(measurements: Sequence[Measurement]) -> list[CacheRow]:
    """Every type of every file, in the order of the files; the f16 row of a file comes first."""
    return [CacheRow(m.file.label, found, m.cache) for m in measurements if m.cache for found in m.cache.results]


def cache_figures(rows: Sequence[CacheRow]) -> tuple[CacheFigure, ...]:
    """The columns that any of these rows has; a single range of context is not told twice."""
    figures = (figure for figure in CACHE_FIGURES if any(figure.value(row.result) is not None for row in rows))
    several = any(len(row.result.by_position) > 1 for row in rows)
    return tuple(figure for figure in figures if several or figure.name != "at depth")


def cache_sentences(rows: Sequence[CacheRow]) -> Iterator[str]:
    """How the types were measured, a sentence each."""
    if not rows:
        return
    found, settings = rows[0].measured, rows[0].measured.settings
    chunks = f"{found.n_chunks} chunk{'s' * (found.n_chunks != 1)} of {format_count(found.n_ctx)} tokens"
    yield f"KV cache: {format_count(found.n_tokens)} tokens of {found.text}, in {chunks}, every token scored."
    deepest = next((row.result.by_position[-1] for row in rows if len(row.result.by_position) > 1), None)
    if deepest:
        first, last = (format_count(n) for n in (deepest.first, deepest.last))
        yield f"At depth: the tokens with {first} to {last} tokens before them."
    if settings.repeats:
        yield (
            f"Speed: pp{settings.prompt_tokens} and tg{settings.generated_tokens} @ d{found.n_ctx} against f16, "
            f"{settings.repeats * found.n_chunks} pairs by turns."
        )
