"""The locks are what pyproject.toml says, name every package with its hashes, and nothing is installed past them."""

from __future__ import annotations

import re
import tomllib
from dataclasses import dataclass
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPO = Path(__file__).resolve().parents[2]
LOCKS = sorted((REPO / "locks").glob("*.txt"))
PYPROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())
SCRIPT = (REPO / "scripts/lock.sh").read_text()
# What is installed beside a lock, because it is installed in another way (see lock.sh).
CUT_OUT = ("sdists", "pure-sdists", "torch")


@dataclass(frozen=True)
class Entry:
    name: str
    version: str
    marker: str
    hashes: tuple[str, ...]
    is_direct: bool


def entries(lock: str) -> list[Entry]:
    text = (REPO / "locks" / f"{lock}.txt").read_text()
    found = []
    for block in re.findall(r"^[A-Za-z0-9][^\n]*\n(?:[ ]+[^\n]*\n?)*", text, re.MULTILINE):
        first = re.match(r"([A-Za-z0-9._-]+)==([^ ]+)(?: ; (.*?))? \\\n", block)
        assert first, f"{lock}: not a pinned package: {block.splitlines()[0]}"
        hashes = tuple(re.findall(r"--hash=sha256:([0-9a-f]{64})\b", block))
        direct = "quantyard (pyproject.toml" in block
        found.append(Entry(canonicalize_name(first[1]), first[2], first[3] or "", hashes, direct))
    return found


def rows() -> dict[str, list[str]]:
    """Each lock, and what lock.sh makes it of."""
    listed = " ".join(re.findall(r'^(?:SHARED|SEPARATE)="(.*?)"', SCRIPT, re.MULTILINE))
    return {name: groups.split(",") for name, _, groups in (row.partition(":") for row in listed.split())}


def requirements(group: str) -> list[Requirement]:
    if group == "project":
        return [Requirement(line) for line in PYPROJECT["project"]["dependencies"]]
    lines = PYPROJECT["dependency-groups"][group]
    flat = [requirements(line["include-group"]) if isinstance(line, dict) else [Requirement(line)] for line in lines]
    return [requirement for part in flat for requirement in part]


def test_every_group_has_a_lock_and_every_lock_is_one_that_the_script_makes() -> None:
    assert {path.stem for path in LOCKS} == {*rows(), *CUT_OUT, "torch-cpu"}
    assert {group for groups in rows().values() for group in groups} == {"project", *PYPROJECT["dependency-groups"]}


@pytest.mark.parametrize("lock", rows())
def test_a_lock_that_is_stale_against_pyproject_is_found_without_a_network(lock: str) -> None:
    wanted = [requirement for group in rows()[lock] for requirement in requirements(group)]
    locked = {entry.name: entry for name in (lock, *CUT_OUT) for entry in entries(name)}
    for requirement in wanted:
        entry = locked.get(canonicalize_name(requirement.name))
        assert entry is not None, f"{requirement} is not in locks/{lock}.txt. Type: scripts/lock.sh"
        fits = requirement.specifier.contains(entry.version)
        assert fits, f"{requirement}: {entry.version} is locked. Type: scripts/lock.sh"
    gone = {entry.name for entry in entries(lock) if entry.is_direct} - {canonicalize_name(r.name) for r in wanted}
    assert not gone, f"locks/{lock}.txt has what pyproject.toml no longer asks for. Type: scripts/lock.sh"


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_every_package_of_a_lock_has_its_hashes_and_no_address(path: Path) -> None:
    assert all(entry.hashes for entry in entries(path.stem))
    assert "://" not in path.read_text() and "--index" not in path.read_text()


def test_a_package_has_one_version_in_all_locks_that_are_installed_together() -> None:
    shared = [row.partition(":")[0] for row in re.findall(r'^SHARED="(.*?)"', SCRIPT, re.MULTILINE)[0].split()]
    seen: dict[tuple[str, str], set[str]] = {}
    for lock in (*shared, *CUT_OUT):
        for entry in entries(lock):
            seen.setdefault((entry.name, entry.marker), set()).add(entry.version)
    assert {key: versions for key, versions in seen.items() if len(versions) > 1} == {}


def test_the_cpu_builds_of_torch_are_of_the_locked_version() -> None:
    versions = {entry.name: entry.version for entry in entries("torch")}
    assert [(entry.name, entry.version) for entry in entries("torch-cpu")] == [("torch", f"{versions['torch']}+cpu")]


INSTALLERS = [path for pattern in ("scripts/*.sh", "docker/*.sh", "docker/*.Dockerfile") for path in REPO.glob(pattern)]
INSTALLERS.remove(REPO / "scripts/lock.sh")  # it makes the locks


@pytest.mark.parametrize("path", sorted(INSTALLERS), ids=lambda path: path.name)
def test_whatever_installs_python_packages_checks_their_hashes(path: Path) -> None:
    lines = (re.sub(r"(^|\s)#.*", "", line) for line in re.sub(r"\\\n", " ", path.read_text()).splitlines())
    installing = [line for line in lines if re.search(r"\bpip\b\S* (--?\S+ )*(install|download|wheel) -", line)]
    assert [line for line in installing if "--require-hashes" not in line] == []
