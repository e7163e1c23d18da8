"""No secret stays behind: not after SIGKILL, not in what is written, shown or described of a run."""

from __future__ import annotations

import argparse
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path

import pytest

from quantyard.cli.request import read_command_request
from quantyard.engines.secrets import engine_proxies, engine_secrets_line, remove_engine_leftovers
from quantyard.errors import BadRequest
from quantyard.paths import REPO_DIR
from quantyard.plan.stages import STAGES
from quantyard.plan.steps import StageSpec
from quantyard.requests import RunEnvironment
from tests.hostile.sampling import sampled
from tests.hub_server import HubServer
from tests.released import PASSES, REPO, Yard
from tests.unit.release_engine import engine_of

WORD = "s3cret-of-the-test"
PROXY = f"http://me:{WORD}@127.0.0.1:9"
# Runs the stage `fetch` with the engine `local` as the orchestrator would, out of the packages it is given.
_FETCHES = """
import json, sys
from pathlib import Path
from quantyard.protocol.builder import FetchRequest
from quantyard.requests import RunEnvironment
from quantyard.engines.local import LocalEngine
from quantyard.plan.stages import STAGES
from quantyard.plan.steps import StageSpec
from quantyard.store.artifact import Workspace
told = json.loads(sys.stdin.readline())
request = FetchRequest.model_validate(told["request"])
space = Workspace(Path(told["folder"]) / "in", Path(told["folder"]) / "out", request)
around = RunEnvironment(Path(told["repo"]), told["token"], {"HTTPS_PROXY": told["proxy"], "NO_PROXY": "127.0.0.1"})
spec = StageSpec("fetch", STAGES["fetch"], request, {}, "0" * 64)
print(LocalEngine(around).run(spec, space, {}, lambda progress: None).model_dump_json())
"""


def holding(folder: Path, text: str) -> list[Path]:
    """The files below a folder whose content or name holds this."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    return [path for path in files if text.encode() in path.read_bytes() or text in path.name]


# ---- on the way to a stage ---------------------------------------------------------------------------


def _fetching(hub: HubServer, root: Path) -> subprocess.Popen[str]:
    """A download that takes its time, by a process of its own; everything it may write is below `root`."""
    repo = hub.add_repo("org/private", {"config.json": b"{}", "model.safetensors": bytes(300_000)}, private=True)
    hub.fail("model.safetensors", times=None, bytes_per_s=60_000)
    for name in ("work/in", "work/out", "tmp", "run", "repo/.venv-local/bin"):
        (root / name).mkdir(parents=True)
    python = root / "repo" / ".venv-local" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    python.chmod(0o755)
    for package in ("quantyard", "builder"):
        (root / "repo" / package).symlink_to(REPO_DIR / package)
    files = [{"path": n, "size_bytes": b.size_bytes, "sha256": b.sha256 if b.lfs else None} for n, b in
             repo.files.items()]  # fmt: skip
    request = {"repo_id": "org/private", "commit": repo.commit, "files": files, "endpoint": hub.endpoint}
    (root / "work" / "in" / "request.json").write_text(json.dumps({"stage": "fetch", **request}))
    told = {"folder": str(root / "work"), "repo": str(root / "repo"), "request": request, "token": hub.token}
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": f"{REPO_DIR}:{':'.join(filter(None, sys.path))}",
                   "TMPDIR": str(root / "tmp"), "XDG_RUNTIME_DIR": str(root / "run"), "HOME": str(root)}  # fmt: skip
    process = subprocess.Popen(
        [sys.executable, "-c", _FETCHES], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdin is not None
    process.stdin.write(json.dumps(told | {"proxy": PROXY}) + "\n")
    process.stdin.flush()
    return process


def _stage_of(process: subprocess.Popen[str]) -> Path:
    """Where /proc shows the stage that this orchestrator runs."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        for status in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                parent = status.read_text().rpartition(")")[2].split()[1]
                if parent == str(process.pid) and b"builder.fetch" in status.with_name("cmdline").read_bytes():
                    return status.parent
        time.sleep(0.02)
    process.kill()
    raise AssertionError(f"no stage: {process.communicate()[1]}")


