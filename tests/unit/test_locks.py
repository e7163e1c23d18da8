"""The locks are what pyproject.toml says, name every package with its hashes, and nothing is installed past them."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tomllib
import zipfile
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
CUT_OUT = ("sdists", "torch")


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
    assert {path.stem for path in LOCKS} == {*rows(), "sdists", "torch", "torch-cpu"}
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


def _wheel(folder: Path) -> str:
    """A package that does nothing. Returns its SHA-256."""
    path = folder / "tiny-1.0-py3-none-any.whl"
    info = "tiny-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("tiny.py", "")
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", f"tiny.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n")
    return hashlib.sha256(path.read_bytes()).hexdigest()


def test_a_set_up_refuses_a_package_whose_hash_is_altered(tmp_path: Path) -> None:
    for folder in ("scripts", "locks", "wheels"):
        (tmp_path / folder).mkdir()
    shutil.copy(REPO / "scripts/setup-venv.sh", tmp_path / "scripts")
    digest = _wheel(tmp_path / "wheels")
    (tmp_path / "locks/pip.txt").write_text("")  # the interpreter's own pip does
    env = os.environ | {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(tmp_path / "wheels"), "PIP_EXTRA_INDEX_URL": ""}

    def set_up(sha256: str) -> subprocess.CompletedProcess[str]:
        (tmp_path / "locks/test.txt").write_text(f"tiny==1.0 \\\n    --hash=sha256:{sha256}\n")
        argv = [tmp_path / "scripts/setup-venv.sh", "test"]
        return subprocess.run(argv, env=env, capture_output=True, text=True, check=False)

    altered = ("0" if digest[0] != "0" else "1") + digest[1:]
    refused = set_up(altered)
    assert refused.returncode == 1
    assert "DO NOT MATCH THE HASHES" in refused.stderr
    assert not (tmp_path / ".venv/.ready").exists()
    made = set_up(digest)
    assert (made.returncode, made.stderr.splitlines()[-1]) == (0, ".venv is ready (test).")
