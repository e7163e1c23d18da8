"""What the machine offers: physical cores, peak memory, a description for reports."""

from __future__ import annotations

import os
import platform
import resource
import sys
from contextlib import suppress
from pathlib import Path
from typing import Final

from pydantic import JsonValue

_CPUS: Final = Path("/sys/devices/system/cpu")
_MEMORY_LIMIT: Final = Path("/sys/fs/cgroup/memory.max")
_CPU_LIMIT: Final = Path("/sys/fs/cgroup/cpu.max")
_NVIDIA_GPUS: Final = Path("/proc/driver/nvidia/gpus")


def physical_cores() -> int:
    """Physical cores this process may use: one per group of hardware threads, in a container no more than its limit.

    Threads that share a core only get in each other's way in matrix products (llama.cpp's
    common_cpu_get_num_physical_cores does the same).
    """
    allowed = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else range(os.cpu_count() or 1)
    cores = {_cpu_siblings(cpu) for cpu in allowed}
    return max(1, min(len(cores), _container_cpu_limit()))


def _container_cpu_limit(path: Path = _CPU_LIMIT) -> int:
    """The CPUs whose time this process's control group (version 2) may use, rounded up; very many without a limit."""
    with suppress(OSError, ValueError, ZeroDivisionError):  # "max 100000": no limit
        quota, period = path.read_text().split()
        return -(-int(quota) // int(period))
    return sys.maxsize


def _cpu_siblings(cpu: int) -> str:
    try:
        return (_CPUS / f"cpu{cpu}" / "topology" / "thread_siblings").read_text().strip()
    except OSError:  # no sysfs: every CPU counts
        return str(cpu)


def machine_memory_bytes() -> int:
    """All of the machine's memory."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def available_memory_bytes() -> int:
    """Memory that programs can still take without swapping, where the system says it; else all of it. Never more than
    a container may have.
    """
    return min(_available_memory_of_system(), _container_memory_limit())


def _container_memory_limit(path: Path = _MEMORY_LIMIT) -> int:
    """The limit of this process's control group (version 2); all of the machine's memory without one."""
    with suppress(OSError, ValueError):  # "max": no limit
        return int(path.read_text())
    return machine_memory_bytes()


def _available_memory_of_system() -> int:
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("MemAvailable")).split()[1])
    return machine_memory_bytes()


def peak_memory_bytes() -> int:
    """Largest resident memory of this process so far, mapped files included.

    VmHWM where /proc exists: the value of getrusage survives exec, so it may be the parent's.
    """
    with suppress(OSError, StopIteration):
        lines = Path("/proc/self/status").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024  # macOS counts bytes


def hardware_facts(threads: int) -> dict[str, JsonValue]:
    """For the report: CPU, cores, threads used, memory."""
    return {
        "cpu": cpu_name(), "physical_cores": physical_cores(),
        "threads": threads, "memory_bytes": machine_memory_bytes(),
    }


def cpu_name() -> str:
    """Architecture and model of this machine's CPU: results may differ in the last bits between them."""
    return f"{platform.machine()} {_model_in_cpuinfo() or platform.processor()}".strip()  # the latter starts a process


def _model_in_cpuinfo() -> str:
    """As Linux knows it on x86; "" elsewhere."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if "model name" in line), "")


def gpu_name(devices: Path = _NVIDIA_GPUS) -> str:
    """Model of this machine's first NVIDIA GPU, as its driver calls it; "" where there is none."""
    for path in sorted(devices.glob("*/information")):
        with suppress(OSError):
            lines = path.read_text(errors="replace").splitlines()
            return next((line.partition(":")[2].strip() for line in lines if line.startswith("Model:")), "")
    return ""
