"""Kills what takes part in builds on a cluster, at random moments: the driver, Slurm's daemons, nodes, stages."""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.cluster.shared_stores import state_after_kills
from tests.cluster.slurm_nodes import SlurmNodes, wait_until
from tests.conftest import run_json, start
from tests.kills import Witness

QUANTS = "Q8_0,Q4_0,Q4_1,Q5_0,Q5_1"
_LONGEST_GAP_S = 2.0
_ENDS_S = 300.0
_SIGNS = {"node run": "-m quantyard node run", "slurmstepd": "slurmstepd: [", "stage": "-m builder."}
_GIVES_UP = 6  # a driver whose job was lost again and again


@dataclass
class FleetKills:
    """Builds of one model, each in a store of its own, and what was killed while they ran.

    Args:
        asked: the variables of a build; ARTIFACTS is a folder for the stores.
    """

    slurm: SlurmNodes
    asked: dict[str, str]
    chance: random.Random
    killed: Counter[str] = field(default_factory=Counter)
    gave_up: int = 0
    stores: list[Path] = field(default_factory=list)
    _driver: subprocess.Popen[str] | None = None

    def kill(self, n_kills: int, check: Callable[[dict[str, Any]], None]) -> None:
        """Kill so many; every build is finished and checked."""
        try:
            while self.killed.total() < n_kills:
                self._begin_round()
                while self._goes_on() and self.killed.total() < n_kills:
                    time.sleep(self.chance.uniform(0.1, _LONGEST_GAP_S))
                    self._kill_one()
                self._stop_driver()
                self.slurm.mend_daemons()
                self.slurm.resume()
                check(run_json("build", **self._of_round()))
        finally:
            self._stop_driver()
            if left := self.slurm.jobs():
                self.slurm.call("scancel", *left)

    def states(self) -> list[dict[str, Any]]:
        """What is in the stores afterwards, and what `gc` leaves of attempts."""
        wait_until(lambda: not [pid for pid, words in self._on_nodes() if "node run" in words], _ENDS_S)
        for store in self.stores:
            Witness(store).check()
        with ThreadPoolExecutor() as beside:  # each waits whether a lease is renewed
            return list(beside.map(lambda store: state_after_kills(str(store / ".cluster" / "store")), self.stores))

    def _of_round(self) -> dict[str, str]:
        return self.asked | {"QUANT": QUANTS, "ARTIFACTS": str(self.stores[-1])}

    def _begin_round(self) -> None:
        self.stores.append(Path(self.asked["ARTIFACTS"]) / f"round-{len(self.stores) + 1}")
        self._driver = start("build", **self._of_round())

    def _goes_on(self) -> bool:
        """Whether the build has not ended; a driver that gave up is started again."""
        if self._driver is None or self._driver.poll() is None:
            return True
        _, said = self._driver.communicate()
        assert self._driver.returncode in (0, _GIVES_UP), said[-3000:]
        if self._driver.returncode == 0:
            return False
        self.gave_up += 1
        self._driver = start("build", **self._of_round())
        return True

    def _kill_one(self) -> None:
        """One of those that are there, each kind as likely as another."""
        found = {kind: pids for kind, pids in self._victims().items() if pids}
        kind = self.chance.choice(sorted(found))
        pid = self.chance.choice(sorted(found[kind]))
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:  # it has just ended
            return
        self.killed[kind] += 1
        if kind == "driver":
            self._stop_driver()
            self._driver = start("build", **self._of_round())
        if kind in ("slurmd", "slurmctld"):
            wait_until(lambda: not Path(f"/proc/{pid}").exists())
            self.slurm.mend_daemons()

    def _victims(self) -> dict[str, list[int]]:
        found: dict[str, list[int]] = {kind: [] for kind in _SIGNS}
        for pid, words in self._on_nodes():
            for kind, sign in _SIGNS.items():
                found[kind] += [pid] * (sign in words)
        found["driver"] = [self._driver.pid] if self._driver and self._driver.poll() is None else []
        found["slurmctld"] = [self.slurm.pid("ctld")]
        found["slurmd"] = [self.slurm.pid("node1"), self.slurm.pid("node2")]
        return found

    def _on_nodes(self) -> Iterator[tuple[int, str]]:
        yield from self.slurm.processes()

    def _stop_driver(self) -> None:
        if self._driver is not None:
            self._driver.kill()
            with contextlib.suppress(ValueError):
                self._driver.communicate()
            self._driver = None
