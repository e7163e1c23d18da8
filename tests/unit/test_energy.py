"""Energy from a machine's counters: a tree like /sys/class/powercap, and a library with NVML's functions."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from quantyard.hardware.energy import find_energy_meter

RANGE_UJ = 262_143_328_850  # of a real package


def zone(root: Path, number: str, name: str, energy_uj: int, range_uj: int = RANGE_UJ) -> Path:
    folder = root / f"intel-rapl:{number}"
    folder.mkdir(parents=True)
    (folder / "name").write_text(f"{name}\n")
    (folder / "max_energy_range_uj").write_text(f"{range_uj}\n")
    (folder / "energy_uj").write_text(f"{energy_uj}\n")
    return folder


def counts(folder: Path, energy_uj: int) -> None:
    (folder / "energy_uj").write_text(f"{energy_uj}\n")


def test_packages_and_their_memory_are_added_and_parts_of_a_package_are_not(tmp_path: Path) -> None:
    package, memory = zone(tmp_path, "0", "package-0", 1_000_000), zone(tmp_path, "0:1", "dram", 500_000)
    core, other = zone(tmp_path, "0:0", "core", 7_000_000), zone(tmp_path, "1", "package-1", 2_000_000)
    (tmp_path / "intel-rapl").mkdir()  # the driver itself, which has no counter
    meter = find_energy_meter(powercap=tmp_path)
    assert meter.source == "RAPL package-0, RAPL dram, RAPL package-1" and not meter.missing
    before = meter.read_j()
    for folder, more in ((package, 3_000_000), (memory, 250_000), (core, 900_000), (other, 500_000)):
        counts(folder, int((folder / "energy_uj").read_text()) + more)
    assert meter.used_j(before) == pytest.approx(3.75)


def test_a_counter_that_starts_again_loses_nothing(tmp_path: Path) -> None:
    package = zone(tmp_path, "0", "package-0", RANGE_UJ - 1_000_000)
    meter = find_energy_meter(powercap=tmp_path)
    before = meter.read_j()
    counts(package, 2_500_000)
    assert meter.used_j(before) == pytest.approx(3.5)  # one joule up to the end, two and a half from the beginning


def test_every_package_starts_again_by_itself(tmp_path: Path) -> None:
    one, two = zone(tmp_path, "0", "package-0", 900, 1000), zone(tmp_path, "1", "package-1", 100, 1000)
    meter = find_energy_meter(powercap=tmp_path)
    before = meter.read_j()
    counts(one, 50)
    counts(two, 400)
    assert meter.used_j(before) == pytest.approx((150 + 300) * 1e-6)


@pytest.mark.parametrize("layout", ["nothing", "empty", "no package", "damaged"])
def test_a_machine_without_counters_says_so(tmp_path: Path, layout: str) -> None:
    root = tmp_path / "powercap"
    if layout != "nothing":
        root.mkdir()
    if layout == "no package":
        zone(root, "0", "psys", 5)
    if layout == "damaged":
        counts(zone(root, "0", "package-0", 5), 5)
        (root / "intel-rapl:0" / "energy_uj").write_text("what\n")
    meter = find_energy_meter(powercap=root)
    assert not meter.counters and meter.missing == f"there is no RAPL counter in {root}" and meter.read_j() == ()


def test_counters_that_may_not_be_read_are_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = zone(tmp_path, "0", "package-0", 5) / "energy_uj"
    read = Path.read_text

    def refuse(self: Path, *args: object, **more: object) -> str:
        if self == path:
            raise PermissionError(13, "Permission denied")
        return read(self)

    monkeypatch.setattr(Path, "read_text", refuse)
    meter = find_energy_meter(powercap=tmp_path)
    assert meter.missing == f"{path} can be read by root alone" and not meter.counters


# ---- NVML --------------------------------------------------------------------------------------------

LIBRARY = """
static unsigned long long used[2] = {1000, 5000};
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetCount_v2(unsigned int *n) { *n = GPUS; return 0; }
int nvmlDeviceGetHandleByIndex_v2(unsigned int i, void **handle) { *handle = &used[i]; return 0; }
int nvmlDeviceGetTotalEnergyConsumption(void *handle, unsigned long long *mj) {
    unsigned long long *mine = handle;
    *mj = *mine; *mine += 250;
    return ANSWER;
}
"""


@pytest.fixture
def nvml(tmp_path: Path):  # a library with NVML's functions
    if shutil.which("cc") is None:
        pytest.skip("no C compiler")

    def make(gpus: int, answer: int = 0) -> str:
        (tmp_path / "nvml.c").write_text(LIBRARY)
        path = tmp_path / f"libnvidia-ml-{gpus}-{answer}.so"
        flags = [f"-DGPUS={gpus}", f"-DANSWER={answer}", "-shared", "-fPIC"]
        subprocess.run(["cc", *flags, "-o", str(path), str(tmp_path / "nvml.c")], check=True)
        return str(path)

    return make


def test_gpus_count_millijoules_beside_the_processors(tmp_path: Path, nvml) -> None:
    zone(tmp_path / "powercap", "0", "package-0", 1_000_000)
    meter = find_energy_meter(on_gpu=True, powercap=tmp_path / "powercap", nvml=nvml(2))
    assert meter.source == "RAPL package-0, NVML GPU 0, NVML GPU 1"
    before = meter.read_j()
    assert meter.used_j(before) == pytest.approx(0.5)  # each reading adds a quarter of a joule to each GPU


@pytest.mark.parametrize(("gpus", "answer", "why"), [
    (0, 0, "NVML knows no GPU"), (1, 3, "GPU 0 does not count its energy"),
])  # fmt: skip
def test_the_processors_alone_do_not_stand_for_a_model_on_a_gpu(
    tmp_path: Path, nvml, gpus: int, answer: int, why: str
) -> None:
    zone(tmp_path / "powercap", "0", "package-0", 1_000_000)
    meter = find_energy_meter(on_gpu=True, powercap=tmp_path / "powercap", nvml=nvml(gpus, answer))
    assert not meter.counters and meter.missing == why


def test_a_machine_without_nvml_says_so(tmp_path: Path) -> None:
    assert find_energy_meter(on_gpu=True, powercap=tmp_path, nvml="libnone.so").missing == "libnone.so is not installed"
