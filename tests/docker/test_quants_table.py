"""The table of quants against the llama-quantize of the image in use."""

from __future__ import annotations

import re
import subprocess

import pytest

from quantyard.quants.catalog import QUANTS

ROW = re.compile(r"^ *(?:(\d+)  or  |          )(\w+) *: ", re.MULTILINE)  # "  15  or  Q4_K_M  :  4.58G, …"
pytestmark = pytest.mark.quick


@pytest.fixture(scope="module")
def help_rows(builder_image: str) -> dict[str, int | None]:
    """Name → llama_ftype of every type that `llama-quantize --help` lists; COPY has no id there."""
    docker = ["docker", "run", "--rm", "--network", "none", "--entrypoint", "/app/llama-quantize"]
    run = subprocess.run([*docker, builder_image, "--help"], capture_output=True, text=True, timeout=120, check=False)
    # The exit code says nothing: --help ends with 1.
    listed = (run.stdout + run.stderr).partition("allowed quantization types")[2]
    return {name: int(number) if number else None for number, name in ROW.findall(listed)}


def test_every_type_of_the_image_is_in_the_table(help_rows: dict[str, int | None]) -> None:
    assert help_rows, "llama-quantize --help lists no types: has its layout changed?"
    missing = sorted(set(help_rows) - {quant.name for quant in QUANTS})
    assert not missing, f"add to quantyard/quants/catalog.py: {missing}"


def test_every_type_of_the_table_is_in_the_image(help_rows: dict[str, int | None]) -> None:
    # No exception for an older image: a build would fail at the quantize stage, after the download.
    unknown = sorted({quant.name for quant in QUANTS} - set(help_rows))
    assert not unknown, f"{unknown} are not known to this image: update it, or drop the rows"


def test_the_ids_agree(help_rows: dict[str, int | None]) -> None:
    table = {quant.name: None if quant.name == "COPY" else quant.ftype for quant in QUANTS}
    assert {name: table.get(name) for name in help_rows} == help_rows
