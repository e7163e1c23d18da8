"""The CPU, memory and GPU that an engine offers to stages."""

from __future__ import annotations

from typing import Final

from quantyard.records import dataclass

_MOST_STAGES: Final = 4  # each uses all cores most of the time; a few fill each other's gaps, more only compete


@dataclass(frozen=True)
class Capacity:
    """The machine that a stage will run on, or one like it, and how many stages the engine runs at a time."""

    cpu: str  # architecture and model
    cpus: int
    memory_bytes: int  # for one stage
    concurrent_stages: int
    gpu: str = ""  # its name; "" if stages cannot use one
    # How many machines run stages. With several, every stage runs as soon as its inputs are there, measurements too: it
    # has a machine, or the CPUs that it asked for, to itself.
    nodes: int = 1

    @property
    def machine(self) -> str:
        """The name of the machine in the request of a stage whose result depends on it."""
        return f"{self.cpu}, {self.cpus} cores"


def engine_machine_capacity(cpu: str, cpus: int, memory_bytes: int, gpu: str = "") -> Capacity:
    """The capacity of an engine whose stages share one machine."""
    return Capacity(cpu, cpus, memory_bytes, min(cpus, _MOST_STAGES), gpu)
