#!/usr/bin/env python3
"""Kill a matrix a hundred times, spread evenly over its stages, and look at what is left after each kill.

How to run:

    make demo                                   # once: the tiny model takes its tokenizer
    .venv/bin/python scripts/bench_kills.py     # about 12 minutes on 2 cores

    --kills N     how many, at least (default: 100)             --seed N    of the moments (default: 21)
    --json        one object on stdout

It needs the group `test` (scripts/setup-venv.sh test): the model comes from a Hub on loopback. ENGINE counts as
everywhere, and is docker where it is not set.

The matrix is a private repo's, fetched with a token, calibrated, quantized, verified and measured. It runs once
undisturbed. Then every kill is SIGKILL to the command while a chosen stage runs, after a random part of the time that
it took undisturbed; the next run goes on from there to the next kill, and the last of a round to the end. After each
kill:

    every file of every finished stage has the SHA-256 of its result, and none of them was made again;
    the manifest can be read, and every file under a final name is one that was finished;
    no process and no container of the run goes on;
    the token is in no file.

After each round the files have the same bytes, and the scores and divergences the same values, as undisturbed.
Printed: for each stage, how many kills met it, and after how many something was wrong. A kill counts for each stage
that ran, so those that run side by side may have more.

Exit codes:  0 nothing was wrong · 1 something was (it is named) · 2 it cannot be tried
"""

# ruff: noqa: T201 (a script for people prints), S101 (a broken promise is an AssertionError)
from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

REPO_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO_DIR))

from scripts.bench_build import cannot, say  # noqa: E402 (the path above comes first)
from scripts.bench_matrix import DEMO  # noqa: E402

try:
    from tests.conftest import run, start
    from tests.hub_server import HubServer
    from tests.kills import Witness, assert_nothing_is_left_over, containers_in, files_with, processes_in
    from tests.tiny_model import write_tiny_model
except ImportError as error:
    cannot(f"{error}. Type: scripts/setup-venv.sh test")

REPO = "org/tiny"
EXAMPLE = REPO_DIR / "docs" / "examples" / "own-questions"
LITTLE = "divergence: {n_chunks: 1, n_ctx: 128}\nspeed: {repeats: 1, prompt_tokens: 64, generated_tokens: 8}\n"
FETCH_BYTES_PER_S = 8_000_000  # the tiny model in about a second: time enough to be killed
PER_ROUND = 3  # kills of each stage before the round is run to its end
ALIKE = ("convert", "calibrate", "quantize")  # stages whose files are the same bytes whenever they are made
RUN_TIMEOUT_S = 600.0
POLL_S = 0.005
Essence = dict[str, Any]


@dataclass(frozen=True)
class Usual:
    """The undisturbed run: what it ended with, and its stages by label, in their order, with their seconds."""

    essence: Essence
    seconds: Mapping[str, float]

    def kinds(self) -> list[str]:
        """The stages' names, in the order in which they first run."""
        return list(dict.fromkeys(map(kind_of, self.seconds)))


def kind_of(folder: str) -> str:
    """`.quantize-plain-Q4_K_M-0123456789ab` → `quantize`."""
    return folder.removeprefix(".").partition("-")[0]


def label_of(folder: str) -> str:
    """The same without the key, which the inputs decide."""
    return folder.removeprefix(".").rpartition("-")[0]


@dataclass
class Yard:
    """Where stores are made, and what every matrix is asked for."""

    scratch: Path
    asked: dict[str, str]
    token: str

    def store(self, name: str) -> Store:
        return Store(self, self.asked | {"ARTIFACTS": str(self.scratch / name)}, Witness(self.scratch / name))


