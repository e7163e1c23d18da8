"""Chat templates of real models, as llama.cpp's sources bring them. Nothing of them is in this repository."""

from __future__ import annotations

import tarfile
from functools import cache

import pytest

from tests.real_tokenizers import CACHE


@cache
def real_templates() -> dict[str, str]:
    """Name → template. Without the sources, which scripts/wheels.sh gets, the test is skipped."""
    sources = sorted((CACHE.parent / "wheels").glob("*/llama_cpp_python-*.tar.gz"))
    if not sources:
        pytest.skip("the source of llama-cpp-python is not there. Type: scripts/wheels.sh")
    found = {}
    with tarfile.open(sources[-1]) as source:
        for member in source:
            if "/models/templates/" in member.name and member.name.endswith(".jinja"):
                stream = source.extractfile(member)
                assert stream is not None
                found[member.name.rpartition("/")[2].removesuffix(".jinja")] = stream.read().decode()
    return found
