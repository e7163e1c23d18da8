"""Speeds at several depths, with energy, for tests: simulated values."""

from __future__ import annotations

from quantyard.protocol.estimates import Interval
from quantyard.protocol.measurements import EvalReport
from quantyard.protocol.speed_results import Speed, SpeedTest


def _around(value: float, share: float = 0.03) -> Interval:
    return Interval(value=value, low=value * (1 - share), high=value * (1 + share))


def speed_with_tests(speed: Speed, *, is_baseline: bool, joules: float | None = 0.5) -> Speed:
    """The speed with tests at two depths; `joules` is the energy of a generated token, None: not measurable."""
    tests = [
        SpeedTest(
            kind=kind, tokens=tokens, depth=depth, repeats=5, tokens_per_s=rate / (1 + depth / 8192),
            interval=_around(rate / (1 + depth / 8192)),
            joules_per_token=None if joules is None else joules * (0.1 if kind == "pp" else 1.0),
            joules_interval=None if joules is None else _around(joules * (0.1 if kind == "pp" else 1.0)),
        )
        for depth in (0, 4096)
        for kind, tokens, rate in (
            ("pp", 512, speed.prompt_tokens_per_s), ("tg", 64, speed.generated_tokens_per_s),
        )
    ]  # fmt: skip
    paces = {} if is_baseline else {"prompt_pace": _around(1.1), "generation_pace": _around(1.9)}
    source = {"energy_missing": "/sys/…/energy_uj can be read by root alone"} if joules is None else {
        "energy_source": "RAPL package-0"}  # fmt: skip
    return speed.model_copy(update={"tests": tuple(tests), **paces, **source})


def with_speed_tests(report: EvalReport, *, has_energy: bool = True) -> EvalReport:
    """The report, each file timed at two depths; a smaller file takes less energy."""
    found = []
    for m in report.measurements:
        joules = m.file.bits_per_weight / 8 if has_energy else None
        speed = m.speed and speed_with_tests(m.speed, is_baseline=m.file.label == report.baseline, joules=joules)
        found.append(m.model_copy(update={"speed": speed}))
    return report.model_copy(update={"measurements": tuple(found)})
