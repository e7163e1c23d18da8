"""The shared store in a folder: put if absent, contents, commits, attempts, garbage. More hosts: tests/cluster."""

from __future__ import annotations

import errno
import hashlib
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import permutations
from pathlib import Path

import pytest

from quantyard.errors import BadRequest, OutOfResources, QuantyardError, StoreDamaged, StoreUnreachable
from quantyard.files.if_absent import WAYS, Way, place_by_link, place_by_rename, place_in_folder
from quantyard.protocol.base import FileEntry, StageResult
from quantyard.shared_store.attempts import attempt_prefixes, begin_attempt, live_attempts
from quantyard.shared_store.commits import Commit, CommittedResult, commit_result, committed_result, differing_results
from quantyard.shared_store.contents import content_name, get_content, put_content
from quantyard.shared_store.garbage import collect_store_garbage
from quantyard.shared_store.leases import LEASES, Lease, LeaseWatch, end_lease, new_lease_owner, renew_lease, take_lease
from quantyard.shared_store.open_store import open_object_store
from quantyard.shared_store.posix_objects import PosixObjects
from quantyard.shared_store.store_probe import probe_store, probe_store_apart

KEY = "a" * 64
NOW, DAY = timedelta(0), timedelta(days=1)


@pytest.fixture(params=[WAYS, (place_by_rename,), (place_in_folder,)], ids=["link", "rename", "folder"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> PosixObjects:
    """The store, with each of the ways to place an object."""
    return PosixObjects(tmp_path / "store", request.param)


def _content(store: PosixObjects, tmp_path: Path, text: str) -> FileEntry:
    path = tmp_path / "output"
    path.write_text(text)
    sha256 = hashlib.sha256(text.encode()).hexdigest()
    put_content(store, path, sha256)
    return FileEntry(path="model.gguf", size_bytes=len(text), sha256=sha256)


def _record(output: FileEntry, attempt: str) -> CommittedResult:
    result = StageResult(stage="convert", exit_code=0, outputs=(output,))
    return CommittedResult(key=KEY, label="convert", result=result, attempt=attempt, ended_at=datetime.now(UTC))


def _age(store: PosixObjects, name: str, age: timedelta) -> None:
    then = (datetime.now(UTC) - age).timestamp()
    path = store.root / name
    os.utime(path / ".entry" if path.is_dir() else path, (then, then))


def test_an_object_is_written_once_and_its_first_content_stays(store: PosixObjects) -> None:
    assert store.put_if_absent("ac/key", b"first") and not store.put_if_absent("ac/key", b"second")
    assert store.read_bytes("ac/key") == b"first"
    assert list(store.names("ac/")) == ["ac/key"] and not list((store.root / ".tmp").iterdir())


def test_an_object_can_be_replaced_and_removed(store: PosixObjects, tmp_path: Path) -> None:
    store.put_if_absent("leases/key", b"first")
    store.put("leases/key", b"second")
    store.read_to_file("leases/key", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == b"second" and list(store.names("leases/")) == ["leases/key"]
    store.remove("leases/key")
    store.remove("leases/key")
    assert store.status("leases/key") is None and store.put_if_absent("leases/key", b"third")


@pytest.mark.parametrize(("first", "second"), [*permutations([place_by_link, place_by_rename, place_in_folder], 2)])
def test_hosts_that_mount_a_folder_in_different_ways_have_one_winner(first: Way, second: Way, tmp_path: Path) -> None:
    assert PosixObjects(tmp_path, [first]).put_if_absent("ac/key", b"first")
    assert not PosixObjects(tmp_path, [second]).put_if_absent("ac/key", b"second")
    assert PosixObjects(tmp_path, [second]).read_bytes("ac/key") == b"first"


def _refuses(code: int) -> Way:
    def way(_complete: Path, _final: Path) -> bool:
        raise OSError(code, os.strerror(code))

    return way


@pytest.mark.parametrize("code", [errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK])
def test_without_hard_links_another_way_is_taken(code: int, tmp_path: Path) -> None:
    store = PosixObjects(tmp_path, [_refuses(code), _refuses(errno.EINVAL), place_in_folder])
    assert store.put_if_absent("ac/key", b"first") and not store.put_if_absent("ac/key", b"second")


def test_a_link_whose_answer_was_lost_counts_as_made(tmp_path: Path) -> None:
    def loses_the_answer(complete: Path, final: Path) -> bool:
        os.link(complete, final)  # the server made it; the client asks again
        return place_by_link(complete, final)

    assert PosixObjects(tmp_path, [loses_the_answer, place_in_folder]).put_if_absent("ac/key", b"first")


@pytest.mark.parametrize(("code", "kind"), [
    (errno.ENOSPC, OutOfResources), (errno.EDQUOT, OutOfResources), (errno.EROFS, BadRequest),
    (errno.EIO, StoreUnreachable), (errno.ESTALE, StoreUnreachable),
])  # fmt: skip
def test_faults_of_the_disk_are_told_with_a_remedy(code: int, kind: type[QuantyardError], tmp_path: Path) -> None:
    with pytest.raises(kind) as caught:
        PosixObjects(tmp_path, [_refuses(code)] * 2).put_if_absent("ac/key", b"first")
    assert str(tmp_path) in caught.value.message + caught.value.hint and caught.value.hint
    assert not list((tmp_path / ".tmp").iterdir())


@pytest.mark.parametrize("name", ["../key", "/etc/passwd", "ac/.hidden", "ac//key", ""])
def test_a_name_cannot_lead_out_of_the_store(name: str, store: PosixObjects) -> None:
    with pytest.raises(ValueError):
        store.put_if_absent(name or "/", b"")


@pytest.mark.parametrize("url", ["gs://bucket/x", "http://host/x", "s3://", " "])
def test_a_store_of_another_kind_is_refused(url: str) -> None:
    with pytest.raises(BadRequest) as caught:
        open_object_store(url)
    assert "STORE" in caught.value.message and "STORE=" in caught.value.hint


def test_a_store_is_named_by_a_path_or_a_file_url(tmp_path: Path) -> None:
    open_object_store(str(tmp_path)).put("ac/key", b"one")
    assert open_object_store(f"file://{tmp_path}").read_bytes("ac/key") == b"one"


def test_a_content_is_sent_once_and_checked_when_it_is_read(store: PosixObjects, tmp_path: Path) -> None:
    entry = _content(store, tmp_path, "weights")
    written = store.modified_at(content_name(entry.sha256 or ""))
    assert _content(store, tmp_path, "weights") == entry
    assert store.modified_at(content_name(entry.sha256 or "")) == written
    get_content(store, entry.sha256 or "", tmp_path / "copy")
    assert (tmp_path / "copy").read_text() == "weights"
    store.put(content_name(entry.sha256 or ""), b"rotten!")
    with pytest.raises(StoreDamaged):
        get_content(store, entry.sha256 or "", tmp_path / "damaged")
    assert not [path.name for path in tmp_path.iterdir() if "damaged" in path.name]


def test_the_first_commit_wins_and_one_with_other_bytes_is_kept_aside(store: PosixObjects, tmp_path: Path) -> None:
    first, other = (_content(store, tmp_path, text) for text in ("weights", "other weights"))
    assert committed_result(store, KEY) is None
    assert commit_result(store, _record(first, "one")) is Commit.WON
    assert commit_result(store, _record(first, "one")) is Commit.WON  # again, after a lost answer
    assert commit_result(store, _record(first, "two")) is Commit.SAME
    assert commit_result(store, _record(other, "three")) is Commit.DIFFERS
    assert (found := committed_result(store, KEY)) and found.attempt == "one" and found.outputs == (first,)
    assert differing_results(store) == differing_results(store, KEY) == [f"differing/{KEY}/three"]


def test_a_result_whose_contents_are_missing_is_not_committed(store: PosixObjects) -> None:
    missing = FileEntry(path="model.gguf", size_bytes=7, sha256="b" * 64)
    with pytest.raises(QuantyardError, match="lacks the content"):
        commit_result(store, _record(missing, "one"))
    assert committed_result(store, KEY) is None


@pytest.mark.parametrize("text", [b"", b"{ half", b"{}", b'{"key": NaN}'])
def test_a_damaged_result_is_told_as_such(text: bytes, store: PosixObjects) -> None:
    store.put(f"ac/{KEY}", text)
    with pytest.raises(StoreDamaged) as caught:
        committed_result(store, KEY)
    assert KEY in caught.value.message


def test_a_lease_is_one_owners_until_it_is_old(store: PosixObjects) -> None:
    one, two = new_lease_owner("99"), new_lease_owner()
    assert take_lease(LeaseWatch(store, KEY), one, 60) is None and take_lease(LeaseWatch(store, KEY), one, 60) is None
    assert (held := take_lease(LeaseWatch(store, KEY), two, 60)) and held.owner == one and "job 99" in str(held.owner)
    _age(store, f"leases/{KEY}", DAY)
    assert take_lease(LeaseWatch(store, KEY), two, 60) is None
    end_lease(store, KEY, one)  # not its own any more
    assert take_lease(LeaseWatch(store, KEY), one, 60) is not None
    end_lease(store, KEY, two)
    assert take_lease(LeaseWatch(store, KEY), one, 60) is None


@pytest.mark.parametrize("skew", [timedelta(hours=-2), timedelta(), timedelta(hours=2)])
def test_a_lease_that_is_renewed_is_not_stolen_and_a_dead_one_is_taken_whatever_the_clocks_say(
    skew: timedelta, store: PosixObjects
) -> None:
    one, two, watch = new_lease_owner(), new_lease_owner(), LeaseWatch(store, KEY)
    lease = Lease(owner=one, time_to_live_s=0.2)
    for _ in range(6):
        renew_lease(store, KEY, lease)
        _age(store, LEASES + KEY, skew)
        assert take_lease(watch, two, 0.2) == lease
        time.sleep(0.05)
    time.sleep(0.2)
    assert take_lease(watch, two, 0.2) is None


def test_gc_leaves_an_attempt_that_is_renewed_by_a_machine_whose_clock_is_behind(store: PosixObjects) -> None:
    dead, live = _killed_attempt(store), begin_attempt(store, KEY, new_lease_owner(), 0.4)
    ended = threading.Event()

    def renew() -> None:
        while not ended.wait(0.05):
            live.heartbeat()
            renew_lease(store, KEY, live.lease)
            for name in (f"{live.prefix}lease", f"{live.prefix}begun", LEASES + KEY):
                _age(store, name, timedelta(hours=2))

    beats = threading.Thread(target=renew)
    beats.start()
    try:
        time.sleep(0.1)
        assert collect_store_garbage(store, timedelta(hours=1)).attempts == ()
        _age(store, f"{dead}log", DAY)
        for name in ("lease", "begun"):
            _age(store, dead + name, timedelta(hours=2))
        assert collect_store_garbage(store, timedelta(hours=1)).attempts == (dead,)
        assert attempt_prefixes(store) == [live.prefix] and store.status(LEASES + KEY)
    finally:
        ended.set()
        beats.join()


@pytest.mark.skipif(os.geteuid() != 0, reason="takes another uid")
def test_a_store_of_another_uid_is_told_with_uid_owner_and_path() -> None:
    with tempfile.TemporaryDirectory() as folder:  # which every uid may enter
        Path(folder).chmod(0o755)
        program = f"""
import os, sys
from pathlib import Path
from quantyard.errors import QuantyardError
from quantyard.shared_store.posix_objects import PosixObjects
os.setuid(65534)
try:
    PosixObjects(Path({folder!r})).put("ac/one", b"one")
except QuantyardError as error:
    print(error.code, error.message, error.hint)
"""
        said = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout
    assert said.startswith("2 ") and f"{folder}/.tmp" in said and f"ls -ldn {folder}" in said
    assert "uid 65534 on" in said and "belongs to uid 0, mode 755" in said


def test_attempts_at_one_key_do_not_meet(store: PosixObjects) -> None:
    one, two = (begin_attempt(store, KEY, new_lease_owner(), 60) for _ in range(2))
    one.put("log", b"one's")
    two.put("log", b"two's")
    assert sorted(live_attempts(store, KEY)) == sorted([one.prefix, two.prefix])
    one.end()
    assert list(live_attempts(store, KEY)) == [two.prefix] and store.read_bytes(f"{two.prefix}log") == b"two's"


def _killed_attempt(store: PosixObjects) -> str:
    attempt = begin_attempt(store, KEY, new_lease_owner(), 0.001)
    attempt.put("log", b"half")
    return attempt.prefix


def test_gc_removes_attempts_that_were_killed_and_no_others(store: PosixObjects) -> None:
    live, dead = begin_attempt(store, KEY, new_lease_owner(), 60), _killed_attempt(store)
    assert collect_store_garbage(store, DAY).attempts == ()
    assert collect_store_garbage(store, NOW, dry_run=True).attempts == (dead,)
    assert attempt_prefixes(store) == sorted([live.prefix, dead])
    assert collect_store_garbage(store, NOW).attempts == (dead,)
    assert attempt_prefixes(store) == [live.prefix]


def test_gc_removes_old_contents_that_no_result_names(store: PosixObjects, tmp_path: Path) -> None:
    texts = ("named", "aside", "young", "again", "unnamed")
    named, aside, _young, again, unnamed = (_content(store, tmp_path, text) for text in texts)
    commit_result(store, _record(named, "one"))
    commit_result(store, _record(aside, "two"))
    for entry in (named, aside, again, unnamed):
        _age(store, content_name(entry.sha256 or ""), 2 * DAY)
    _content(store, tmp_path, "again")
    assert collect_store_garbage(store, DAY).contents == (content_name(unnamed.sha256 or ""),)
    assert len(list(store.names("cas/"))) == 4


def test_gc_removes_old_results_with_other_bytes_and_what_only_they_name(store: PosixObjects, tmp_path: Path) -> None:
    first, other = (_content(store, tmp_path, text) for text in ("weights", "other weights"))
    commit_result(store, _record(first, "one"))
    commit_result(store, _record(other, "two"))
    assert collect_store_garbage(store, DAY, NOW).differing == ()
    for dry_run in (True, False):
        found = collect_store_garbage(store, NOW, NOW, dry_run)
        assert found.differing == (f"differing/{KEY}/two",)
        assert found.contents == (content_name(other.sha256 or ""),)
    assert differing_results(store) == [] and committed_result(store, KEY) is not None


def test_gc_keeps_contents_that_a_live_attempt_may_have_put(store: PosixObjects, tmp_path: Path) -> None:
    attempt = begin_attempt(store, KEY, new_lease_owner(), 60)
    _age(store, f"{attempt.prefix}begun", 3 * DAY)
    _age(store, content_name(_content(store, tmp_path, "unnamed").sha256 or ""), 2 * DAY)
    assert collect_store_garbage(store, DAY).contents == ()
    attempt.end()
    assert len(collect_store_garbage(store, DAY).contents) == 1


def test_gc_removes_what_killed_writers_left_half_written(store: PosixObjects) -> None:
    store.put("ac/key", b"whole")
    (store.root / ".tmp" / "node-1-2").write_bytes(b"half")
    (store.root / ".tmp" / "node-1-3.d").mkdir()
    assert collect_store_garbage(store, DAY).others == 0
    assert collect_store_garbage(store, -DAY).others == 2 and not list((store.root / ".tmp").iterdir())


class ReplacingStore(PosixObjects):
    """Takes the condition and ignores it, as `rclone serve s3` does."""

    def put_if_absent(self, name: str, content: bytes | Path) -> bool:
        self.put(name, content)
        return True


class NotAtomicStore(PosixObjects):
    """Writes under the final name, as O_EXCL would."""

    def put_if_absent(self, name: str, content: bytes | Path) -> bool:
        assert isinstance(content, bytes)
        path = self.root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with path.open("xb", buffering=0) as stream:
                for at in range(0, len(content), 5_000):
                    stream.write(content[at : at + 5_000])
                    time.sleep(0.001)
        except FileExistsError:
            return False
        return True


class HidingStore(PosixObjects):
    """Tells every writer that the name is taken."""

    def put_if_absent(self, name: str, content: bytes | Path) -> bool:
        super().put_if_absent(name, content)
        return False


@pytest.mark.commands
@pytest.mark.parametrize("ways", [WAYS, (place_by_rename,), (place_in_folder,)], ids=["link", "rename", "folder"])
def test_a_folder_is_safe_for_sixteen_writers_at_once(ways: Sequence[Way], tmp_path: Path) -> None:
    probe = probe_store(lambda: PosixObjects(tmp_path, ways), n_rounds=10)
    assert probe.problems == () and not list(PosixObjects(tmp_path).names("probe/"))


@pytest.mark.commands
@pytest.mark.parametrize(("kind", "problem"), [
    (ReplacingStore, "16 of 16 writers"), (NotAtomicStore, "no writer had written whole"),
    (HidingStore, "0 of 16 writers"),
])  # fmt: skip
def test_the_probe_tells_of_a_store_that_breaks_its_promise(
    kind: type[PosixObjects], problem: str, tmp_path: Path
) -> None:
    assert any(problem in each for each in probe_store(lambda: kind(tmp_path)).problems)


@pytest.mark.commands
def test_the_probe_runs_in_a_process_of_its_own(tmp_path: Path) -> None:
    assert probe_store_apart(str(tmp_path)).problems == ()
