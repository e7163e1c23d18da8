#!/usr/bin/env python3
"""Keep `docker compose --profile monitoring up` with two models busy for minutes, and look at it in Prometheus.

How to run:

    make demo                                  # once: it makes the files that are served
    .venv/bin/python scripts/soak_serve.py     # ten minutes of load, and two more

    --minutes N      of load, 10 by default       --clients N     at once, 6 by default
    --memory SIZE    MEMORY of the server         --picture FILE  Prometheus's page, by chromium and chromedriver
    --prometheus IMAGE                            another Prometheus than compose.yaml's: the stand-in of
                                                  scripts/base-images.sh has no graph on its page, that of Debian
                                                  bookworm's package has
    --json           one object on stdout

It ends by itself, and removes what it made. Clients ask both models in turn: chats, completions, streams on kept
connections, JSON schemas, /tokenize, and streams that the client leaves. After the load everything is stopped while
streams are in flight, and started again.

What has to hold:

    answers       every request is answered in whole; a stream has its last event
    in flight     of the streams that the stop cut, each ends in an error, or breaks; none seems complete
    stop          within 10 s, every container with exit code 0
    again         what Prometheus counted before the stop is there after it, of both models; both answer again
    memory        of the server at the end at most 1.25 x that after the first fifth of the load

Exit codes:  0 it all holds · 1 something does not (it is named) · 2 it cannot be tried
"""

# ruff: noqa: T201 (a script for people prints)
from __future__ import annotations

import argparse
import random
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NoReturn
from urllib.parse import quote

import requests

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
from tests.docker.compose_project import Project, free_port  # noqa: E402

PROFILES: Final = ("--profile", "cpu", "--profile", "monitoring")
COUNTED: Final = "max_over_time(llamacpp:tokens_predicted_total[1h])"
RATE: Final = "rate(llamacpp:tokens_predicted_total[1m])"
# As old Prometheus and new ones read it: two graphs.
GRAPH: Final = "&".join(
    f"g{number}.expr={quote(query)}&g{number}.tab=0&g{number}.range_input=15m"
    for number, query in enumerate((RATE, "llamacpp:requests_processing"))
)
SAMPLE_S, SCRAPE_S = 20.0, 40.0
MAX_STOP_S, MAX_GROWTH = 10.0, 1.25
SCHEMA: Final = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}


@dataclass
class Tally:
    """What became of requests."""

    whole: Counter[str] = field(default_factory=Counter)  # by kind
    left: int = 0  # streams that the client left
    broken: list[str] = field(default_factory=list)  # refused, cut, or without an end
    ended: Counter[str] = field(default_factory=Counter)  # how those in flight at the stop ended


@dataclass
class Load:
    """A project that is up, and clients that ask it."""

    project: Project
    port: int
    prometheus_port: int
    models: tuple[str, ...]
    tally: Tally = field(default_factory=Tally)
    is_stopping: threading.Event = field(default_factory=threading.Event)
    is_over: threading.Event = field(default_factory=threading.Event)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def compose(self, *argv: str) -> None:
        ports = {"PORT": str(self.port), "PROMETHEUS_PORT": str(self.prometheus_port)}
        run_compose(self.project, *PROFILES, *argv, **ports)

    def client(self, number: int) -> None:
        """Ask until it is over, on one kept connection."""
        choose = random.Random(number)  # noqa: S311 (which request comes next)
        with requests.Session() as session:
            session.headers["Authorization"] = f"Bearer {self.project.key()}"
            while not self.is_over.is_set() and not self.is_stopping.is_set():
                kind = choose.choice(list(KINDS))
                self._ask(session, kind, choose)

    def _ask(self, session: requests.Session, kind: str, choose: random.Random) -> None:
        try:
            found = KINDS[kind](self, session, choose)
        except (requests.RequestException, ValueError, KeyError) as error:
            found = f"{type(error).__name__}: {error}"
        with self.lock:
            if self.is_stopping.is_set():
                self.tally.ended["whole" if not found else "left" if found == LEFT else "with an error"] += 1
            elif not found:
                self.tally.whole[kind] += 1
            elif found == LEFT:
                self.tally.left += 1
            else:
                self.tally.broken.append(f"{kind}: {found[:300]}")

    def post(self, session: requests.Session, path: str, body: dict[str, Any], **more: Any) -> requests.Response:
        return session.post(f"http://127.0.0.1:{self.port}{path}", json=body, timeout=300, **more)

    def counted(self) -> dict[str, float]:
        """Tokens that Prometheus has counted, by model."""
        return {one["metric"]["model"]: float(one["value"][1]) for one in self._found("query", query=COUNTED)}

    def rates(self, seconds: float) -> dict[str, list[float]]:
        """Tokens a second that Prometheus saw, of each model in each of the last minutes."""
        now = time.time()
        found = self._found("query_range", query=RATE, start=now - seconds, end=now, step=60)
        return {one["metric"]["model"]: [round(float(value), 1) for _, value in one["values"]] for one in found}

    def _found(self, how: str, **parameters: object) -> list[dict[str, Any]]:
        url = f"http://127.0.0.1:{self.prometheus_port}/api/v1/{how}"
        answer = requests.get(url, params=parameters, timeout=20).json()  # type: ignore[arg-type]
        return list(answer["data"]["result"])

    def memory_bytes(self) -> int:
        """Of the server's container, as docker reads it; 0: it cannot."""
        argv = ["docker", "stats", "--no-stream", "--format", "{{.MemUsage}}", self.project.container("server")]
        said = subprocess.run(argv, capture_output=True, text=True, check=False).stdout.split("/")[0].strip()
        for unit, factor in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
            if said.endswith(unit):
                return int(float(said.removesuffix(unit)) * factor)
        return 0


