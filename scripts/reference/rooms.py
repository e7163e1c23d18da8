# ruff: noqa: INP001 (a helper of scripts, not a package)
"""The page on what each room holds."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

from reference.markdown import REPO_DIR, code_text, first_sentence, table_text


def rooms_page() -> Iterator[str]:
    """The rooms, each with its docstring."""
    yield "What each room holds, as its own docstring says. [Architecture](index.md) gives a reading order."
    for package in ("quantyard", "builder", "eval", "server"):
        yield f"## {package}"
        rows = ((code_text(path.relative_to(REPO_DIR).as_posix()), text) for path, text in _said_in(REPO_DIR / package))
        yield table_text(("room or module", "what it holds"), rows)


def _said_in(package: Path) -> Iterator[tuple[Path, str]]:
    for path in sorted(package.iterdir()):
        module = path / "__init__.py" if path.is_dir() else path
        if module.suffix == ".py" and module.is_file() and path.name not in ("__init__.py", "__main__.py"):
            yield path, first_sentence(ast.get_docstring(ast.parse(module.read_text())) or "")