@dataclass
class Store:
    """One store and the runs in it."""

    yard: Yard
    asked: dict[str, str]
    witness: Witness

    def finish(self) -> Essence:
        """Run to the end.

        Raises:
            AssertionError: that failed, or left something that is not whole.
        """
        done = run("matrix", **self.asked)
        assert done.returncode == 0, done.stderr[-3000:]
        self.look()
        return self.essence()

    def timed(self) -> Usual:
        """The same, undisturbed, and how long each stage worked in its folder."""
        seen: dict[str, list[float]] = {}
        process = start("matrix", **self.asked)
        while process.poll() is None:
            for folder in self.witness.stages(".*"):
                seen.setdefault(label_of(folder.name), []).append(time.monotonic())
            time.sleep(POLL_S)
        _out, said = process.communicate()
        if process.returncode != 0:
            cannot(f"{said[-3000:]}\nThe matrix fails without any kill, too.")
        self.look()
        return Usual(self.essence(), {label: times[-1] - times[0] for label, times in seen.items()})

    def essence(self) -> Essence:
        """What every run must end with. Speeds and times are of the moment."""
        (path,) = self.witness.artifacts.glob("*/*/*/manifest.json")
        manifest = json.loads(path.read_text())
        files = {
            f"{label}/{entry['path']}": entry["sha256"]
            for label, stage in manifest["stages"].items() if stage["request"]["stage"] in ALIKE
            for entry in stage["outputs"]
        }  # fmt: skip
        measured = {
            m["file"]["label"]: [m["scores"], m["comparisons"], (m["divergence"] or {}).get("mean_kld")]
            for report in manifest["evaluations"].values() for m in report["measurements"]
        }  # fmt: skip
        return {"files": files | {q: r["sha256"] for q, r in manifest["quants"].items()}, "measured": measured}

    def has(self, label: str) -> bool:
        """Whether this stage is finished."""
        return label in {label_of(folder.name) for folder in self.witness.stages()}

    def kill(self, label: str, after_s: float) -> set[str] | None:
        """Kill the run so long after the stage began; the kinds of stage that ran, or None if it had ended before."""
        began, process = time.time(), start("matrix", **self.asked)
        try:
            deadline = time.monotonic() + RUN_TIMEOUT_S
            while process.poll() is None and label not in map(label_of, self.witness.on_their_way(began)):
                assert time.monotonic() < deadline, f"{label} did not begin"
                time.sleep(POLL_S)
            process.wait(after_s)
        except subprocess.TimeoutExpired:
            process.kill()
            _out, said = process.communicate()
            return {kind_of(folder) for folder in self.witness.on_their_way(began)}
        finally:
            process.kill()
        _out, said = process.communicate()
        assert process.returncode == 0, said[-3000:]
        return None

    def look(self) -> None:
        """After a kill, or at the end.

        Raises:
            AssertionError: a promise is broken.
        """
        looks: list[Callable[[Path], list[str]]] = [processes_in]
        looks += [containers_in] if self.asked["ENGINE"] == "docker" else []
        for each in looks:
            assert_nothing_is_left_over(each, self.witness.artifacts)
        self.witness.check()

    def leaks(self) -> list[str]:
        """The files that hold the token, which are removed: they do not count for the next kill too."""
        holders = list(files_with(self.yard.token, self.yard.scratch))
        for path in holders:
            path.unlink()
        return [str(path.relative_to(self.yard.scratch)) for path in holders]


@dataclass
class Tally:
    """The kills so far."""

    usual: Usual
    wanted: int  # kills of each kind of stage
    rng: random.Random
    kills: Counter[str] = field(default_factory=Counter)  # by kind; "between" where none ran
    wrong: dict[str, list[str]] = field(default_factory=dict)
    n_kills: int = 0

    def short(self) -> list[str]:
        """The kinds of stage that were not met often enough, in their order."""
        return [kind for kind in self.usual.kinds() if self.kills[kind] < self.wanted]

    def round(self, store: Store) -> None:
        """From nothing to the end, with a few kills of each stage that is still short. Ends early where the store is
        not whole.
        """
        hit = {"start"}
        try:
            for label in self._chosen():
                for _ in range(min(PER_ROUND, self.wanted - self.kills[kind_of(label)])):
                    if store.has(label):
                        break  # the last kill came too late for it: the next run would go on to the end
                    ran = store.kill(label, self.usual.seconds[label] * self.rng.random())
                    if ran is None:
                        break  # it was the last stage, and the run ended first
                    hit = ran or {"between"}
                    self.kills.update(hit)
                    self.n_kills += 1
                    store.look()
                    if holders := store.leaks():
                        self._note(hit, f"the token is in {', '.join(holders)}")
            assert store.finish() == self.usual.essence, "it ends otherwise than undisturbed"
        except AssertionError as error:
            self._note(hit, str(error))

    def _note(self, hit: set[str], finding: str) -> None:
        for kind in hit:
            self.wrong.setdefault(kind, []).append(finding)
        say(f"wrong after a kill in {', '.join(hit)}: {finding}")

    def _chosen(self) -> Iterator[str]:
        """One of each kind's stages, in the order in which they run."""
        labels = list(self.usual.seconds)
        chosen = {self.rng.choice([each for each in labels if kind_of(each) == kind]) for kind in self.short()}
        return (label for label in labels if label in chosen)