# ---- what clients ask: "" if the answer is whole, else what is wrong with it ---------------------------------

LEFT: Final = "the client left"


def _body(load: Load, choose: random.Random, **more: object) -> dict[str, Any]:
    return {"model": choose.choice(load.models), "max_tokens": choose.randint(4, 48), "temperature": 0.7, **more}


def ask_chat(load: Load, session: requests.Session, choose: random.Random) -> str:
    body = _body(load, choose, messages=[{"role": "user", "content": choose.choice(PROMPTS)}])
    return _unfinished(load.post(session, "/v1/chat/completions", body), body["model"])


def ask_completion(load: Load, session: requests.Session, choose: random.Random) -> str:
    body = _body(load, choose, prompt=choose.choice(PROMPTS))
    return _unfinished(load.post(session, "/v1/completions", body), body["model"])


def ask_schema(load: Load, session: requests.Session, choose: random.Random) -> str:
    schema = {"type": "json_schema", "json_schema": {"name": "n", "schema": SCHEMA}}
    body = _body(load, choose, messages=[{"role": "user", "content": "A number, as JSON."}], response_format=schema)
    return _unfinished(load.post(session, "/v1/chat/completions", body), body["model"])


def ask_tokens(load: Load, session: requests.Session, choose: random.Random) -> str:
    answer = load.post(session, "/tokenize", {"model": choose.choice(load.models), "content": "One, two, three."})
    return "" if answer.status_code == 200 and len(answer.json()["tokens"]) > 3 else answer.text


def ask_stream(load: Load, session: requests.Session, choose: random.Random) -> str:
    messages = [{"role": "user", "content": choose.choice(PROMPTS)}]
    body = _body(load, choose, messages=messages, stream=True)
    with load.post(session, "/v1/chat/completions", body, stream=True) as answer:
        lines = [line for line in answer.iter_lines() if line]
    return "" if lines[-1:] == [b"data: [DONE]"] else f"{answer.status_code}, ends with {lines[-2:]}"


def ask_and_leave(load: Load, session: requests.Session, choose: random.Random) -> str:
    del session
    body = _body(load, choose, prompt="One, two,", max_tokens=4000, ignore_eos=True, stream=True)
    with requests.Session() as own:
        own.headers["Authorization"] = f"Bearer {load.project.key()}"
        answer = load.post(own, "/v1/completions", body, stream=True)
        lines = [next(answer.iter_lines(chunk_size=1)) for _ in range(1)]
        answer.close()
    return LEFT if answer.status_code == 200 and lines[0].startswith(b"data: {") else f"{answer.status_code} {lines}"


def _unfinished(answer: requests.Response, model: str) -> str:
    if answer.status_code != 200:
        return f"{answer.status_code} {answer.text}"
    found = answer.json()
    is_whole = found["choices"][0]["finish_reason"] in ("stop", "length") and found["model"] == model
    return "" if is_whole else answer.text


KINDS: Final[dict[str, Callable[[Load, requests.Session, random.Random], str]]] = {
    "chat": ask_chat, "completion": ask_completion, "JSON schema": ask_schema, "tokenize": ask_tokens,
    "stream": ask_stream, "left": ask_and_leave,
}  # fmt: skip


# ---- the course of it ---------------------------------------------------------------------------------------


@contextmanager
def served(files: dict[str, Path], settings: dict[str, str]) -> Iterator[Load]:
    """`docker compose up` of copies of these files, by name, in a copy of the project."""
    text = "".join(f"{name}={value}\n" for name, value in settings.items() if value)
    with compose_project(files, text) as project:
        load = Load(project, free_port(), free_port(), tuple(files))
        load.compose("up", "--detach", "--build", "--wait")
        yield load


