#!/usr/bin/env python3
"""Write docs/reference/ and the picture of the floors from the code, so that they cannot say anything else.

Usage:  .venv/bin/python scripts/make_reference.py            write what differs
        .venv/bin/python scripts/make_reference.py --check    write nothing; name what is stale
Exit codes:  0 everything is current, or written · 1 --check found a stale file
"""

# ruff: noqa: T201, E402 (a script for people prints; the path comes before what is found by it)
from __future__ import annotations

import sys
from pathlib import Path

REPO_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO_DIR))

from reference.commands import commands_page, settings_page
from reference.exit_codes import exit_codes_page
from reference.floors_picture import floors_picture
from reference.json_formats import (
    FILE_SCHEMAS,
    json_file,
    json_output_page,
    manifest_page,
    schema_file,
)
from reference.lists import (
    architectures_page,
    clients_page,
    models_page,
    quants_page,
    stages_page,
    suites_page,
)
from reference.markdown import page_text
from reference.python_api import python_reference
from reference.rooms import rooms_page

from quantyard.cli.json_outputs.schemas import SCHEMAS, output_schema


def pages() -> dict[str, str]:
    """Every generated file, by its path below docs/."""
    return {
        "reference/commands.md": page_text("Commands", commands_page()),
        "reference/settings.md": page_text("Settings", settings_page()),
        "reference/exit-codes.md": page_text("Exit codes", exit_codes_page()),
        "reference/quants.md": page_text("Quants", quants_page()),
        "reference/models.md": page_text("Models", models_page()),
        "reference/architectures.md": page_text("Architectures", architectures_page()),
        "reference/clients.md": page_text("Client libraries", clients_page()),
        "reference/suites.md": page_text("Suites", suites_page()),
        "reference/stages.md": page_text("Stages", stages_page()),
        "reference/manifest.md": page_text("Manifest and JSON schemas", manifest_page()),
        "reference/json-output.md": page_text("JSON output", json_output_page()),
        "reference/python-api.md": page_text("Python API", python_reference()),
        **{f"reference/{name}.schema.json": schema_file(name) for name in FILE_SCHEMAS},
        **{f"reference/json/{name}.schema.json": json_file(output_schema(name)) for name in SCHEMAS},
        "architecture/rooms.md": page_text("Rooms", rooms_page()),
        "architecture/floors.svg": floors_picture(REPO_DIR / "pyproject.toml"),
    }


def main() -> None:
    check = "--check" in sys.argv[1:]
    stale = []
    for name, text in pages().items():
        path = REPO_DIR / "docs" / name
        if not path.is_file() or path.read_text() != text:
            stale.append(path.relative_to(REPO_DIR).as_posix())
            if not check:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(text)
    if stale:
        print("Stale; type make reference:" if check else "Written:", *stale, sep="\n  ")
    sys.exit(1 if stale and check else 0)


if __name__ == "__main__":
    main()