@contextmanager
def yard(engine: str) -> Iterator[Yard]:
    """The Hub with the tiny model, and a place on disk."""
    scratch_in = REPO_DIR / "artifacts"
    scratch_in.mkdir(exist_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=".kills-", dir=scratch_in) as name,
        HubServer(_address(engine)) as hub,
        tempfile.TemporaryDirectory() as elsewhere,
    ):
        scratch = Path(name)
        model = write_tiny_model(Path(elsewhere) / "tiny", DEMO)
        hub.add_repo(REPO, folder=model, private=True, license="apache-2.0")
        hub.fail("model.safetensors", times=None, bytes_per_s=FETCH_BYTES_PER_S)
        shutil.copytree(EXAMPLE, Path(elsewhere) / "suite")
        suite = Path(elsewhere) / "suite" / "suite.yaml"
        suite.write_text(suite.read_text().split("divergence:")[0] + LITTLE)
        for folder in ("tmp", "runtime"):
            (scratch / folder).mkdir(mode=0o700)
        asked = {
            "MODEL": REPO, "QUANTS": "Q4_K_M,Q8_0", "SUITE": str(suite), "LIMIT": "2", "CHUNKS": "4", "ENGINE": engine,
            "HF_ENDPOINT": hub.endpoint, "HF_TOKEN": hub.token, "NO_PROXY": hub.host, "no_proxy": hub.host,
            "TMPDIR": str(scratch / "tmp"), "XDG_RUNTIME_DIR": str(scratch / "runtime"),
        }
        yield Yard(scratch, asked, hub.token)


def _address(engine: str) -> str:
    """Where a stage finds this machine."""
    if engine != "docker":
        return "127.0.0.1"
    form = "{{(index .IPAM.Config 0).Gateway}}"
    argv = ["docker", "network", "inspect", "bridge", "--format", form]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        cannot(f"{done.stderr.strip()}\nNo Docker daemon answers. Without one: ENGINE=local scripts/bench_kills.py")
    return done.stdout.strip()


def main() -> None:
    """Kill, print the table, and exit as nothing or something was wrong."""
    args = parser().parse_args()
    if not (DEMO / "config.json").is_file():
        cannot(f"{DEMO} is not a model folder. Make it first: make demo")
    began = time.monotonic()
    with yard(os.environ.get("ENGINE", "docker")) as place:
        usual = place.store("undisturbed").timed()
        wanted = -(-args.kills // len(usual.kinds()))
        tally, n_rounds = Tally(usual, wanted, random.Random(args.seed)), 0  # noqa: S311 (moments, no secrets)
        most = 3 + 2 * -(-wanted // PER_ROUND)  # a stage that is over in no time may be missed again and again
        while tally.short() and n_rounds < most:
            n_rounds += 1
            name = f"round-{n_rounds}"
            tally.round(place.store(name))
            shutil.rmtree(place.scratch / name, ignore_errors=True)
            say(f"round {n_rounds}: {tally.n_kills} kills, {time.monotonic() - began:.0f} s")
    print_found(tally, n_rounds, time.monotonic() - began, as_json=args.json)
    if missed := tally.short():
        say(f"met less than {wanted} times: {', '.join(missed)}")
    sys.exit(1 if tally.wrong or missed else 0)


def print_found(tally: Tally, n_rounds: int, took_s: float, *, as_json: bool) -> None:
    """Stage → kills → after how many something was wrong."""
    kinds = [*tally.usual.kinds(), *(kind for kind in ("between", "start") if kind in (*tally.kills, *tally.wrong))]
    rows = {kind: (tally.kills[kind], len(tally.wrong.get(kind, ()))) for kind in kinds}
    if as_json:
        found = {"kills": tally.n_kills, "rounds": n_rounds, "seconds": round(took_s), "wrong": tally.wrong}
        stages = {kind: {"kills": n, "corrupt": wrong} for kind, (n, wrong) in rows.items()}
        print(json.dumps(found | {"stages": stages}, indent=2))
        return
    print(f"{'stage':<12}{'kills':>8}{'corrupt':>10}")
    for kind, (n, wrong) in rows.items():
        print(f"{kind:<12}{n:>8}{wrong:>10}")
    print(f"{tally.n_kills} kills in {n_rounds} rounds, {took_s:.0f} s; {sum(map(len, tally.wrong.values()))} findings")


def parser() -> argparse.ArgumentParser:
    """The options."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--kills", type=int, default=100)
    options.add_argument("--seed", type=int, default=21)
    options.add_argument("--json", action="store_true")
    return options


if __name__ == "__main__":
    main()
