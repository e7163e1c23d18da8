"""The results of stages: `ac/<key>`, written last and only if absent, so that the first of all writers wins.

Its contents are in the store before. What loses with other bytes, though a key says all that can change them, is kept
aside as `differing/<key>/<attempt>`: a stage is not deterministic, or a machine or disk is faulty.
"""

import time
from datetime import datetime
from enum import StrEnum
from typing import Annotated, Final, Literal

from pydantic import Field

from quantyard.errors import QuantyardError, StoreDamaged
from quantyard.formats.strict_json import load_json
from quantyard.protocol.base import FileEntry, FileName, Frozen, Sha256, StageResult, files_digest
from quantyard.protocol.stage_result import MAX_RESULT_BYTES, parse_stage_result
from quantyard.shared_store.contents import missing_contents
from quantyard.shared_store.objects import ObjectStore

RESULTS: Final = "ac/"
DIFFERING: Final = "differing/"
_MAX_BYTES: Final = 2 * MAX_RESULT_BYTES
_VISIBLE_AFTER_S: Final = 10.0  # NFS clients remember for seconds that a name was absent
_STEP_S: Final = 0.2
_Word = Annotated[str, Field(max_length=200)]


class CommittedResult(Frozen):
    """The result of one stage, as an attempt commits it.

    Attributes:
        result: with the SHA-256 of every output; each is a content of the store.
        attempt: the attempt's name.
        node: what ran it: host, job, CPU …
    """

    schema_version: Literal[1] = 1
    key: Sha256
    label: str
    result: StageResult
    attempt: FileName
    node: dict[_Word, _Word] = Field(default_factory=dict)
    ended_at: datetime

    @property
    def outputs(self) -> tuple[FileEntry, ...]:
        """The outputs of the stage."""
        return self.result.outputs


class Commit(StrEnum):
    """What became of a result: it is the key's, or the key has the same outputs already, or others."""

    WON = "won"
    SAME = "same"
    DIFFERS = "differs"


def commit_result(store: ObjectStore, record: CommittedResult) -> Commit:
    """Make this the result of its key, unless the key has one; `committed_result` is the one that counts.

    Raises:
        QuantyardError: an output is not in the store.
        StoreDamaged: the key's result cannot be read.
    """
    if missing := missing_contents(store, record.outputs):
        raise QuantyardError(f"{record.label}: {store.url} lacks the content {missing[0]} of a result to commit.")
    text = record.model_dump_json(indent=1).encode()
    if store.put_if_absent(RESULTS + record.key, text):
        return Commit.WON
    there = _winner_of_key(store, record.key)
    if there.attempt == record.attempt:  # the store's answer was lost
        return Commit.WON
    if files_digest(there.outputs) == files_digest(record.outputs):
        return Commit.SAME
    store.put_if_absent(differing_name(record.key, record.attempt), text)
    return Commit.DIFFERS


def committed_result(store: ObjectStore, key: str) -> CommittedResult | None:
    """The result of a key; None if nobody has committed one.

    Raises:
        StoreDamaged: it cannot be read, or is not of this key.
    """
    try:
        text = store.read_bytes(RESULTS + key)
    except FileNotFoundError:
        return None
    try:
        value = load_json(text, _MAX_BYTES)
        record = CommittedResult.model_validate_json(text)
        parse_stage_result(record.result.model_dump_json().encode())
        if not isinstance(value, dict) or record.key != key or any(entry.sha256 is None for entry in record.outputs):
            raise ValueError("it is not of this key, or an output has no SHA-256")
    except ValueError as error:
        hint = "Look at the store's disk; then remove this object, and the stage runs again."
        raise StoreDamaged(f"{store.url}/{RESULTS}{key} is damaged: {str(error).splitlines()[0]}.", hint) from error
    return record


def differing_name(key: str, attempt: str) -> str:
    """Where the result of an attempt is kept that lost with other bytes."""
    return f"{DIFFERING}{key}/{attempt}"


def differing_results(store: ObjectStore, key: str = "") -> list[str]:
    """The names of results that lost with other bytes: of one key, or of all."""
    return sorted(store.names(f"{DIFFERING}{key}/" if key else DIFFERING))


def _winner_of_key(store: ObjectStore, key: str) -> CommittedResult:
    until = time.monotonic() + _VISIBLE_AFTER_S
    while (found := committed_result(store, key)) is None:
        if time.monotonic() > until:
            raise StoreDamaged(
                f"{store.url}/{RESULTS}{key} cannot be written, for it is there, nor read, for it is not.",
                f"This store is not safe for several writers. Type: quantyard doctor --store {store.url}",
            )
        time.sleep(_STEP_S)
    return found
