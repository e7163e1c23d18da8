#!/usr/bin/env python3
"""Reads `pip config list`, and prints the same settings as options of `uv pip install`, one word a line, then `end`.

The file of certificates is printed as a variable, since uv has no option for it. An empty line stands for a setting
that uv does not have.
"""

from __future__ import annotations

import sys
from ast import literal_eval
from collections.abc import Iterable, Iterator

OPTIONS = {"index-url": "--default-index", "extra-index-url": "--index", "find-links": "--find-links"}
# What only changes how pip speaks or waits; and constraints, since a lock names every version.
NEEDLESS = {
    "cache-dir", "constraint", "default-timeout", "disable-pip-version-check", "no-color", "no-input",
    "no-warn-script-location", "progress-bar", "quiet", "require-virtualenv", "retries", "root-user-action",
    "timeout", "verbose",
}  # fmt: skip
# pip's own order: what the command's section says goes before what all commands are told, and variables before both.
SECTIONS = ("global", "install", ":env:")


def read_settings(lines: Iterable[str]) -> dict[str, str]:
    """The value that `pip install` takes of each setting."""
    found: dict[str, dict[str, str]] = {section: {} for section in SECTIONS}
    for line in lines:
        name, _, value = line.strip().partition("=")
        section, _, option = name.rpartition(".")
        if section in found:
            found[section][option] = str(literal_eval(value))
    return found["global"] | found["install"] | found[":env:"]


def list_options(settings: dict[str, str]) -> Iterator[str]:
    """The words of uv's command line, and a variable."""
    for name, value in settings.items():
        if name in OPTIONS:
            for word in value.split():
                yield from (OPTIONS[name], word)
        elif name == "cert":
            yield f"SSL_CERT_FILE={value}"
        elif name == "no-index":
            if value.lower() in {"1", "true", "yes", "on"}:
                yield "--no-index"
        elif name not in NEEDLESS and value:
            yield ""


if __name__ == "__main__":
    sys.stdout.write("\n".join([*list_options(read_settings(sys.stdin)), "end", ""]))
