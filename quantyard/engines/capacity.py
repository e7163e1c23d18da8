"""What an engine offers to the stages that it runs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_MOST_STAGES: Final = 4  # each uses all cores for most of its time; a few fill each other's gaps, more only queue


@dataclass(frozen=True)
class Capacity:
    """The machine, or one like it, that a stage will run on, and how many stages the engine runs at a time."""

    cpu: str  # architecture and model
    cpus: int
    memory_bytes: int  # that one stage may take
    concurrent_stages: int
    gpu: str = ""  # its name; "" where stages have none

    @property
    def machine(self) -> str:
        """The name of the machine in the request of a stage whose result depends on it."""
        return f"{self.cpu}, {self.cpus} cores"


def engine_machine_capacity(cpu: str, cpus: int, memory_bytes: int, gpu: str = "") -> Capacity:
    """The capacity of an engine whose stages share one machine."""
    return Capacity(cpu, cpus, memory_bytes, min(cpus, _MOST_STAGES), gpu)
