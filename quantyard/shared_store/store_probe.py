"""Tries whether a store keeps its promise: that of many writers of one name, one wins, and all read its object whole.

S3 behind FUSE, `rclone serve s3` and some gateways accept `If-None-Match: *` and ignore it: each writer is told that it
won, and the last one's object is there. Nothing but a race shows that.

`python -m quantyard.shared_store.store_probe URL …` races in a process of its own, which forks the writers: a process
with threads (that of a command may have some) is not to be forked. Several URLs are mounts of one store.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from quantyard.errors import QuantyardError
from quantyard.files.unique_names import new_process_mark
from quantyard.shared_store.mounts import bucket_behind_fuse
from quantyard.shared_store.objects import ObjectStore
from quantyard.shared_store.open_store import open_object_store
from quantyard.shared_store.posix_objects import PosixObjects

if TYPE_CHECKING:
    from multiprocessing.synchronize import Barrier

PROBES: Final = "probe/"
WRITERS: Final = 16
ROUNDS: Final = 5
_OBJECT_BYTES: Final = 300_000  # more than one packet, so that a half one would be seen
_SMALLEST_PART_BYTES: Final = 5 * 2**20  # of S3
_TIMEOUT_S: Final = 180
_START_S: Final = 60


@dataclass(frozen=True)
class StoreProbe:
    """What a probe found: nothing, or what is wrong, one sentence each."""

    problems: tuple[str, ...]
    n_writers: int = WRITERS
    n_rounds: int = ROUNDS


@dataclass(frozen=True)
class _Try:
    """One writer in one round: whether it was told that it won, what it wrote, and what it read then."""

    round: int
    has_won: bool
    wrote: str
    read: str
    error: str = ""


Opener = Callable[[], ObjectStore]


def probe_store_apart(url: str) -> StoreProbe:
    """Probe the store at `url` in another process.

    Raises:
        QuantyardError: the store cannot be opened or written, or the probe does not end.
    """
    store = open_object_store(url)
    store.now()  # raises what is wrong with the name, the keys or the folder
    if isinstance(store, PosixObjects) and (kind := bucket_behind_fuse(store.root)):
        return StoreProbe((f"it is a bucket behind FUSE ({kind}), where each machine decides for itself who wins",))
    argv = [sys.executable, "-m", __name__, url]
    try:
        run = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
        found = json.loads(run.stdout)
    except subprocess.TimeoutExpired as error:
        raise QuantyardError(f"The probe of {url} did not end within {_TIMEOUT_S} s.", "Try it again.") from error
    except ValueError as error:
        raise QuantyardError(f"The probe of {url} failed.", "", run.stderr[-2000:]) from error
    return StoreProbe(tuple(found["problems"]), found["n_writers"], found["n_rounds"])


def probe_store(*openers: Opener, n_processes: int = WRITERS, n_rounds: int = ROUNDS) -> StoreProbe:
    """Probe a store with 16 writers, as threads of `n_processes` processes that are forked; each opens the store, in
    turn by one of the openers: several mounts of one store.
    """
    prefix, n_writers = f"{PROBES}{new_process_mark()}/", n_processes * max(1, WRITERS // n_processes)
    tries = _raced(openers, prefix, n_processes, n_writers // n_processes, n_rounds)
    store = openers[0]()
    try:
        problems = [*_problems_of_race(tries, n_writers, n_rounds), *_problems_of_parts(store, prefix)]
    finally:
        with suppress(QuantyardError, OSError):
            for name in list(store.names(prefix)):
                store.remove(name)
    return StoreProbe(tuple(problems), n_writers, n_rounds)


def _raced(openers: Sequence[Opener], prefix: str, n_processes: int, n_in_each: int, n_rounds: int) -> list[_Try]:
    context = multiprocessing.get_context("fork")
    begin, tries = context.Barrier(n_processes * n_in_each), context.SimpleQueue()
    numbers = [range(first, first + n_in_each) for first in range(0, n_processes * n_in_each, n_in_each)]
    rest = (n_rounds, begin, tries)
    writers = [
        context.Process(target=_race_in_process, args=(openers[at % len(openers)], prefix, each, *rest))
        for at, each in enumerate(numbers)
    ]
    for writer in writers:
        writer.start()
    found = [tries.get() for _ in range(n_processes * n_in_each * n_rounds)]
    for writer in writers:
        writer.join()
    return found


def _race_in_process(
    opener: Opener, prefix: str, numbers: Sequence[int], n_rounds: int, begin: Barrier, tries: Any
) -> None:
    store, said = None, ""
    try:
        store = opener()
        store.status(f"{prefix}nothing")  # connects
    except Exception as error:
        said = str(error)

    def race(number: int) -> None:
        for round_number in range(n_rounds):
            with suppress(Exception):  # a broken barrier: some writer did not come; the others go on
                begin.wait(_START_S)
            if store is None:
                tries.put(_Try(round_number, has_won=False, wrote="", read="", error=said))
            else:
                tries.put(_try_once(store, f"{prefix}{round_number}", round_number, number))

    threads = [threading.Thread(target=race, args=(number,)) for number in numbers]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _try_once(store: ObjectStore, name: str, round_number: int, number: int) -> _Try:
    content = (f"{round_number} {number}\n".encode() * _OBJECT_BYTES)[:_OBJECT_BYTES]
    wrote = hashlib.sha256(content).hexdigest()
    try:
        has_won = store.put_if_absent(name, content)
        return _Try(round_number, has_won, wrote, hashlib.sha256(store.read_bytes(name)).hexdigest())
    except Exception as error:
        return _Try(round_number, has_won=False, wrote=wrote, read="", error=f"{type(error).__name__}: {error}")


def _problems_of_race(tries: Sequence[_Try], n_writers: int, n_rounds: int) -> list[str]:
    if errors := Counter(each.error for each in tries if each.error):
        error, times = errors.most_common(1)[0]
        return [f"{times} of {len(tries)} writes of one name at once failed: {error}"]
    rounds = [[each for each in tries if each.round == number] for number in range(n_rounds)]
    winners = [sum(each.has_won for each in of_round) for of_round in rounds]
    problems = list[str]()
    if wrong := [count for count in winners if count != 1]:
        problems.append(
            f"{max(wrong) if max(wrong) > 1 else 0} of {n_writers} writers of one name were told that they alone had "
            f"written it, in {len(wrong)} of {n_rounds} rounds"
        )
    if any(each.read not in {other.wrote for other in of_round} for of_round in rounds for each in of_round):
        problems.append("a reader saw an object that no writer had written whole")
    elif any(len({each.read for each in of_round}) > 1 for of_round in rounds):
        problems.append("readers of one name saw different objects, so one was replaced")
    return problems


def _problems_of_parts(store: ObjectStore, prefix: str) -> list[str]:
    """Large objects go to S3 in parts, with the condition on the last call, which a server may ignore."""
    from quantyard.shared_store.s3_objects import S3Objects

    if not isinstance(store, S3Objects):
        return []
    in_parts, name = store.with_parts_of(_SMALLEST_PART_BYTES), f"{prefix}parts"
    store.put_if_absent(name, b"first")
    with tempfile.NamedTemporaryFile() as large:
        large.truncate(2 * _SMALLEST_PART_BYTES)
        large.flush()
        if in_parts.put_if_absent(name, Path(large.name)):
            return ["an object that was there was replaced by one that was sent in parts"]
    return []


if __name__ == "__main__":
    places = sys.argv[1:]
    # A client of S3 takes half a second to start, and its writers meet in the server, not in this machine.
    processes = 4 if places[0].startswith("s3://") else WRITERS
    found = probe_store(*(partial(open_object_store, place) for place in places), n_processes=processes)
    sys.stdout.write(json.dumps(asdict(found)))