def _downloads(root: Path) -> None:
    deadline = time.monotonic() + 60
    while not any(path.stat().st_size for path in (root / "work" / "out").rglob("*model*") if path.is_file()):
        assert time.monotonic() < deadline, "no download"
        time.sleep(0.02)


def test_a_killed_download_leaves_no_token_and_no_password_in_any_file(hub: HubServer, tmp_path: Path) -> None:
    process = _fetching(hub, tmp_path)
    stage = _stage_of(process)
    _downloads(tmp_path)
    shown = (stage / "environ").read_bytes() + (stage / "cmdline").read_bytes()
    process.send_signal(signal.SIGKILL)
    process.wait()
    for secret in (hub.token, WORD):
        assert secret.encode() not in shown
        assert not holding(tmp_path, secret)
    assert any(r.authorized for r in hub.requests), "the stage had the token"


def test_a_download_that_ends_has_used_the_token_and_leaves_it_nowhere(hub: HubServer, tmp_path: Path) -> None:
    process = _fetching(hub, tmp_path)
    hub.heal()
    out, err = process.communicate(timeout=120)
    assert json.loads(out)["exit_code"] == 0, err
    assert hub.token not in out + err and WORD not in out + err
    assert not holding(tmp_path, hub.token) and not holding(tmp_path, WORD)


@pytest.mark.parametrize("name", sorted(STAGES))
def test_a_stage_is_told_what_it_needs_and_no_more(name: str) -> None:
    row = STAGES[name]
    around = RunEnvironment(REPO_DIR, WORD, {"HTTPS_PROXY": PROXY, "http_proxy": "http://open:1", "NO_PROXY": "x"})
    told = json.loads(engine_secrets_line(StageSpec(name, row, None, {}, ""), around))  # type: ignore[arg-type]
    assert set(told) == {*row.secrets, *(["HTTPS_PROXY"] if row.network else [])}
    assert set(engine_proxies(around)) == {"http_proxy", "NO_PROXY"}


def test_what_an_earlier_version_left_when_it_was_killed_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    kept = {"quantyard-young": "HF_TOKEN", "quantyard-other": "HF_TOKEN.txt", "else-old": "HF_TOKEN"}
    for name, file in {"quantyard-old": "HF_TOKEN", **kept}.items():
        folder = tmp_path / name
        folder.mkdir(mode=0o700)
        (folder / file).write_text(WORD)
        if "young" not in name:
            os.utime(folder, (0, 0))
    (tmp_path / "quantyard-link").symlink_to(tmp_path / "else-old")
    remove_engine_leftovers()
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "quantyard-link"}


# ---- in addresses and values -------------------------------------------------------------------------

ADDRESSES = [
    ("HF_ENDPOINT", f"https://me:{WORD}@hub.example"), ("HF_ENDPOINT", f"https://{WORD}@hub.example/x"),
    ("HF_ENDPOINT", f"https://me:{WORD}/x@hub.example"), ("HF_ENDPOINT", f"me:{WORD}@hub.example"),
    ("HF_ENDPOINT", f"https://hub.example/?token={WORD}"), ("HF_ENDPOINT", f"https://hub.example/#{WORD}"),
    ("MODEL", f"https://me:{WORD}@hub.example/org/name"), ("BASE", f"https://me:{WORD}@hub.example/org/name"),
    ("ADAPTER", f"https://{WORD}@hub.example/org/name"), ("REPO", f"https://me:{WORD}@hub.example/me/name"),
    ("DATASETS", f"https://me:{WORD}@hub.example/sets"), ("OCI", f"me:{WORD}@registry.example/name:tag"),
    ("OCI", f"oci://me:{WORD}@registry.example/name"), ("TAG", f"me:{WORD}@registry.example/name"),
    ("LLAMA_CPP_IMAGE", f"me:{WORD}@registry.example/llama.cpp"), ("HTTPS_PROXY", f"http://me:{WORD}/x@proxy:80"),
    ("HTTPS_PROXY", f"http://me:{WORD}#x@proxy:80"), ("ALL_PROXY", f"http://me:x@proxy:{WORD}"),
    ("http_proxy", f"\x1bhttp://me:{WORD}@proxy"), ("HF_TOKEN", f"{WORD}\r\nX-Other: 1"), ("HF_TOKEN", f"{WORD} x"),
    ("HF_TOKEN", f"{WORD}\udcff"),
]  # fmt: skip


