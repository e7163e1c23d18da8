"""`gc`, and what `doctor` says of a shared store."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest

from quantyard.cli.parser import parse_command_line
from quantyard.cli.request import read_command_request
from quantyard.protocol.exit_codes import ExitCode
from quantyard.shared_store.attempts import begin_attempt
from quantyard.shared_store.leases import new_lease_owner
from quantyard.shared_store.mounts import bucket_behind_fuse, mounted_type
from quantyard.shared_store.posix_objects import PosixObjects
from quantyard.shared_store.store_probe import StoreProbe
from quantyard.workflows import shared_store
from quantyard.workflows.shared_store import workflow_differing_findings, workflow_store_finding
from tests.conftest import run_here

MOUNTS = """\
22 1 254:1 / / rw - ext4 /dev/vda rw
50 22 0:50 / /mnt/bucket rw - fuse.s3fs s3fs rw
51 22 0:51 / /mnt/aws rw - fuse mountpoint-s3 rw
52 22 0:52 / /mnt/bucket/inner rw - nfs4 server:/x rw
53 22 0:53 / /mnt/a\\040gluster rw - fuse.glusterfs server:/x rw
54 22 0:54 / /mnt/disk rw - fuse /dev/sdb rw
"""


def _old_attempt(root: Path) -> str:
    attempt = begin_attempt(PosixObjects(root), "a" * 64, new_lease_owner(), 0.001)
    for path in root.rglob("*"):
        os.utime(path, (time.time() - 8 * 86_400,) * 2)
    return attempt.prefix


def test_gc_shows_what_it_would_remove_and_removes_it(tmp_path: Path) -> None:
    prefix = _old_attempt(tmp_path / "yard")
    here = str(tmp_path)
    shown = run_here("gc", "--store", str(tmp_path / "yard"), "--dry-run", ARTIFACTS=here)
    assert shown.returncode == 0 and "1 attempts" in shown.stdout and "would be removed" in shown.stdout
    done = run_here("gc", STORE=f"file://{tmp_path}/yard", JSON="1", ARTIFACTS=here)
    found = json.loads(done.stdout)
    assert found["attempts"] == [prefix] and found["removed"] and not list((tmp_path / "yard").glob("attempts/*"))


def test_gc_leaves_what_is_younger_than_keep_days(tmp_path: Path) -> None:
    _old_attempt(tmp_path / "yard")
    done = run_here("gc", "--store", str(tmp_path / "yard"), "--keep-days", "30", ARTIFACTS=str(tmp_path))
    assert "0 attempts" in done.stdout


def test_gc_removes_old_results_with_other_bytes_from_artifacts(tmp_path: Path) -> None:
    old, new = (tmp_path / f"org/name/0123456789ab/differing/evaluate-{name}" for name in ("old", "new"))
    for folder in (old, new):
        (folder / "files").mkdir(parents=True)
        (folder / "files" / "evaluation.json").write_text("{}")
    os.utime(old, (time.time() - 8 * 86_400,) * 2)
    shown = run_here("gc", "--dry-run", ARTIFACTS=str(tmp_path))
    assert "1 results with other bytes (2 B) would be removed" in shown.stdout and old.exists()
    found = json.loads(run_here("gc", ARTIFACTS=str(tmp_path), JSON="1").stdout)
    assert found["kept_aside"] == [str(old)] and found["kept_aside_bytes"] == 2
    assert [*old.parent.iterdir()] == [new] and not (tmp_path / ".cluster").exists()
    run_here("gc", "--keep-days", "0", ARTIFACTS=str(tmp_path))
    assert not old.parent.exists()


def test_doctor_says_what_was_kept_aside_and_nothing_where_nothing_was(tmp_path: Path) -> None:
    request = read_command_request(parse_command_line(["doctor"]), {"ARTIFACTS": str(tmp_path)})
    assert workflow_differing_findings(request) == []
    folder = tmp_path / "org/name/0123456789ab/differing/evaluate-one/files"
    folder.mkdir(parents=True)
    (folder / "evaluation.json").write_text("{}")
    PosixObjects(tmp_path / ".cluster" / "store").put("differing/key/attempt", b"{}")
    here, there = workflow_differing_findings(request)
    assert here.state == there.state == "note" and "make gc" in here.remedy
    assert here.value.startswith(f"1 in {tmp_path} (2 B)") and "differing/key/attempt" in there.value


@pytest.mark.parametrize(("store", "words"), [("s3://", "STORE"), ("gs://bucket", "STORE=gs://")])
def test_gc_refuses_a_store_of_another_kind(store: str, words: str) -> None:
    done = run_here("gc", "--store", store)
    assert done.returncode == ExitCode.BAD_REQUEST and words in done.stderr


@pytest.mark.parametrize(("folder", "kind", "is_bucket"), [
    ("/srv/yard", "ext4", False), ("/mnt/bucket/yard", "fuse.s3fs", True), ("/mnt/aws", "fuse.mountpoint-s3", True),
    ("/mnt/bucket/inner/x", "nfs4", False), ("/mnt/a gluster/x", "fuse.glusterfs", False),
    ("/mnt/disk/x", "fuse", False),
])  # fmt: skip
def test_the_file_system_of_a_folder_is_known(folder: str, kind: str, is_bucket: bool, tmp_path: Path) -> None:
    (tmp_path / "mounts").write_text(MOUNTS)
    assert mounted_type(Path(folder), tmp_path / "mounts") == kind
    assert bucket_behind_fuse(Path(folder), tmp_path / "mounts") == (kind if is_bucket else "")


def test_a_store_where_several_win_is_missing_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    probe = StoreProbe(("16 of 16 writers of one name were told that they alone had written it",))
    monkeypatch.setattr(shared_store, "probe_store_apart", lambda url: probe)
    found = workflow_store_finding("s3://yard/x")
    assert found.state == "missing" and "16 of 16" in found.value and "STORE=s3://" in found.remedy


@pytest.mark.commands
def test_a_bucket_behind_fuse_is_refused_and_a_folder_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert workflow_store_finding(str(tmp_path)).state == "ok"
    monkeypatch.setattr("quantyard.shared_store.store_probe.bucket_behind_fuse", lambda _root: "fuse.rclone")
    found = workflow_store_finding(str(tmp_path))
    assert found.state == "missing" and "fuse.rclone" in found.value