def keep_busy(load: Load, seconds: float, clients: int) -> list[int]:
    """Start the clients; returns the memory of the server now and then, in bytes, once the time is over."""
    for number in range(clients):
        threading.Thread(target=load.client, args=(number,), daemon=True).start()
    end, sizes = time.monotonic() + seconds, []
    while (rest := end - time.monotonic()) > 0:
        time.sleep(min(SAMPLE_S, rest))
        sizes.append(load.memory_bytes())
        tally = load.tally
        print(f"{rest:4.0f} s left: {sum(tally.whole.values())} whole, {tally.left} left by the client, "
              f"{len(tally.broken)} broken; {sizes[-1] / 2**20:.0f} MiB", file=sys.stderr, flush=True)  # fmt: skip
    return sizes


def take_picture(load: Load, path: Path) -> None:
    """Prometheus's page of the tokens a second of each model."""
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    for flag in ("--headless=new", "--no-sandbox", "--disable-gpu", "--window-size=1280,1700"):
        options.add_argument(flag)
    driver = webdriver.Chrome(options, Service(shutil.which("chromedriver") or ""))
    try:
        driver.get(f"http://127.0.0.1:{load.prometheus_port}/graph?{GRAPH}")
        time.sleep(5)  # until its graph is drawn
        driver.save_screenshot(str(path))
    finally:
        driver.quit()


def stop_in_flight(load: Load, clients: int) -> tuple[float, set[str]]:
    """Stop everything while the clients stream; returns the seconds that took, and how the containers ended."""
    load.is_stopping.set()
    began = time.monotonic()
    load.compose("stop")
    seconds = time.monotonic() - began
    said = load.project.compose(*PROFILES, "ps", "--all", "--format", "{{.Service}} {{.ExitCode}}").stdout
    with suppress(TimeoutError):
        _wait(lambda: sum(load.tally.ended.values()) >= clients, 30)
    return seconds, set(said.split("\n")) - {""}


def _wait(is_so: Callable[[], bool], seconds: float) -> None:
    end = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.5)


def answers_again(load: Load) -> list[str]:
    """Start everything again and ask both models once; returns what is wrong."""
    load.compose("up", "--detach", "--wait")
    with requests.Session() as session:
        session.headers["Authorization"] = f"Bearer {load.project.key()}"
        bodies = [{"model": model, "prompt": "One, two,", "max_tokens": 4} for model in load.models]
        found = [_unfinished(load.post(session, "/v1/completions", body), body["model"]) for body in bodies]
    return [one for one in found if one]


def soak(load: Load, minutes: float, clients: int, picture: Path | None) -> list[Row]:
    """The whole course; returns the table."""
    sizes = keep_busy(load, minutes * 60, clients)
    if picture is not None:
        take_picture(load, picture)
    for model, rates in load.rates(minutes * 60).items():
        print(f"tokens a second in Prometheus, minute by minute: {model} {rates}", file=sys.stderr)
    before = load.counted()
    seconds, states = stop_in_flight(load, clients)
    wrong = answers_again(load)
    time.sleep(SCRAPE_S)
    after, tally = load.counted(), load.tally
    print(*tally.broken[:10], *wrong, sep="\n", file=sys.stderr)
    early = max(sizes[: max(1, len(sizes) // 5)])
    kept = sum(after.get(model, 0) >= before.get(model, 0) > 0 for model in load.models)
    unclean = sorted(state for state in states if not state.endswith(" 0"))
    counts = ", ".join(f"{number} {kind}" for kind, number in sorted(tally.whole.items()))
    return [
        Row("requests that were not answered in whole", len(tally.broken), 0,
            f"whole: {sum(tally.whole.values())} ({counts}); left by the client: {tally.left}", True, ""),
        Row("in flight at the stop, and not told of it", clients - sum(tally.ended.values()), 0,
            ", ".join(f"{number} {how}" for how, number in tally.ended.items()), True, ""),
        Row("seconds to stop", seconds, MAX_STOP_S, "", True, "s"),
        Row("containers that did not end with 0", len(unclean), 0, ", ".join(unclean or sorted(states)), True, ""),
        Row("models whose counts Prometheus kept", kept, len(load.models), f"{before} before, {after} after", unit=""),
        Row("models that do not answer after the new start", len(wrong), 0, "", True, ""),
        Row("memory at the end", sizes[-1] / early if early else 0, MAX_GROWTH,
            f"{sizes[-1] / 2**20:.0f} MiB against {early / 2**20:.0f} MiB at most in the first fifth", True),
    ]  # fmt: skip


def main() -> NoReturn:
    """Run it and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=6)
    parser.add_argument("--memory", default="")
    parser.add_argument("--prometheus", default="")
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    quant = existing_file(demo_file())
    wide = max(quant.parent.glob("stages/convert-*/files/model.gguf"), key=lambda path: path.stat().st_mtime)
    files = {"SmolLM2-135M-Instruct-BF16": wide, quant.stem: quant}
    with served(files, {"MEMORY": args.memory, "PROMETHEUS": args.prometheus}) as load:
        rows = soak(load, args.minutes, args.clients, args.picture)
    end_with_table(rows, as_json=args.json)


if __name__ == "__main__":
    main()
