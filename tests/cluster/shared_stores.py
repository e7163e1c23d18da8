"""Servers and mounts of shared stores, started and stopped by their ids, and what many processes do in one store.

`python -m tests.cluster.shared_stores race|kills …` forks the processes: pytest has threads, which no fork takes along.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.client import HTTPConnection
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

from quantyard.paths import REPO_DIR
from quantyard.protocol.base import FileEntry, StageResult
from quantyard.shared_store.attempts import PROGRESS, attempt_prefixes, begin_attempt
from quantyard.shared_store.commits import CommittedResult, commit_result, committed_result
from quantyard.shared_store.contents import get_content, put_content
from quantyard.shared_store.garbage import collect_store_garbage
from quantyard.shared_store.leases import new_lease_owner
from quantyard.shared_store.objects import ObjectStore
from quantyard.shared_store.open_store import open_object_store

WRITERS = 16
KEYS = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "not-to-be-shown", "AWS_DEFAULT_REGION": "us-east-1"}
_START_S = 60


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@contextmanager
def moto_server(host: str = "127.0.0.1") -> Iterator[str]:
    """The address of an S3 server with the bucket `yard`."""
    port = free_port()
    argv = [sys.executable, "-m", "moto.server", "--host", host, "--port", str(port)]
    process = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ | KEYS)
    try:
        _made_bucket(host, port)
        yield f"http://{host}:{port}"
    finally:
        process.terminate()
        process.wait(20)


def _made_bucket(host: str, port: int) -> None:
    until = time.monotonic() + _START_S
    while time.monotonic() < until:
        try:
            connection = HTTPConnection(host, port, timeout=10)
            connection.request("PUT", "/yard", headers={"Host": "s3.amazonaws.com"})
            if connection.getresponse().status == 200:
                return
        except OSError:
            time.sleep(0.2)
    raise TimeoutError("moto did not start")


@contextmanager
def without_conditions(address: str) -> Iterator[str]:
    """The address of a proxy that takes `If-None-Match` and drops it, as some gateways do."""
    target = address.removeprefix("http://")

    class Dropping(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def _pass_on(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            headers = {name: value for name, value in self.headers.items() if name.lower() != "if-none-match"}
            connection = HTTPConnection(target, timeout=60)
            connection.request(self.command, self.path, body, headers)
            answer = connection.getresponse()
            content = answer.read()
            self.send_response_only(answer.status)
            for name, value in answer.getheaders():
                if name.lower() not in ("transfer-encoding", "content-length", "connection"):
                    self.send_header(name, value)
            length = answer.headers.get("Content-Length") if self.command == "HEAD" else len(content)
            self.send_header("Content-Length", str(length or 0))
            self.end_headers()
            self.wfile.write(content)
            connection.close()

        do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _pass_on  # noqa: N815  (their names in the library)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Dropping)
    Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


@contextmanager
def gluster_mounts(folder: Path) -> Iterator[list[str]]:
    """Two mounts of one GlusterFS volume of two bricks, as two machines would have them."""
    volume = f"yard-{os.getpid()}"
    bricks = [f"{socket.gethostname()}:{folder}/brick{number}" for number in (1, 2)]
    mounts = [folder / f"mount{number}" for number in (1, 2)]
    with _glusterd(folder):
        _gluster("volume", "create", volume, *bricks, "force")
        try:
            _gluster("volume", "start", volume)
            for mount in mounts:
                mount.mkdir()
                subprocess.run(["mount", "-t", "glusterfs", f"localhost:/{volume}", str(mount)], check=True, timeout=60)
            yield [str(mount / "store") for mount in mounts]
        finally:
            for mount in mounts:
                subprocess.run(["umount", str(mount)], check=False, timeout=60)
            _gluster("volume", "stop", volume, "force")
            _gluster("volume", "delete", volume)


@contextmanager
def _glusterd(folder: Path) -> Iterator[None]:
    """The daemon, unless one runs."""
    if subprocess.run(["gluster", "--mode=script", "pool", "list"], capture_output=True, timeout=60).returncode == 0:
        yield
        return
    pid_file = folder / "glusterd.pid"
    subprocess.run(["glusterd", "-p", str(pid_file)], check=True, timeout=60)
    try:
        until = time.monotonic() + _START_S
        while subprocess.run(["gluster", "--mode=script", "pool", "list"], capture_output=True, timeout=60).returncode:
            assert time.monotonic() < until, "glusterd did not start"
            time.sleep(0.3)
        yield
    finally:
        os.kill(int(pid_file.read_text()), signal.SIGTERM)


def _gluster(*argv: str) -> None:
    subprocess.run(["gluster", "--mode=script", *argv], check=True, capture_output=True, timeout=120)


# ---- many processes ----------------------------------------------------------------------------------------------


def run_apart(*argv: object, address: str = "") -> Any:
    """What `race` or `kills` found, in a process of its own."""
    env = os.environ | {"PYTHONPATH": str(REPO_DIR)} | (KEYS | {"AWS_ENDPOINT_URL": address} if address else {})
    done = subprocess.run(
        [sys.executable, "-m", "tests.cluster.shared_stores", *map(str, argv)], env=env, cwd=REPO_DIR, text=True,
        capture_output=True, timeout=580,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


def key_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def commit_once(store: ObjectStore, key: str, text: str, pause_s: float = 0.0) -> str:
    """One whole attempt at a key: its output, its heartbeat, its commit."""
    attempt = begin_attempt(store, key, new_lease_owner(), 0.5)
    with tempfile.NamedTemporaryFile() as file:
        content = (text * 50_000).encode()
        file.write(content)
        file.flush()
        sha256 = hashlib.sha256(content).hexdigest()
        put_content(store, Path(file.name), sha256)
    attempt.heartbeat()
    attempt.put(PROGRESS, b"{}")
    time.sleep(pause_s)
    entry = FileEntry(path="model.gguf", size_bytes=len(content), sha256=sha256)
    result = StageResult(stage="convert", exit_code=0, outputs=(entry,))
    record = CommittedResult(key=key, label="convert", result=result, attempt=attempt.name, ended_at=datetime.now(UTC))
    told = commit_result(store, record)
    attempt.end()
    return str(told)


def race(urls: Sequence[str], n_rounds: int) -> list[dict[str, Any]]:
    """Sixteen processes commit one key at once, each with its own bytes; what each round was told and read."""
    context = multiprocessing.get_context("fork")
    begin, answers = context.Barrier(WRITERS), context.SimpleQueue()

    def write(number: int) -> None:
        store = open_object_store(urls[number % len(urls)])
        for each in range(n_rounds):
            begin.wait(120)
            told = commit_once(store, key_of(each), f"{number} ")
            found = committed_result(store, key_of(each))
            answers.put((each, told, found.attempt if found else ""))

    writers = [context.Process(target=write, args=(number,)) for number in range(WRITERS)]
    for writer in writers:
        writer.start()
    found = [answers.get() for _ in range(WRITERS * n_rounds)]
    for writer in writers:
        writer.join()
    rounds = [[answer for answer in found if answer[0] == each] for each in range(n_rounds)]
    return [{"told": sorted(told for _, told, _ in one), "read": sorted({read for *_, read in one})} for one in rounds]


def kills(urls: Sequence[str], n_kills: int) -> dict[str, Any]:
    """Kill committers at random moments of their commits; then say what is damaged, and what is left after `gc`."""
    chance, n_killed, n_rounds = random.Random(20), 0, 0
    of_round = min(n_kills, 20)  # are killed, and four more are not
    while n_killed < n_kills:
        n_killed += _killed_in_round(urls, n_rounds, of_round, chance)
        n_rounds += 1
    return {"killed": n_killed, "rounds": n_rounds, **state_after_kills(urls[-1])}


def _killed_in_round(urls: Sequence[str], number: int, n_killed: int, chance: random.Random) -> int:
    """Start committers, four at one key; when all have opened the store, let them go, and kill so many."""
    context = multiprocessing.get_context("fork")
    n_writers, span_s = n_killed + 4, 0.25 if urls[0].startswith("/") else 2.0
    begin = context.Barrier(n_writers + 1)

    def write(each: int) -> None:
        store = open_object_store(urls[each % len(urls)])
        store.status("ac/none")  # connects
        begin.wait(120)
        commit_once(store, key_of(number * n_writers + each // 4), f"{each} ", 0.05)

    committers = [context.Process(target=write, args=(each,)) for each in range(n_writers)]
    for committer in committers:
        committer.start()
    begin.wait(120)
    began, killed = time.monotonic(), 0
    for moment, committer in zip(sorted(chance.uniform(0, span_s) for _ in range(n_killed)), committers, strict=False):
        time.sleep(max(0.0, began + moment - time.monotonic()))
        if committer.is_alive() and committer.pid:
            os.kill(committer.pid, signal.SIGKILL)
            killed += 1
    for committer in committers:
        committer.join(120)
    return killed


def state_after_kills(url: str) -> dict[str, Any]:
    """What is damaged in a store, and what `gc` leaves of attempts and half-written files."""
    store, damaged, n_results = open_object_store(url), list[str](), 0
    with tempfile.TemporaryDirectory() as folder:
        for name in list(store.names("ac/")):
            found = committed_result(store, name.removeprefix("ac/"))
            n_results += 1
            for entry in found.outputs if found else ():
                try:
                    get_content(store, entry.sha256 or "", Path(folder) / "copy")
                except Exception as error:
                    damaged.append(f"{name}: {error}")
        for name in list(store.names("cas/")):
            store.read_to_file(name, Path(folder) / "copy")
            if hashlib.sha256((Path(folder) / "copy").read_bytes()).hexdigest() != name.removeprefix("cas/"):
                damaged.append(name)
    n_left = len(attempt_prefixes(store))
    time.sleep(1.1)  # the leases' time to live, and a second, as S3 tells time
    collect_store_garbage(store, timedelta(0))
    temporary = [str(path) for path in Path(url, ".tmp").glob("*")] if url.startswith("/") else []
    return {
        "results": n_results, "damaged": damaged, "left_before_gc": n_left, "left": attempt_prefixes(store) + temporary,
    }  # fmt: skip


if __name__ == "__main__":
    _verb, _number, *_urls = sys.argv[1:]
    print(json.dumps((race if _verb == "race" else kills)(_urls, int(_number))))
