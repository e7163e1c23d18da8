#!/usr/bin/env python3
"""Measure what the proxy in front of the served model costs: the same server, asked through it and directly, in turns.

How to run, on a quiet machine, about 3 minutes:

    make demo                                # once: it makes the model that is served
    .venv/bin/python scripts/bench_proxy.py  # at most 3 % of the tokens/s, at most 3 ms for each request

    --model FILE   default: the demo's Q4_K_M     --turns N   default: 20, half of them begin with the proxy
    --json         one object on stdout

`docker compose up` is run in a copy of the project. Directly means: at the address of llama-server's container on its
network. What is measured:

    tokens/s      of 1 and of 4 clients that stream 64 tokens each; the median of the turns, and of each turn's ratio
    milliseconds  from a request for one token to its whole answer, on one connection each time; and of /tokenize, where
                  llama-server does next to nothing: the median of the differences of pairs

Exit codes:  0 every limit holds · 1 one does not (it is named) · 2 it cannot be measured
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from http.client import HTTPConnection
from pathlib import Path
from typing import NoReturn

REPO_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO_DIR))

from scripts.bench_table import Row  # noqa: E402
from scripts.served_demo import (  # noqa: E402
    PROMPTS,
    compose_project,
    demo_file,
    end_with_table,
    existing_file,
    run_compose,
)
from tests.docker.compose_project import free_port  # noqa: E402

TOKENS = 64
CLIENTS = (1, 4)
PAIRS = 10  # of short requests in each turn
MAX_LOSS, MAX_MS = 0.03, 3.0


@dataclass(frozen=True)
class Way:
    """One of the two ways to the same server."""

    host: str
    port: int
    key: str

    def ask(self, path: str, body: dict[str, object]) -> tuple[float, int]:
        """Seconds to the whole answer, and the server-sent events in it."""
        connection = HTTPConnection(self.host, self.port, timeout=300)
        started = time.perf_counter()
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        connection.request("POST", path, json.dumps(body), headers)
        response = connection.getresponse()
        events = sum(line.startswith(b"data: {") for line in response)
        seconds = time.perf_counter() - started
        connection.close()
        if response.status != 200:
            raise RuntimeError(f"{path} was answered with {response.status}")
        return seconds, events

    def rate(self, clients: int) -> float:
        """Tokens/s of so many clients together."""
        def stream(number: int) -> int:
            body = {"prompt": f"{number}. {PROMPTS[number % len(PROMPTS)]}", "max_tokens": TOKENS, "temperature": 0,
                    "ignore_eos": True, "stream": True, "cache_prompt": False}  # fmt: skip
            return self.ask("/v1/completions", body)[1]

        started = time.perf_counter()
        with ThreadPoolExecutor(clients) as pool:
            tokens = sum(pool.map(stream, range(clients)))
        return tokens / (time.perf_counter() - started)


@contextmanager
def served(model: Path) -> Iterator[tuple[Way, Way]]:
    """Both ways to a server of this file: through the proxy, and directly."""
    port = free_port()
    with compose_project({"model": model}) as project:
        run_compose(project, "up", "--detach", "--build", "--wait", PORT=str(port))
        # Its own network has no way to it from here.
        server, form = project.container("server"), "{{.NetworkSettings.Networks.bridge.IPAddress}}"
        subprocess.run(["docker", "network", "connect", "bridge", server], capture_output=True, check=True)
        argv = ["docker", "inspect", "--format", form, server]
        address = subprocess.run(argv, capture_output=True, text=True, check=True).stdout.strip()
        yield Way("127.0.0.1", port, project.key()), Way(address, 8080, project.key())


def throughput(proxied: Way, direct: Way, turns: int) -> list[Row]:
    """Tokens/s, the ways taking turns."""
    rows = []
    for clients in CLIENTS:
        rates: dict[Way, list[float]] = {proxied: [], direct: []}
        for way in _turns(proxied, direct, turns):
            rates[way].append(way.rate(clients))
        ratio = statistics.median(mine / other for mine, other in zip(rates[proxied], rates[direct], strict=True))
        mine, other = (statistics.median(rates[way]) for way in (proxied, direct))
        detail = f"{mine:.1f} against {other:.1f}"
        rows.append(Row(f"tokens/s, {clients} client{'s' * (clients > 1)}", ratio, 1 - MAX_LOSS, detail))
    return rows


def latency(proxied: Way, direct: Way, turns: int) -> list[Row]:
    """Milliseconds more, of short requests in pairs."""
    requests: dict[str, tuple[str, dict[str, object]]] = {
        "milliseconds more for one token": ("/v1/completions", {"prompt": "One, two,", "max_tokens": 1}),
        "milliseconds more for /tokenize": ("/tokenize", {"content": "One, two, three."}),
    }
    rows = []
    for what, (path, body) in requests.items():
        taken: dict[Way, list[float]] = {proxied: [], direct: []}
        for way in _turns(proxied, direct, turns * PAIRS):
            taken[way].append(way.ask(path, body)[0] * 1000)
        more = statistics.median(mine - other for mine, other in zip(taken[proxied], taken[direct], strict=True))
        mine, other = (statistics.median(taken[way]) for way in (proxied, direct))
        rows.append(Row(what, more, MAX_MS, f"{mine:.2f} ms against {other:.2f} ms", at_most=True, unit="ms"))
    return rows


def _turns(proxied: Way, direct: Way, count: int) -> Iterator[Way]:
    for turn in range(count):
        yield from (proxied, direct) if turn % 2 else (direct, proxied)


MEASUREMENTS: tuple[Callable[[Way, Way, int], list[Row]], ...] = (throughput, latency)


def main() -> NoReturn:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=demo_file())
    parser.add_argument("--turns", type=int, default=20)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    with served(existing_file(args.model)) as (proxied, direct):
        for way in (proxied, direct):
            way.rate(1)
        rows = [row for measure in MEASUREMENTS for row in measure(proxied, direct, args.turns)]
    end_with_table(rows, as_json=args.json)


if __name__ == "__main__":
    main()
