"""Energy that this machine has used, from its own counters: RAPL of the processors, NVML of NVIDIA GPUs.

Both count all that runs on a chip, not one process, and idle power is part of it. A difference of two readings is the
energy between them, in joules.

RAPL: https://docs.kernel.org/power/powercap/powercap.html. The counters can be read by root alone since 2020, because
they tell secrets of other processes (CVE-2020-8694), and Docker hides them from containers.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

POWERCAP: Final = Path("/sys/class/powercap")
_NVML: Final = "libnvidia-ml.so.1"
_MICRO: Final = 1e-6
_MILLI: Final = 1e-3


@dataclass(frozen=True)
class EnergyCounter:
    """One counter: its name, its value in joules, and the value at which it starts again (None: never)."""

    name: str
    read_j: Callable[[], float]
    range_j: float | None = None


@dataclass(frozen=True)
class EnergyMeter:
    """All counters that can be read; `missing` says why there are none."""

    counters: tuple[EnergyCounter, ...] = ()
    missing: str = ""

    @property
    def source(self) -> str:
        """The names of the counters: "RAPL package-0, RAPL dram"."""
        return ", ".join(dict.fromkeys(counter.name for counter in self.counters))

    def read_j(self) -> tuple[float, ...]:
        """The counters, in joules."""
        return tuple(counter.read_j() for counter in self.counters)

    def used_j(self, before: Sequence[float]) -> float:
        """Joules since that reading; a counter that has started again in between has done so once."""
        used = 0.0
        for counter, first, last in zip(self.counters, before, self.read_j(), strict=True):
            wrapped = last < first and counter.range_j is not None
            used += last - first + (counter.range_j or 0.0 if wrapped else 0.0)
        return used


def find_energy_meter(*, on_gpu: bool = False, powercap: Path = POWERCAP, nvml: str = _NVML) -> EnergyMeter:
    """The counters of the processors, and of the GPUs if the model runs on them."""
    processors, reason = _rapl_counters(powercap)
    if not on_gpu:
        return EnergyMeter(processors, "" if processors else reason)
    gpus, gpu_reason = _nvml_counters(nvml)
    if not gpus:  # what the processors alone use says nothing of a model on a GPU
        return EnergyMeter((), gpu_reason)
    return EnergyMeter((*processors, *gpus))


def _rapl_counters(powercap: Path) -> tuple[tuple[EnergyCounter, ...], str]:
    """Packages, and the memory where it has a counter of its own; parts of a package are in the package's."""
    zones = sorted(powercap.glob("intel-rapl:*")) if powercap.is_dir() else []
    found, unreadable = [], ""
    for zone in zones:
        with suppress(OSError, ValueError):
            name = (zone / "name").read_text().strip()
            if not name.startswith("package") and name != "dram":
                continue
            try:
                _read_rapl_j(zone / "energy_uj")
            except PermissionError:
                unreadable = f"{zone / 'energy_uj'} can be read by root alone"
                continue
            range_j = int((zone / "max_energy_range_uj").read_text()) * _MICRO
            found.append(_rapl_counter(zone, name, range_j))
    if found and not unreadable:
        return tuple(found), ""
    return (), unreadable or f"there is no RAPL counter in {powercap}"


def _rapl_counter(zone: Path, name: str, range_j: float) -> EnergyCounter:
    return EnergyCounter(f"RAPL {name}", lambda: _read_rapl_j(zone / "energy_uj"), range_j)


def _read_rapl_j(path: Path) -> float:
    return int(path.read_text()) * _MICRO


def _nvml_counters(library: str) -> tuple[tuple[EnergyCounter, ...], str]:
    """One per GPU, in millijoules since its driver was loaded (Volta and later)."""
    try:
        nvml = ctypes.CDLL(library)
    except OSError:
        return (), f"{library} is not installed"
    count = ctypes.c_uint()
    if nvml.nvmlInit_v2() or nvml.nvmlDeviceGetCount_v2(ctypes.byref(count)):
        return (), "NVML does not answer"
    found = []
    for index in range(count.value):
        handle = ctypes.c_void_p()
        if nvml.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) or _read_nvml_j(nvml, handle) is None:
            return (), f"GPU {index} does not count its energy"
        found.append(EnergyCounter(f"NVML GPU {index}", _nvml_reader(nvml, handle)))
    return tuple(found), "" if found else "NVML knows no GPU"


def _nvml_reader(nvml: Any, handle: ctypes.c_void_p) -> Callable[[], float]:
    return lambda: _read_nvml_j(nvml, handle) or 0.0


def _read_nvml_j(nvml: Any, handle: ctypes.c_void_p) -> float | None:
    millijoules = ctypes.c_ulonglong()
    if nvml.nvmlDeviceGetTotalEnergyConsumption(handle, ctypes.byref(millijoules)):
        return None
    return millijoules.value * _MILLI
