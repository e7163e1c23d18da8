"""Runs client libraries against the demo served as one file and as two, and writes what works into results.json.

    .venv/bin/python -m tests.clients.sweep [NAME …]      of rows.py; without any, all of them

The served file is that of `make demo` (artifacts/served); SERVER_IMAGE names another image than the one last built.
`make reference` then writes the docs' table.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from filelock import FileLock

from quantyard.paths import REPO_DIR
from tests.clients.rows import CLIENTS, FOLDER, TOOLS_OF_A_TEMPLATE, Client
from tests.docker.compose_project import Project, free_port

RESULTS: Final = FOLDER / "results.json"
SETUPS: Final = ("one file", "two files")
WITH_TOOLS: Final = "with-tools"  # the model of the second set-up whose chat template knows tools
WORKS: Final = "works"
_TEMPLATE: Final = REPO_DIR / "tests" / "serve_contract" / "tools_bare.jinja"
_CLIENT_S: Final = 900.0
Results = dict[str, dict[str, dict[str, str]]]  # client → set-up → feature → what came of it


@dataclass(frozen=True)
class Served:
    """A server with the demo model."""

    address: str
    key: str
    model: str
    with_tools: str = ""  # the name of one with tools


@contextmanager
def served_demo(gguf: Path, setup: str, folder: Path, **variables: str) -> Iterator[Served]:
    """`docker compose up` in a copy of the project."""
    project = Project(folder)
    files = folder / "artifacts" / "served"
    shutil.copy(gguf, files / gguf.name)
    if setup == "two files":
        argv = ["-m", "gguf.scripts.gguf_new_metadata", "--force", "--chat-template", _TEMPLATE.read_text()]
        tooled = files / f"{WITH_TOOLS}.gguf"
        subprocess.run([sys.executable, *argv, str(gguf), str(tooled)], check=True, capture_output=True)
    port = str(free_port())
    try:
        done = project.compose("up", "--detach", "--wait", PORT=port, CONTEXT_SIZE="8192", **variables)
        assert done.returncode == 0, done.stderr + project.compose("logs", "server").stdout
        yield Served(f"http://127.0.0.1:{port}", project.key(), gguf.stem, WITH_TOOLS if setup == "two files" else "")
    finally:
        project.down()


def run_client(name: str, served: Served) -> dict[str, str]:
    """What works of this client: "works" for a feature, or what it said instead."""
    found = _measured(name, served, served.model)
    if served.with_tools and "tools" in found:
        found[TOOLS_OF_A_TEMPLATE] = _measured(name, served, served.with_tools, "tools")["tools"]
    return found


def _measured(name: str, served: Served, model: str, *features: str) -> dict[str, str]:
    client = CLIENTS[name]
    argv = [*_program(client), name, served.address, served.key, model, *features]
    environment = {key: value for key, value in os.environ.items() if key in ("PATH", "HOME", "TMPDIR", "LANG")}
    quiet = {"PROMPTFOO_DISABLE_TELEMETRY": "1", "PROMPTFOO_DISABLE_UPDATE": "1", "NO_PROXY": "*"}
    with tempfile.TemporaryDirectory() as own:
        done = subprocess.run(
            argv, capture_output=True, text=True, timeout=_CLIENT_S, check=False, cwd=own,
            env=environment | quiet | {"PROMPTFOO_CONFIG_DIR": own},
        )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return dict(json.loads(done.stdout.splitlines()[-1]))


def _program(client: Client) -> tuple[str, ...]:
    if client.environment == "test":
        return sys.executable, str(FOLDER / "python_clients.py")
    if client.is_python:
        venv = REPO_DIR / f".venv-{client.environment}"
        bench = ("setup-local.sh", "bench")
        script, *argv = bench if client.environment == "bench" else ("setup-venv.sh", client.environment, venv)
        subprocess.run([REPO_DIR / "scripts" / script, *argv], check=True)
        return str(venv / "bin" / "python"), str(FOLDER / "python_clients.py")
    return "node", str(installed_node_folder(client.environment) / "node_clients.mjs")


def installed_node_folder(name: str) -> Path:
    """A folder of npm's with what its lock names, made once per lock; install scripts are not run."""
    source = FOLDER / name
    lock = hashlib.sha256((source / "package-lock.json").read_bytes()).hexdigest()[:16]
    folder = Path.home() / ".cache" / "quantyard" / "clients" / f"{name}-{lock}"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(folder / "lock"):
        if not (folder / "ready").exists():
            for file in ("package.json", "package-lock.json"):
                shutil.copy(source / file, folder / file)
            argv = ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund"]
            subprocess.run(argv, cwd=folder, check=True, capture_output=True, timeout=_CLIENT_S)
            (folder / "ready").touch()
        shutil.copy(FOLDER / "node_clients.mjs", folder)
    return folder


def read_results() -> Results:
    """As recorded."""
    return dict(json.loads(RESULTS.read_text())) if RESULTS.exists() else {}


def outcomes(found: Mapping[str, str]) -> dict[str, bool]:
    """Which features work; the words of an error may differ from run to run."""
    return {feature: said == WORKS for feature, said in found.items()}


def main() -> None:
    """Run the clients that are named, and write."""
    gguf = next((REPO_DIR / "artifacts" / "served").glob("*-Q4_K_M.gguf"))
    image = {name: value for name, value in os.environ.items() if name == "SERVER_IMAGE"}
    for setup in SETUPS:
        with tempfile.TemporaryDirectory() as folder, served_demo(gguf, setup, Path(folder), **image) as served:
            for name in sys.argv[1:] or CLIENTS:
                results = read_results()
                results.setdefault(name, {})[setup] = run_client(name, served)
                RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n")
                print(f"{setup}: {name}: {results[name][setup]}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
