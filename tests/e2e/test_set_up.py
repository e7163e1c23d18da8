"""Setting up a virtual environment, with pip and a package of our own."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import zipfile
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


@pytest.mark.quick
def test_a_set_up_refuses_a_package_whose_hash_is_altered(tmp_path: Path) -> None:
    for folder in ("scripts", "locks", "wheels"):
        (tmp_path / folder).mkdir()
    shutil.copy(REPO_DIR / "scripts/setup-venv.sh", tmp_path / "scripts")
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
