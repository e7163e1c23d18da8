"""What works of the client libraries that people use, with the demo as one file and as two, is what the table says."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.clients.rows import CLIENTS
from tests.clients.sweep import SETUPS, Served, outcomes, read_results, run_client, served_demo

# Tried at every change: one of each API and language; they take seconds. The others are 3 GB to install.
AT_EVERY_CHANGE = ("openai", "anthropic", "openai-npm")


@pytest.fixture(scope="module", params=SETUPS)
def setup(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def served(
    server_image: str, demo_q4: Path, setup: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Served]:  # fmt: skip
    with served_demo(demo_q4, setup, tmp_path_factory.mktemp("clients"), SERVER_IMAGE=server_image) as found:
        yield found


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in AT_EVERY_CHANGE else pytest.mark.slow) for n in CLIENTS]
)
def test_what_works_of_a_client_is_what_the_table_says(served: Served, setup: str, name: str) -> None:
    if not CLIENTS[name].is_python and shutil.which("npm") is None and os.environ.get("REQUIRE_TOKENIZERS") != "1":
        pytest.skip("npm is not installed")
    found = run_client(name, served)
    assert outcomes(found) == outcomes(read_results()[name][setup]), found
