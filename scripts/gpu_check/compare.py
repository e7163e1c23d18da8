#!/usr/bin/env python3
"""Prints what the GPU computes against what the CPU computes, with the bound of each, and how much faster it is.

Usage:  compare.py FOLDER        where check-gpu.sh left what was measured: <file>-cpu.npz and <file>-gpu.npz for each
                                 file, and api-cpu.json and api-gpu.json
Exit codes:  0 all within the bounds · 1 not, and the table says what
"""

# ruff: noqa: T201, RUF001  (it is a script)
from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from eval.analysis.kl_divergence import DivergenceRows

# What two right builds may differ by. A GPU sums products in another order, and in 16 bits where a CPU has 32: of F16
# weights that is some 1e-5 nats. Of quantized ones both round the activations, each in its own blocks, which is as far
# from the exact product as from each other: some 1e-3 nats.
MOST_KLD: Final = {"F16": 0.002, "Q4_K_M": 0.01}  # mean, nats
MOST_LOGLIKELIHOOD: Final = {"F16": 0.02, "Q4_K_M": 0.15}  # root mean square of the difference, nats a token
LEAST_SAME_TOP: Final = {"F16": 0.98, "Q4_K_M": 0.9}
OWN_TOKENS: Final = 12  # of each ending that was scored (measure.py)
Measured = Mapping[str, Any]


@dataclass(frozen=True)
class Row:
    """A line of the table; `is_right` None: a figure without a bound."""

    name: str
    found: str
    bound: str = ""
    is_right: bool | None = None

    @property
    def text(self) -> str:
        """As printed."""
        sign = {None: "", True: "ok", False: "WRONG"}[self.is_right]
        return f"{self.name:<34} {self.found:<26} {self.bound:<12} {sign}".rstrip()


def computed_rows(name: str, cpu: Measured, gpu: Measured) -> Iterator[Row]:
    """What one file computes on both."""
    n = cpu["logits"].shape[1]
    rows = DivergenceRows(n, 1)
    rows.add(cpu["logits"][:-1], [gpu["logits"][:-1]], cpu["targets"][:-1])
    values = rows.models()[0]
    kld, same, least = float(values.kld.mean()), float(values.same_top.mean()), LEAST_SAME_TOP[name]
    yield _at_most(f"{name}: mean KL divergence", kld, MOST_KLD[name], "nats")
    yield Row(f"{name}: same most likely token", f"{same:.1%}", f"≥ {least:.0%}", same >= least)
    difference = (gpu["loglikelihoods"] - cpu["loglikelihoods"]) / OWN_TOKENS
    rms = float(np.sqrt((difference**2).mean()))
    yield _at_most(f"{name}: log-likelihoods, RMS Δ", rms, MOST_LOGLIKELIHOOD[name], "nats/token")
    agree = [int(np.argmin(np.append(a == b, False))) for a, b in zip(cpu["greedy"], gpu["greedy"], strict=True)]
    yield Row(f"{name}: greedy text, tokens alike", f"{sum(agree)} of {cpu['greedy'].size}", "> 0", sum(agree) > 0)


def speed_rows(name: str, cpu: Measured, gpu: Measured) -> Iterator[Row]:
    """How much faster the GPU is."""
    for key, what, unit in (
        ("evaluation", "evaluation", "requests/s"), ("prompt", "prompt", "tokens/s"),
        ("generation", "generation", "tokens/s"),
    ):  # fmt: skip
        before, after = float(cpu[key]), float(gpu[key])
        yield Row(f"{name}: {what}", f"{after / before:.1f} × ({before:,.0f} → {after:,.0f} {unit})")


def api_rows(cpu: Mapping[str, Any], gpu: Mapping[str, Any]) -> Iterator[Row]:
    """The server's promises: what is kept without the GPU must be kept with it. A random model breaks some itself."""
    kept = [{check["name"] for check in report["checks"] if check["status"] != "failed"} for report in (cpu, gpu)]
    lost = sorted(kept[0] - kept[1])
    yield Row("server: promises kept", f"{len(kept[1])} of {len(gpu['checks'])}", f"≥ {len(kept[0])}", not lost)
    for name in lost:
        finding = next(check["finding"] for check in gpu["checks"] if check["name"] == name)
        yield Row(f"  {name}", finding[:60], "", False)


def compared_rows(folder: Path) -> list[Row]:
    """All lines, in the order in which they are printed."""
    measured = {name: [dict(np.load(folder / f"{name}-{at}.npz")) for at in ("cpu", "gpu")] for name in MOST_KLD}
    rows = [Row(f"{name}: {at}", str(each["backend"])) for name, pair in list(measured.items())[:1]
            for at, each in zip(("reference", "compared"), pair, strict=True)]
    rows += [row for name, pair in measured.items() for row in computed_rows(name, *pair)]
    rows += api_rows(*(json.loads((folder / f"api-{at}.json").read_text()) for at in ("cpu", "gpu")))
    return rows + [row for name, pair in measured.items() for row in speed_rows(name, *pair)]


def _at_most(name: str, value: float, bound: float, unit: str) -> Row:
    return Row(name, f"{value:.6f} {unit}", f"≤ {bound}", bool(value <= bound))  # NaN is wrong


def main() -> int:
    """Print the table."""
    rows = compared_rows(Path(sys.argv[1]))
    print("\n".join(row.text for row in rows))
    return 1 if any(row.is_right is False for row in rows) else 0


if __name__ == "__main__":
    sys.exit(main())
