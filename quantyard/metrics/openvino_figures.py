"""The table of files in OpenVINO: one row for each file, formatted once for report, terminal, page and card."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from quantyard.formatting.numbers import (
    DASH,
    format_count,
    format_kld,
    format_kld_interval,
    format_percent,
    format_speed,
)
from quantyard.metrics.intervals import estimate_interval
from quantyard.protocol.estimates import Estimate
from quantyard.protocol.measurements import Measurement
from quantyard.protocol.openvino import OPENVINO_REFUSALS
from quantyard.protocol.openvino_results import OpenVinoMeasurement

_Value = Callable[[OpenVinoMeasurement], float | None]


@dataclass(frozen=True)
class OpenVinoFigure:
    """One column: its head, what it means, its value to sort by, and how it is shown; None where not measured."""

    name: str
    help: str
    value: _Value
    show: Callable[[float], str]
    estimate: Callable[[OpenVinoMeasurement], Estimate | None] | None = None  # where it has an interval

    def shown(self, found: OpenVinoMeasurement) -> str:
        """The formatted value without its interval."""
        value = self.value(found)
        return DASH if value is None else self.show(value)

    def interval(self, found: OpenVinoMeasurement) -> str:
        """The formatted interval; "" where there is none."""
        estimate = self.estimate(found) if self.estimate else None
        return format_kld_interval(estimate_interval(estimate)).ends if estimate else ""


def _openvino_kld(name: str, help_text: str, pick: Callable[[OpenVinoMeasurement], Estimate | None]) -> OpenVinoFigure:
    return OpenVinoFigure(name, help_text, _value_of_estimate(pick), format_kld, pick)


def _value_of_estimate(pick: Callable[[OpenVinoMeasurement], Estimate | None]) -> _Value:
    def value(found: OpenVinoMeasurement) -> float | None:
        return estimate.value if (estimate := pick(found)) else None

    return value


# To add a figure: its field in `protocol.openvino_results.OpenVinoMeasurement`, and a row.
OPENVINO_FIGURES: Final = (
    _openvino_kld("KLD, llama.cpp", "mean KL divergence from the baseline as llama.cpp runs the file, nats per token",
                  lambda found: found.llama_kld),
    _openvino_kld("KLD, OpenVINO", "the same as OpenVINO runs it, over the same tokens",
                  lambda found: found.baseline_kld),
    OpenVinoFigure("p99", "99th percentile of that over tokens, nats", lambda found: found.p99_baseline_kld,
                   format_kld),
    OpenVinoFigure("same top token", "how often OpenVINO's most likely next token is the baseline's",
                   _value_of_estimate(lambda found: found.baseline_top1), format_percent),
    _openvino_kld("between both", "mean KL divergence of the file in OpenVINO from the same file in llama.cpp",
                  lambda found: found.runtime_kld),
    OpenVinoFigure("same greedy text", "share of greedily generated tokens before the first that differs from "
                   "llama.cpp's", lambda found: found.greedy_same, format_percent),
    OpenVinoFigure("prompt", "tokens of a prompt read per second in OpenVINO",
                   lambda found: found.prompt_tokens_per_s, format_speed),
    OpenVinoFigure("generated", "tokens generated per second in OpenVINO",
                   lambda found: found.generated_tokens_per_s, format_speed),
)  # fmt: skip


def openvino_rows(measurements: Sequence[Measurement]) -> list[OpenVinoMeasurement]:
    """What was measured, in the order of the files."""
    return [m.openvino for m in measurements if m.openvino]


def openvino_figures(rows: Sequence[OpenVinoMeasurement]) -> tuple[OpenVinoFigure, ...]:
    """The columns that any of these rows has."""
    return tuple(figure for figure in OPENVINO_FIGURES if any(figure.value(row) is not None for row in rows))


def openvino_note(found: OpenVinoMeasurement) -> str:
    """Why there are no figures of a file; "" where there are."""
    return f"not measured: {OPENVINO_REFUSALS[found.refusal]}" if found.refusal else ""


def openvino_sentences(rows: Sequence[OpenVinoMeasurement]) -> Iterator[str]:
    """How the files were measured and what OpenVINO made of them, a sentence each."""
    found = next((row for row in rows if not row.refusal), None)
    if found is None:
        return
    names = ", ".join(f"{name} {number}" for name, number in sorted(found.versions.items()))
    yield (
        f"OpenVINO ({names}) and llama.cpp read the same {format_count(found.n_tokens)} scored tokens of {found.text}."
    )
    yield (
        f"Greedy text: {found.settings.generated_tokens} tokens after each of {found.n_prompts} "
        f"prompt{'s' * (found.n_prompts != 1)}."
    )
    cache = found.computes.get("KV_CACHE_PRECISION")
    if cache:
        yield f"OpenVINO's own KV cache is of type {cache}."
    for row in rows:
        if row.weight_bytes:
            yield f"{row.label}: weights became {_openvino_weights(row)}."


def _openvino_weights(found: OpenVinoMeasurement) -> str:
    """Such as `87 % u4, 9 % f16 and 4 % u8` of the bytes."""
    total = sum(found.weight_bytes.values())
    shares = sorted(((n / total, name) for name, n in found.weight_bytes.items()), reverse=True)
    parts = [f"{format_percent(share, 0)} {name}" for share, name in shares if share >= 0.005]
    return ", ".join(parts) + " by bytes"
