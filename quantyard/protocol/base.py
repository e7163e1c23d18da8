"""The messages between the orchestrator and a stage.

A stage is a process. It reads `request.json` and its inputs under `/in` (read-only), writes its files to `/out/files`
and its result to `/out/result.json`, prints progress as JSON lines on stdout and logs on stderr, and ends with one of
`ExitCode`. Inputs are identified by digest, never by a path of the machine that planned them, so that an engine may run
the stage anywhere.
"""

import hashlib
import json
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from quantyard.formats.finite_json import MAX_INT, only_finite_json
from quantyard.formats.names import parse_file_name, parse_relative_path
from quantyard.protocol.exit_codes import ExitCode as ExitCode  # noqa: PLC0414  (stages import it from here)

PROTOCOL_VERSION: Final = 1
MAX_OUTPUTS: Final = 20_000  # files of one stage
_MAX_TEXT: Final = 20_000  # characters of an error's message or detail
_MAX_DURATION_S: Final = 1e9


class Frozen(BaseModel):
    """Base of all messages and records: immutable, without unknown fields, and without NaN or infinity.

    Modules that define models leave out `from __future__ import annotations`: every annotation would be text that
    pydantic compiles and evaluates whenever a command starts.
    """

    # defer_build: a command builds only the validators of the classes that it uses, so that it starts faster.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


def _end_of_long_result_text(text: object) -> object:
    """The end of a text that is too long: the last lines of a tool are the most useful."""
    return f"… {text[-_MAX_TEXT:]}" if isinstance(text, str) and len(text) > _MAX_TEXT + 2 else text


def _result_number_not_boolean(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a boolean is not an exit code")  # noqa: TRY004  (pydantic expects ValueError)
    return value


def _request_folder_without_slash(value: object) -> object:
    return value.removesuffix("/") if isinstance(value, str) else value


RelativePath = Annotated[str, AfterValidator(parse_relative_path)]
RelativeFolder = Annotated[RelativePath, BeforeValidator(_request_folder_without_slash)]  # people write tasks/
FileName = Annotated[str, AfterValidator(parse_file_name)]  # of a file or a folder, not a path
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
JsonObject = Annotated[dict[str, JsonValue], AfterValidator(only_finite_json)]
Cut = Annotated[str, BeforeValidator(_end_of_long_result_text)]
_Count = Annotated[int, Field(ge=0, lt=MAX_INT)]
_Word = Annotated[str, Field(max_length=1000)]


class FileEntry(Frozen):
    """One file of an artifact: its path in it, its size and its hash."""

    path: RelativePath
    size_bytes: _Count
    sha256: Sha256 | None = None  # None: the source does not state it (small files of a Hub repo)


class StageRequest(Frozen):
    """Base of the requests. `not_in_key` names the settings that cannot change the stage's outputs; "runtime.threads"
    is a nested one.
    """

    contract: Literal[1] = PROTOCOL_VERSION  # the name that version 0.1.0 gave it
    stage: str
    not_in_key: ClassVar[frozenset[str]] = frozenset()


class StageError(Frozen):
    """Why a stage failed: fact and value in `message`, what to do next in `hint`."""

    kind: _Word
    message: Cut
    hint: Cut = ""
    detail: Cut = ""  # the last lines of the failed tool's stderr


class NodeFacts(Frozen):
    """The machine that ran a stage, as the stage itself saw it; empty where it did not tell."""

    cpu: _Word = ""  # architecture and model
    physical_cores: _Count = 0  # that the stage could use
    memory_bytes: _Count = 0  # of the machine
    gpu: _Word = ""

    @property
    def node_class(self) -> str:
        """Machines of one class have comparable speeds: "x86_64 AMD EPYC 9454, 8 cores, NVIDIA H200"; "": not known."""
        cores = f"{self.physical_cores} cores" if self.physical_cores else ""
        return ", ".join(part for part in (self.cpu, cores, self.gpu) if part) if self.cpu else ""


class RanOn(Frozen):
    """Where a stage ran, if not where it was planned. Quantyard's own record: what a stage says of it is dropped."""

    host: _Word
    job: _Word = ""  # as the queue names it: "slurm 4711"
    tools: Annotated[dict[_Word, Cut], Field(max_length=100)] = {}  # as the engine of the node describes them


class StageResult(Frozen):
    """The result of a stage. `outputs` are paths under `/out/files`. The store computes their SHA-256 again, so a stage
    states one only if it knows it already.
    """

    contract: Literal[1] = PROTOCOL_VERSION  # the name that version 0.1.0 gave it
    stage: _Word
    exit_code: Annotated[ExitCode, BeforeValidator(_result_number_not_boolean)]
    outputs: Annotated[tuple[FileEntry, ...], Field(max_length=MAX_OUTPUTS)] = ()
    facts: JsonObject = {}
    tools: Annotated[dict[_Word, _Word], Field(max_length=100)] = {}  # tool → version
    argv: Annotated[tuple[tuple[str, ...], ...], Field(max_length=1000)] = ()  # the commands it ran
    duration_s: Annotated[float, Field(ge=0, le=_MAX_DURATION_S)] = 0.0
    cpu: _Word = ""  # of the machine that ran it
    node: NodeFacts = Field(default_factory=NodeFacts)  # that machine
    # Of a result that was put together: the machines of the shards, in their order. The orchestrator states them.
    shard_nodes: Annotated[tuple[NodeFacts, ...], Field(max_length=1000, exclude_if=lambda value: not value)] = ()
    # Where it ran, if not where it was planned.
    ran_on: Annotated[RanOn | None, Field(exclude_if=lambda value: value is None)] = None
    error: StageError | None = None


class Progress(Frozen):
    """One line of a stage's stdout."""

    event: Literal["progress"] = "progress"
    stage: _Word
    done: _Count
    total: _Count | None
    unit: Literal["bytes", "tensors", "checks", "questions", "chunks", "repeats", "texts"]
    what: _Word = ""  # the name of what runs inside: a check, a task, a tensor


def json_digest(value: JsonValue) -> str:
    """SHA-256 (hex) of a JSON value in canonical form: sorted keys, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def files_digest(files: tuple[FileEntry, ...]) -> str:
    """The digest that identifies an artifact: over the paths, sizes and hashes of its files."""
    return json_digest([[f.path, f.size_bytes, f.sha256] for f in sorted(files, key=lambda f: f.path)])


def stage_request_digest(request: StageRequest) -> str:
    """The digest of a request for the stage's key, without the settings in `not_in_key`."""
    parts = (name.partition(".") for name in request.not_in_key)
    exclude: dict[str, Any] = {name: {inner} if inner else True for name, _, inner in parts}
    return json_digest(request.model_dump(mode="json", exclude=exclude))
