"""Setting up a virtual environment, with pip and a package of our own."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from quantyard.paths import REPO_DIR


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


@dataclass
class Checkout:
    """A folder with the set-up script and locks of one tiny package."""

    folder: Path
    digest: str

    def set_up(self, group: str = "test", sha256: str = "") -> subprocess.CompletedProcess[str]:
        """Set a group up, with another hash in its lock where one is given."""
        lock = f"tiny==1.0 \\\n    --hash=sha256:{sha256 or self.digest}\n"
        (self.folder / f"locks/{group}.txt").write_text(lock)
        wheels = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": str(self.folder / "wheels"), "PIP_EXTRA_INDEX_URL": ""}
        argv = [self.folder / "scripts/setup-venv.sh", group]
        return subprocess.run(argv, env=os.environ | wheels, capture_output=True, text=True, check=False)

    @property
    def ready(self) -> Path:
        """The file that names the complete groups."""
        return self.folder / ".venv/.ready"


@pytest.fixture
def checkout(tmp_path: Path) -> Checkout:
    folder = tmp_path / "checkout"
    for name in ("scripts", "locks", "wheels"):
        (folder / name).mkdir(parents=True)
    shutil.copy(REPO_DIR / "scripts/setup-venv.sh", folder / "scripts")
    (folder / "locks/pip.txt").write_text("")  # the interpreter's own pip does
    return Checkout(folder, _wheel(folder / "wheels"))


@pytest.mark.quick
def test_a_set_up_refuses_a_package_whose_hash_is_altered(checkout: Checkout) -> None:
    digest = checkout.digest
    refused = checkout.set_up(sha256=("0" if digest[0] != "0" else "1") + digest[1:])
    assert refused.returncode == 1
    assert "DO NOT MATCH THE HASHES" in refused.stderr
    assert not checkout.ready.exists()
    made = checkout.set_up()
    assert (made.returncode, made.stderr.splitlines()[-1]) == (0, ".venv is ready (test).")


def _move(checkout: Checkout) -> None:
    checkout.folder = checkout.folder.rename(checkout.folder.with_name("moved"))


def _remove_interpreter(checkout: Checkout) -> None:
    python = checkout.folder / ".venv/bin/python"
    python.unlink()
    python.symlink_to("/nowhere/python3")


def _remove_pip(checkout: Checkout) -> None:
    (package,) = checkout.folder.glob(".venv/lib/python*/site-packages/pip")
    shutil.rmtree(package)
    checkout.ready.write_text(checkout.ready.read_text().replace("test ", "test 0"))  # so that pip is asked for


@pytest.mark.parametrize(
    "spoil",
    [_move, *(pytest.param(how, marks=pytest.mark.slow) for how in (_remove_interpreter, _remove_pip))],
)
def test_an_environment_that_no_longer_works_is_made_again_and_holds_only_what_is_installed_again(
    spoil: Callable[[Checkout], None], checkout: Checkout
) -> None:
    for group in ("test", "lint"):
        assert checkout.set_up(group).returncode == 0
    assert checkout.set_up("lint").stderr == ""
    spoil(checkout)
    made = checkout.set_up("test")
    assert made.returncode == 0 and made.stderr.startswith("Making .venv"), made.stderr
    assert [line.split()[0] for line in checkout.ready.read_text().splitlines()] == ["test"]
    assert (checkout.folder / ".venv/bin/pip").read_text().startswith(f"#!{checkout.folder}/")
