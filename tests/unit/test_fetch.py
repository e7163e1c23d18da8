"""The stage `fetch` against a Hub on loopback that misbehaves when told to.

As the process that it is where that matters: its death, its environment, its output. Else in this one, where it
need not import the Hub's client each time.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest

from builder import fetch
from quantyard.network.bounded_http import retry_after_s
from quantyard.network.transfer import TRIES, download_pause_s, is_certificate_error
from quantyard.protocol.base import ExitCode, FileEntry, StageResult
from quantyard.protocol.builder import FetchRequest
from tests.hub_repo import Repo
from tests.hub_server import HubServer, Request

pytestmark = pytest.mark.commands

ROOT = Path(__file__).parents[2]
REPO = "org/name"
BIG = random.Random(7).randbytes(3_000_000)
FILES = {"config.json": b'{"model_type": "llama"}', "model.safetensors": BIG, "additional/deep/x.jinja": b"{{ x }}"}


@dataclass
class Run:
    """How one run of the stage ended."""

    code: int
    result: StageResult
    stdout: str
    stderr: str


@dataclass
class Bench:
    """A stage directory, the Hub it fetches from, and the request it gets."""

    hub: HubServer
    folder: Path
    out: Path
    changes: dict[str, Any] = field(default_factory=dict)

    def request(self) -> FetchRequest:
        repo = self.hub.repos[REPO]
        wanted = {"repo_id": REPO, "commit": repo.commit, "files": entries(repo), "endpoint": self.hub.endpoint}
        return FetchRequest.model_validate(wanted | self.changes)

    def arguments(self) -> list[str]:
        (self.folder / "in").mkdir(exist_ok=True)
        (self.folder / "in" / "request.json").write_text(self.request().model_dump_json())
        return [f"--in={self.folder / 'in'}", f"--out={self.out}"]

    def start(self, token: str | None = None) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "builder.fetch", *self.arguments()]
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(ROOT), "HOME": str(self.folder)}
        process = subprocess.Popen(
            [*command, "--secrets-on-stdin"], cwd=self.folder, env=environment, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )
        assert process.stdin is not None
        process.stdin.write(json.dumps({"HF_TOKEN": token} if token else {}) + "\n")
        process.stdin.flush()
        return process

    def run(self, token: str | None = None) -> Run:
        """In this process."""
        secrets = {"HF_TOKEN": token} if token else {}
        out, err = io.StringIO(), io.StringIO()
        with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
            patch.setattr(sys, "argv", ["fetch", *self.arguments(), "--secrets-on-stdin"])
            patch.setattr("quantyard.protocol.runner._read_stage_secrets", lambda: secrets)
            with pytest.raises(SystemExit) as ended:
                fetch.main()
        return self.ended(int(ended.value.code or 0), out.getvalue(), err.getvalue())

    def run_alone(self, token: str | None = None) -> Run:
        """As a process."""
        process = self.start(token)
        stdout, stderr = process.communicate(timeout=60)
        return self.ended(process.returncode, stdout, stderr)

    def ended(self, code: int, stdout: str, stderr: str) -> Run:
        return Run(code, StageResult.model_validate_json((self.out / "result.json").read_bytes()), stdout, stderr)

    def files(self) -> dict[str, bytes]:
        """Everything below /out/files, hidden or not."""
        top = self.out / "files"
        return {p.relative_to(top).as_posix(): p.read_bytes() for p in top.rglob("*") if p.is_file()}


def entries(repo: Repo) -> tuple[FileEntry, ...]:
    """The files as the Hub lists them: a hash for those in LFS only."""
    return tuple(
        FileEntry(path=name, size_bytes=blob.size_bytes, sha256=blob.sha256 if blob.lfs else None)
        for name, blob in repo.files.items()
    )


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with HubServer() as running:
        yield running


@pytest.fixture
def bench(server: HubServer, tmp_path: Path) -> Bench:
    server.heal()
    server.repos.clear()
    server.add_repo(REPO, FILES)
    (tmp_path / "out").mkdir()
    return Bench(server, tmp_path, tmp_path / "out")


def bodies(bench: Bench, name: str = "model.safetensors") -> list[Request]:
    return bench.hub.bodies(name)


def error_of(run: Run) -> str:
    assert run.result.error is not None
    return f"{run.result.error.message} {run.result.error.hint}"


# ---- The way it should go ----------------------------------------------------------------------------------------


def test_the_files_arrive_whole_with_their_hashes_and_nothing_else_does(bench: Bench) -> None:
    run = bench.run_alone()
    assert run.code == ExitCode.DONE, run.stderr
    assert bench.files() == FILES
    assert {o.path: o.sha256 for o in run.result.outputs} == {
        name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()
    }
    total = sum(map(len, FILES.values()))
    commit = bench.hub.repos[REPO].commit
    counted = {"resumed_bytes": 0, "downloaded_bytes": total}
    assert run.result.facts == {"repo_id": REPO, "commit": commit, **counted}
    assert set(run.result.tools) == {"huggingface_hub"}


def test_progress_counts_the_bytes_of_all_files_up_to_their_sum(bench: Bench) -> None:
    bench.hub.fail("model.safetensors", bytes_per_s=6_000_000)
    lines = [json.loads(line) for line in bench.run_alone().stdout.splitlines()]
    total = sum(map(len, FILES.values()))
    assert {(line["stage"], line["unit"], line["total"]) for line in lines} == {("fetch", "bytes", total)}
    done = [line["done"] for line in lines]
    assert done == sorted(done)
    assert done[-1] == total
    assert len(set(done)) > 3


def test_only_the_listed_files_are_asked_for_and_by_commit(bench: Bench) -> None:
    bench.changes = {"files": [e for e in entries(bench.hub.repos[REPO]) if e.path == "config.json"]}
    assert bench.run().code == ExitCode.DONE
    assert [r.path for r in bench.hub.requests] == [f"/{REPO}/resolve/{bench.hub.repos[REPO].commit}/config.json"]


def test_several_files_come_at_once(bench: Bench) -> None:
    many = {f"model-0000{i}-of-00004.safetensors": BIG[: 400_000 + i] for i in range(1, 5)}
    bench.hub.add_repo(REPO, many)
    together = threading.Barrier(len(many), timeout=30)  # which one after the other never passes
    for name in many:
        bench.hub.fail(name, together=together)
    assert bench.run().code == ExitCode.DONE
    assert not together.broken, "a file was asked for only when another had arrived"
    assert bench.files() == many


def test_an_empty_file_and_a_name_with_odd_characters_arrive(bench: Bench) -> None:
    odd = {"tokenizer.jinja": b"", "LICENSE (ü) #1%20?.txt": b"terms"}
    bench.hub.add_repo(REPO, odd)
    assert bench.run().code == ExitCode.DONE
    assert bench.files() == odd


def test_a_finished_download_is_not_repeated(bench: Bench) -> None:
    lay_down(bench, FILES)
    run = bench.run()
    assert run.code == ExitCode.DONE
    assert bench.hub.requests == []
    assert run.result.facts["resumed_bytes"] == sum(map(len, FILES.values()))


def test_a_file_that_changed_on_disk_since_is_downloaded_again(bench: Bench) -> None:
    lay_down(bench, FILES | {"model.safetensors": bytes(len(BIG))})
    assert bench.run().code == ExitCode.DONE
    assert bench.files() == FILES


def lay_down(bench: Bench, files: dict[str, bytes]) -> None:
    """What an earlier run finished."""
    for name, content in files.items():
        path = bench.out / "files" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


# ---- Interrupted -------------------------------------------------------------------------------------------------


def test_a_killed_download_goes_on_where_it_stopped(bench: Bench) -> None:
    bench.hub.fail("model.safetensors", bytes_per_s=1_000_000)
    process = bench.start()
    part = bench.out / "files" / ".partial" / "model.safetensors"
    wait_until(lambda: part.exists() and part.stat().st_size > 500_000)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    kept = part.stat().st_size
    assert not (bench.out / "files" / "model.safetensors").exists()

    bench.hub.heal()
    run = bench.run()
    assert run.code == ExitCode.DONE
    assert [(r.range, r.body_bytes) for r in bodies(bench)] == [(f"bytes={kept}-{len(BIG) - 1}", len(BIG) - kept)]
    assert run.result.facts["resumed_bytes"] == kept + sum(len(c) for n, c in FILES.items() if n != "model.safetensors")
    assert bench.files() == FILES


def wait_until(true: Any, within_s: float = 10.0) -> None:
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def leave_part(bench: Bench, content: bytes) -> None:
    part = bench.out / "files" / ".partial" / "model.safetensors"
    part.parent.mkdir(parents=True)
    part.write_bytes(content)


@pytest.mark.parametrize("left", [b"x" * 1_000_000, BIG + b"more"], ids=["other bytes", "too long"])
def test_a_part_that_is_no_beginning_of_the_file_is_thrown_away(bench: Bench, left: bytes) -> None:
    leave_part(bench, left)
    run = bench.run()
    assert run.code == ExitCode.DONE, run.stderr
    assert bench.files() == FILES


def test_a_part_that_only_lacked_its_name_is_not_asked_for_again(bench: Bench) -> None:
    leave_part(bench, BIG)
    assert bench.run().code == ExitCode.DONE
    assert bodies(bench) == []
    assert bench.files() == FILES


def test_a_server_that_ignores_ranges_sends_the_whole_file_and_that_is_right(bench: Bench) -> None:
    leave_part(bench, BIG[:1_000_000])
    bench.hub.fail("model.safetensors", ignore_range=True)
    assert bench.run().code == ExitCode.DONE
    assert bench.files() == FILES


# ---- A bad line --------------------------------------------------------------------------------------------------


def test_a_truncated_body_is_completed_with_a_range(bench: Bench) -> None:
    bench.hub.fail("model.safetensors", truncate_after=1_500_000)
    assert bench.run().code == ExitCode.DONE
    first, second = bodies(bench)
    assert first.range is None
    assert second.range == f"bytes=1500000-{len(BIG) - 1}"
    assert bench.files() == FILES


def test_the_rate_limit_is_waited_out_as_the_hub_asks(bench: Bench) -> None:
    bench.hub.fail("model.safetensors", status=429, retry_after=1)
    started = time.monotonic()
    assert bench.run().code == ExitCode.DONE
    assert time.monotonic() - started >= 1.0
    assert bench.files() == FILES


def test_a_server_error_is_tried_again(bench: Bench) -> None:
    bench.hub.fail("config.json", status=503)
    run = bench.run()
    assert run.code == ExitCode.DONE
    assert "503" in run.stderr
    assert bench.files() == FILES


def test_a_server_that_never_recovers_ends_the_stage_and_says_that_the_rest_is_kept(bench: Bench) -> None:
    bench.hub.fail("model.safetensors", status=500, times=None, retry_after=0)
    run = bench.run()
    assert run.code == ExitCode.NETWORK
    assert "answers 500" in error_of(run)
    assert "is kept" in error_of(run)
    assert sum(r.status == 500 for r in bench.hub.requests) == TRIES


def test_a_file_corrupted_once_is_fetched_again_from_zero(bench: Bench) -> None:
    bench.hub.fail("model.safetensors", corrupt=True)
    assert bench.run().code == ExitCode.DONE
    assert [r.range for r in bodies(bench)] == [None, None]
    assert bench.files() == FILES


def test_a_file_corrupted_always_ends_the_stage_with_both_hashes(bench: Bench) -> None:
    bench.hub.fail("model.safetensors", corrupt=True, times=None)
    run = bench.run()
    assert run.code == ExitCode.NETWORK
    wrong = hashlib.sha256(bytes([BIG[0] ^ 0xFF]) + BIG[1:]).hexdigest()
    for word in ("model.safetensors", hashlib.sha256(BIG).hexdigest(), wrong):
        assert word in error_of(run)
    assert "model.safetensors" not in bench.files()
    assert len(bodies(bench)) == 2


def test_a_file_of_another_size_than_listed_ends_the_stage(bench: Bench) -> None:
    bench.changes = {"files": [FileEntry(path="config.json", size_bytes=5)]}
    run = bench.run()
    assert run.code == ExitCode.NETWORK
    assert "config.json" in error_of(run)
    assert "expected 5 bytes" in error_of(run)
    assert bench.files() == {}


# ---- Refused -----------------------------------------------------------------------------------------------------


def test_a_gated_repo_ends_the_stage_with_the_page_to_visit(bench: Bench) -> None:
    bench.hub.add_repo(REPO, FILES, gated=True)
    run = bench.run(bench.hub.stranger)
    assert (run.code, run.result.error and run.result.error.kind) == (ExitCode.NETWORK, "gated")
    assert f"{bench.hub.endpoint}/{REPO}" in error_of(run)


@pytest.mark.parametrize(("token", "kind"), [(None, "repo-not-found"), ("hf_wrong", "bad-token")])
def test_a_private_repo_is_closed_to_others(bench: Bench, token: str | None, kind: str) -> None:
    bench.hub.add_repo(REPO, FILES, private=True)
    run = bench.run(token)
    assert (run.code, run.result.error and run.result.error.kind) == (ExitCode.NETWORK, kind)
    assert "HF_TOKEN" in error_of(run)


def test_a_token_opens_a_private_repo_and_is_seen_by_nobody_else(bench: Bench) -> None:
    bench.hub.add_repo(REPO, FILES, private=True)
    bench.hub.fail("model.safetensors", truncate_after=100_000)
    run = bench.run_alone(bench.hub.token)
    assert run.code == ExitCode.DONE
    for text in (run.stdout, run.stderr, run.result.model_dump_json()):
        assert bench.hub.token not in text
    assert {r.authorized for r in bench.hub.requests if r.on_cdn} == {False}
    assert {r.authorized for r in bench.hub.requests if not r.on_cdn} == {True}


def test_a_token_of_the_home_folder_is_never_sent(bench: Bench) -> None:
    (bench.folder / ".cache" / "huggingface").mkdir(parents=True)
    (bench.folder / ".cache" / "huggingface" / "token").write_text("hf_of_somebody")
    assert bench.run_alone().code == ExitCode.DONE
    assert not any(r.authorized for r in bench.hub.requests)


def test_a_commit_the_repo_does_not_have_is_named(bench: Bench) -> None:
    bench.changes = {"commit": "0" * 40}
    run = bench.run()
    assert (run.code, run.result.error and run.result.error.kind) == (ExitCode.NETWORK, "revision-not-found")
    assert "0" * 40 in error_of(run)


def test_a_file_the_repo_does_not_have_is_named(bench: Bench) -> None:
    bench.changes = {"files": [FileEntry(path="gone.json", size_bytes=3)]}
    run = bench.run()
    assert (run.code, run.result.error and run.result.error.kind) == (ExitCode.NETWORK, "file-not-found")
    assert "gone.json" in error_of(run)


def test_one_failure_stops_the_other_downloads_and_keeps_what_came(bench: Bench) -> None:
    bench.hub.fail("model.safetensors", bytes_per_s=100_000, times=None)  # 30 s
    bench.changes = {"files": [*entries(bench.hub.repos[REPO]), FileEntry(path="gone.json", size_bytes=3)]}
    started = time.monotonic()
    assert bench.run().code == ExitCode.NETWORK
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("path", [".partial/x", "twice"])
def test_a_path_that_cannot_be_written_is_a_bad_request(bench: Bench, path: str) -> None:
    bench.changes = {"files": [FileEntry(path=path, size_bytes=1)] * 2}
    assert bench.run().code == ExitCode.BAD_REQUEST
    assert bench.hub.requests == []


def test_a_link_left_in_the_folder_is_not_followed_out_of_it(bench: Bench) -> None:
    outside = bench.folder / "outside"
    outside.mkdir()
    (bench.out / "files").mkdir()
    (bench.out / "files" / "additional").symlink_to(outside)
    assert bench.run().code == ExitCode.BAD_REQUEST
    assert list(outside.iterdir()) == []


def test_a_full_disk_is_a_lack_of_disk_and_the_next_run_finishes(bench: Bench, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", small], capture_output=True).returncode:
        pytest.skip("no permission to mount a tmpfs")
    try:
        bench.out = small
        process = bench.start()
        _, stderr = process.communicate(timeout=60)
        assert process.returncode == ExitCode.RESOURCES, stderr
        assert "No space left" in stderr or "The disk is full" in (small / "result.json").read_text()
        subprocess.run(["mount", "-o", "remount,size=8m", small], check=True)
        run = bench.run()
        assert run.code == ExitCode.DONE
        assert bench.files() == FILES
        assert int(str(run.result.facts["resumed_bytes"])) > 500_000
    finally:
        subprocess.run(["umount", small], check=True)


# ---- How long to wait --------------------------------------------------------------------------------------------


def test_waits_grow_and_end_after_five_tries_without_progress() -> None:
    error = httpx2.ReadTimeout("slow")
    assert [download_pause_s(error, failed) for failed in range(1, TRIES + 1)] == [0.5, 1.0, 2.0, 4.0, None]


def test_a_certificate_nobody_trusts_is_not_tried_again() -> None:
    error = httpx2.ConnectError("[SSL: CERTIFICATE_VERIFY_FAILED] certificate verify failed")
    assert is_certificate_error(error)
    assert download_pause_s(error, 1) is None


@pytest.mark.parametrize(("value", "expected"), [("7", 7.0), ("", None), ("soon", None)])
def test_retry_after_is_a_number_of_seconds(value: str, expected: float | None) -> None:
    assert retry_after_s({"Retry-After": value}) == expected


def test_retry_after_may_be_a_date() -> None:
    assert retry_after_s({"Retry-After": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
