"""The wheel: an installed quantyard works outside the checkout, and adds one name to the user's environment."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from quantyard import __version__
from quantyard.engines.images import IMAGES, engine_image_recipe
from quantyard.paths import REPO_DIR
from tests.gguf_files import TensorSpec, gguf

pytestmark = pytest.mark.commands

_COME_ALONG = {"certifi", "requests", "httpcore2", "urllib3"}  # with the SDKs of Docker and Kubernetes and httpx2
_PROJECT = "quantyard/_project/"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    done = subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=REPO_DIR, capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    (built,) = folder.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def site(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where it is installed."""
    folder = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


def _quantyard(site: Path, folder: Path, *argv: str, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "empty").mkdir(exist_ok=True)
    environment = {
        "PATH": os.environ["PATH"], "HOME": str(folder), "PYTHONPATH": str(site), "PYTHONDONTWRITEBYTECODE": "1",
        "COLUMNS": "80", **environment,
    }  # fmt: skip
    code = "import sys; from quantyard.cli import main; main(sys.argv[1:])"
    python = [sys.executable, "-P", "-c", code, *argv]
    return subprocess.run(python, cwd=folder / "empty", env=environment, capture_output=True, text=True)


def test_it_adds_one_name_a_type_marker_and_a_command(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        entry = archive.read(next(name for name in names if name.endswith("entry_points.txt"))).decode()
        metadata = archive.read(next(name for name in names if name.endswith("METADATA"))).decode()
    assert {name.partition("/")[0] for name in names} == {"quantyard", f"quantyard-{__version__}.dist-info"}
    assert "quantyard/py.typed" in names and "quantyard = quantyard.cli:main" in entry
    assert f"Version: {__version__}\n" in metadata and "Requires-Dist: pydantic" in metadata
    assert [name for name in names if "__pycache__" in name or "/artifacts/" in name or "/tests/" in name] == []


def test_it_carries_what_the_checkout_has(site: Path) -> None:
    project = site / _PROJECT
    for package in ("builder", "eval", "server", "quantyard", "docker", "locks"):
        ours = {p.relative_to(REPO_DIR) for p in (REPO_DIR / package).rglob("*") if p.is_file()}
        carried = {p.relative_to(project) for p in (project / package).rglob("*") if p.is_file()}
        assert {p for p in ours if "__pycache__" not in p.parts} == carried
    settings = (".dockerignore", ".env.example", "pyproject.toml", "versions.env")
    for name in ("compose.yaml", "compose.cuda.yaml", "compose.encoder-decoder.yaml", "models.toml", *settings):
        assert (project / name).read_bytes() == (REPO_DIR / name).read_bytes()


def test_it_carries_every_script_that_its_scripts_run(site: Path) -> None:
    scripts = {path.name for path in (site / _PROJECT / "scripts").iterdir()}
    for path in (site / _PROJECT / "scripts").iterdir():
        used = set(re.findall(r"(?<=scripts/)[\w-]+\.sh", path.read_text()))
        assert used <= scripts | {"test.sh", "lock.sh"}, path.name


def test_scripts_can_be_run(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        modes = {info.filename: info.external_attr >> 16 for info in archive.infolist()}
    for path in (REPO_DIR / "scripts").glob("*.sh"):
        if mode := modes.get(f"{_PROJECT}scripts/{path.name}"):
            assert bool(mode & 0o111) == os.access(path, os.X_OK), path.name


def test_an_image_is_the_same_made_from_either(site: Path) -> None:
    for image in IMAGES:
        assert engine_image_recipe(site / _PROJECT, image) == engine_image_recipe(REPO_DIR, image)


@pytest.mark.parametrize("argv", [("--version",), ("quants",), ("models",), ("config",)], ids=" ".join)
def test_it_runs_in_an_empty_folder(argv: tuple[str, ...], site: Path, tmp_path: Path) -> None:
    done = _quantyard(site, tmp_path, *argv)
    assert done.returncode == 0 and done.stdout and "Traceback" not in done.stderr
    assert [path for path in (tmp_path / "empty").iterdir() if path.name != "artifacts"] == []


def test_its_hints_name_the_program(site: Path, tmp_path: Path) -> None:
    done = _quantyard(site, tmp_path, "build", ENGINE="local")
    assert done.returncode == 2 and "quantyard build --model org/name" in done.stderr and "make" not in done.stderr
    out = _quantyard(site, tmp_path).stdout
    assert "Start with:\n  quantyard demo\n" in out and max(map(len, out.splitlines())) <= 80


def test_a_plan_is_made_in_an_empty_folder(site: Path, tmp_path: Path) -> None:
    metadata = {"general.architecture": "llama", "general.file_type": 1}
    (tmp_path / "tiny.gguf").write_bytes(gguf(metadata, [TensorSpec("a.weight", (32, 2), "F16")]))
    done = _quantyard(site, tmp_path, "plan", "--model", str(tmp_path / "tiny.gguf"), "--quant", "COPY", ENGINE="local")
    assert done.returncode == 0, done.stderr
    assert "verify" in done.stdout


def test_the_package_depends_on_what_it_imports() -> None:
    project = tomllib.loads((REPO_DIR / "pyproject.toml").read_text())
    optional = [line for lines in project["project"]["optional-dependencies"].values() for line in lines]
    names = {re.match(r"[\w-]+", line)[0] for line in (*project["project"]["dependencies"], *optional)}
    imported = set()
    for path in (REPO_DIR / "quantyard").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                imported |= {alias.name.partition(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                imported.add(node.module.partition(".")[0])
    packages = {"yaml": "pyyaml"}
    foreign = {packages.get(name, name) for name in imported - set(sys.stdlib_module_names) - {"quantyard"}}
    assert names == foreign - _COME_ALONG
