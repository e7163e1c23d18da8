"""Random kills over all that takes part in a build on Slurm: no file is damaged, every build ends, nothing is left."""

from __future__ import annotations

import os
import random
from pathlib import Path
from typing import Any

import pytest

from tests.cluster.fleet_kills import QUANTS, FleetKills
from tests.cluster.slurm_nodes import SlurmNodes
from tests.cluster.test_slurm_build import asked, digests  # noqa: F401  (`asked` is a fixture)
from tests.conftest import run_json

pytestmark = [
    pytest.mark.usefixtures("local_tools"), pytest.mark.alone, pytest.mark.slow,
    pytest.mark.skipif(os.geteuid() != 0, reason="kills daemons, which needs root"),
]  # fmt: skip
SEED = 20


def test_two_hundred_random_kills_of_drivers_nodes_and_daemons_damage_nothing(
    slurm: SlurmNodes, asked: dict[str, str], tmp_path: Path  # noqa: F811
) -> None:
    n_kills = int(os.environ.get("FLEET_KILLS", "200"))
    here = run_json("build", **asked | {"ENGINE": "local", "QUANT": QUANTS, "ARTIFACTS": str(tmp_path / "here")})

    def is_the_same(made: dict[str, Any]) -> None:
        assert digests(made) == digests(here)

    kills = FleetKills(slurm, asked, random.Random(int(os.environ.get("FLEET_SEED", SEED))))
    slurm.mend()
    kills.kill(n_kills, is_the_same)
    states = kills.states()
    print(f"{kills.killed.total()} kills in {len(kills.stores)} builds: {dict(kills.killed)}; gave up {kills.gave_up}")
    print(f"left before gc: {[len(state['left']) for state in states]}")
    for state in states:
        assert state["damaged"] == [] and state["left"] == [] and state["results"] > 0
