"""Small models of many architectures go through every stage, and what works of them is what the table says."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.architectures.sweep import STAGES, Sweep, read_results, wanted_rows

# Tried at every change: experts, and a state space. The others take an hour.
AT_EVERY_CHANGE = ("mamba", "olmoe")


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=() if n in AT_EVERY_CHANGE else pytest.mark.slow) for n in read_results()]
)
def test_what_works_of_an_architecture_is_what_the_table_says(
    name: str, demo_source: Path, local_tools: None, tmp_path: Path
) -> None:
    ((row, form),) = wanted_rows([name])
    found = Sweep(tmp_path, "local", demo_source).run(row, form)
    recorded = read_results()[name]
    assert {stage: getattr(found, stage) for stage in STAGES} == {stage: recorded[stage] for stage in STAGES}, found.why
