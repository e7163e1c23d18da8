# ruff: noqa: INP001, T201 (a helper of scripts, which print; not a package)
"""What the scripts that measure serving share: the demo's files, `docker compose up` of some, and how they end. Not run
by itself.
"""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Final, NoReturn

from quantyard.paths import REPO_DIR
from scripts.bench_table import Row
from tests.docker.compose_project import Project

PROMPTS: Final = ("Name a river.", "What is iron?", "Tell me about the sea.", "Why is the sky blue?")
_DEMO_FILES: Final = "local/SmolLM2-135M-Instruct/*/SmolLM2-135M-Instruct-Q4_K_M.gguf"
_CANNOT: Final = 2


def demo_file() -> Path | None:
    """The demo's Q4_K_M, as its last build published it; None where there is none."""
    found = (REPO_DIR / "artifacts").glob(_DEMO_FILES)
    return max(found, key=lambda path: path.stat().st_mtime, default=None)


def existing_file(path: Path | None) -> Path:
    """The file, or the end of the script: it cannot measure without one."""
    if path is None or not path.is_file():
        print("The demo's model is not here. Type: make demo", file=sys.stderr)
        sys.exit(_CANNOT)
    return path.resolve()


@contextmanager
def compose_project(files: Mapping[str, Path], settings: str = "") -> Iterator[Project]:
    """A copy of the project that serves copies of these files by name; removed at the end. `settings`: its .env."""
    with tempfile.TemporaryDirectory(prefix="qy-bench") as name:
        project = Project(Path(name))
        for model, path in files.items():
            shutil.copy(path, project.folder / "artifacts" / "served" / f"{model}.gguf")
        (project.folder / ".env").write_text(settings)
        try:
            yield project
        finally:
            project.down()


def run_compose(project: Project, *argv: str, **variables: str) -> None:
    """`docker compose …`; where it fails, what it said, and the end of the script."""
    done = project.compose(*argv, **variables)
    if done.returncode != 0:
        print(done.stderr, project.compose("logs", "--tail", "30").stdout, file=sys.stderr)
        sys.exit(_CANNOT)


def end_with_table(rows: Sequence[Row], *, as_json: bool) -> NoReturn:
    """Print the rows; the exit code is 1 if a limit does not hold."""
    if as_json:
        print(json.dumps([asdict(row) | {"holds": row.holds} for row in rows], indent=1))
    else:
        print(*map(Row.line, rows), sep="\n")
    sys.exit(0 if all(row.holds for row in rows) else 1)
