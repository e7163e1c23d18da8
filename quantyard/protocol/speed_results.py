"""The record of `speed`: tokens per second, memory and energy of one file."""

from typing import Annotated, Literal

from pydantic import Field

from quantyard.protocol.base import Frozen
from quantyard.protocol.estimates import Interval
from quantyard.protocol.evaluation import SpeedSettings


class SpeedTest(Frozen):
    """One test in llama-bench's terms: `pp` reads `tokens` of a prompt, `tg` generates them, behind `depth` tokens.

    Values are means of the repeats after a warm-up, with Student's interval (None: one repeat). Joules are those that
    the machine's counters show, idle power and other programs included; None: not measurable here.
    """

    kind: Literal["pp", "tg"]
    tokens: int
    depth: int = 0
    batch: int = 512  # tokens computed at once
    repeats: int
    tokens_per_s: float
    interval: Interval | None = None
    joules_per_token: float | None = None
    joules_interval: Interval | None = None

    @property
    def name(self) -> str:
        """As llama-bench writes it: "pp512", "tg128 @ d4096"; another batch than its own is named."""
        at = f" @ d{self.depth}" if self.depth else ""
        return f"{self.kind}{self.tokens}{at}{f', ub {self.batch}' if self.batch != 512 else ''}"


class Speed(Frozen):
    """Speed and memory of one file; speeds are medians of the repeats after a warm-up.

    A pace is the speed beside the baseline's, both timed by turns in one run: 1.5 for half as fast again.
    """

    label: str
    prompt_tokens_per_s: float
    generated_tokens_per_s: float
    prompt_spread: float  # (largest - smallest) / median over the repeats
    generated_spread: float
    load_s: float
    peak_memory_bytes: int  # resident, including mapped weights
    threads: int
    n_ctx: int
    n_gpu_layers: int
    settings: SpeedSettings
    node_class: Annotated[str, Field(exclude_if=lambda value: not value)] = ""  # the kind of machine, see `NodeFacts`
    tests: Annotated[tuple[SpeedTest, ...], Field(exclude_if=lambda value: not value)] = ()
    energy_source: Annotated[str, Field(exclude_if=lambda value: not value)] = ""  # counters, as "RAPL package-0"
    energy_missing: Annotated[str, Field(exclude_if=lambda value: not value)] = ""  # why there are none
    prompt_pace: Annotated[Interval | None, Field(exclude_if=lambda value: value is None)] = None
    generation_pace: Annotated[Interval | None, Field(exclude_if=lambda value: value is None)] = None