def _nothing_typed(**typed: str) -> argparse.Namespace:
    names = ("SUITE", "PORT", "TAG", "GATE", "REBUILD", "MIN_TPS", "TARGET_KLD", "QUANTS")
    return argparse.Namespace(**dict.fromkeys(names), **typed)


@pytest.mark.parametrize(("name", "value"), sampled(ADDRESSES, 12))
def test_a_password_or_a_broken_secret_in_a_setting_is_refused_and_not_repeated(
    tmp_path: Path, name: str, value: str
) -> None:
    with pytest.raises(BadRequest) as caught:
        read_command_request(_nothing_typed(), {"ARTIFACTS": str(tmp_path), "HF_HOME": str(tmp_path), name: value})
    said = caught.value
    assert WORD not in said.message + said.hint + said.detail and said.code == 2
    assert any(word in said.message for word in (name, "HF_ENDPOINT"))


@pytest.mark.parametrize("value", [f"{WORD}\r\nx", "caf\xe9 " + WORD])
def test_a_stored_token_that_is_none_is_refused_and_not_repeated(tmp_path: Path, value: str) -> None:
    (tmp_path / "token").write_text(value)
    with pytest.raises(BadRequest) as caught:
        read_command_request(_nothing_typed(), {"ARTIFACTS": str(tmp_path), "HF_HOME": str(tmp_path)})
    assert WORD not in str(caught.value) + caught.value.hint


def test_a_password_is_no_option_of_the_command_line(tmp_path: Path) -> None:
    with pytest.raises(BadRequest, match="every user of this machine sees"):
        read_command_request(_nothing_typed(HTTPS_PROXY=PROXY), {"ARTIFACTS": str(tmp_path)})


def test_a_proxy_may_have_a_password_that_no_description_of_the_request_holds(tmp_path: Path) -> None:
    asked = read_command_request(_nothing_typed(), {"ARTIFACTS": str(tmp_path), "HTTPS_PROXY": PROXY, "HF_TOKEN": WORD})
    assert asked.environment.proxies == {"HTTPS_PROXY": PROXY}
    assert WORD not in f"{asked!r} {asked} {asked.environment!r} {asked.images!r}"


# ---- in all that commands write and say --------------------------------------------------------------

COMMANDS = [
    ("plan",), ("plan", "--json"), ("build",), ("build", "--json"), ("publish",), ("publish", "--dry-run", "--json"),
    ("publish", "--oci=127.0.0.1:9/me/name"), ("release", "--suite=standard"), ("verify", f"--repo={REPO}"),
    ("verify", "--repo=me/missing", "--json"), ("report",), ("gate", "--json"), ("doctor",), ("plan", "--model=org/x"),
]  # fmt: skip


@pytest.mark.parametrize("argv", sampled(COMMANDS, 7), ids=" ".join)
@pytest.mark.parametrize("fault", ["", "the Hub fails"])
def test_no_command_writes_or_says_a_secret(yard: Yard, argv: tuple[str, ...], fault: str) -> None:
    engine_of(yard) if argv[0] in ("build", "release") else None
    patch, secrets = yard.monkeypatch, (yard.hub.writer, WORD)
    for name in ("TMPDIR", "HOME", "XDG_CACHE_HOME", "XDG_RUNTIME_DIR"):
        (yard.root / name).mkdir()
        patch.setenv(name, str(yard.root / name))
    patch.setattr(tempfile, "tempdir", str(yard.root / "TMPDIR"))
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        patch.setenv(name, PROXY)
    for name in ("NO_PROXY", "no_proxy"):
        patch.setenv(name, "127.0.0.1")
    if fault:
        yard.hub.fail("/api/models", times=None, status=500, said=f"no way with Bearer {yard.hub.writer} via {PROXY}")
    given = () if argv[0] == "verify" or "--model=org/x" in argv else (f"--model={yard.model}", "--quant=Q8_0")
    given = () if argv[0] == "doctor" else given
    if argv[0] in ("publish", "release"):
        given = (*given, f"--repo={REPO}", "--yes", yard.budgets(PASSES))
    said = yard.run(*argv, *given)
    for secret in secrets:
        assert secret not in said.out + said.err
        assert not holding(yard.root, secret)
    assert said.code != 70, said.err
