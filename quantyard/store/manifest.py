"""`manifest.json`: which files were made, from which inputs, by which tools. The card and `verify` use only this."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from quantyard.errors import BadRequest
from quantyard.files.atomic import write_file_atomically
from quantyard.files.lock_file import held_lock_file
from quantyard.formats.finite_json import dump_finite_json
from quantyard.formats.names import shown_name
from quantyard.formats.strict_json import load_json
from quantyard.protocol.base import FileEntry, FileName, JsonObject, NodeFacts, RelativePath, Sha256
from quantyard.protocol.checked_facts import check_stage_facts
from quantyard.protocol.facts import TwinFacts
from quantyard.protocol.gate import GateReport
from quantyard.protocol.late_models import late_model
from quantyard.protocol.narrow_rows import NarrowRows
from quantyard.version import __version__

if TYPE_CHECKING:
    from quantyard.protocol.api_tests import ContractReport
    from quantyard.protocol.measurements import EvalReport
else:  # most builds measure nothing
    ContractReport = late_model("quantyard.protocol.api_tests", "ContractReport")
    EvalReport = late_model("quantyard.protocol.measurements", "EvalReport")

SCHEMA_VERSION: Final = 1
# What Ollama and LM Studio read beside the files of a release.
MODELFILE: Final = "Modelfile"
MODEL_YAML: Final = "model.yaml"
MAX_BYTES: Final = 16 * 2**20  # of a manifest; with a hundred files it has a tenth of that
_LONGEST_KEY: Final = 60  # characters; longer keys are shortened in messages
_Size = Annotated[int, Field(ge=0)]
_StopText = Annotated[str, Field(min_length=1, max_length=100)]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, defer_build=True)


class SourceCard(_Record):
    """The fields of the source's own card that ours repeats; empty if it does not have them."""

    license_name: str = ""
    license_link: str = ""
    gated: Literal["", "auto", "manual"] = ""  # the Hub's value: how access is granted
    private: Annotated[bool, Field(exclude_if=lambda value: not value)] = False
    languages: list[str] = []
    pipeline_tag: str = ""
    tags: list[str] = []


class SourceRecord(_Record):
    """The source of the model. `commit` is the Hub's, or the digest of a local source's files."""

    kind: Literal["huggingface", "gguf"]
    title: str
    repo_id: str
    revision: str
    commit: str
    license: str | None
    files: list[FileEntry]
    gguf_file: RelativePath | None = None
    dtypes: dict[str, int] = {}
    quantization: Annotated[str, Field(exclude_if=lambda value: not value)] = ""  # of its weights: "GPTQ, 4 bit"
    card: SourceCard = SourceCard()


class StageRecord(_Record):
    """The complete record of one stage: enough to run it again and compare the results."""

    key: Sha256  # its first digits are in the name of the stage's folder
    request: JsonObject
    inputs: dict[str, str]
    outputs: list[FileEntry]
    facts: JsonObject
    tools: dict[str, str]
    argv: list[list[str]]
    duration_s: float
    ran_by: dict[str, str]  # the engine: image digests, or package versions
    cpu: str  # of the machine that ran it; "" if the stage did not report it
    node: Annotated[NodeFacts | None, Field(exclude_if=lambda value: value is None)] = None  # that machine
    # Where the stage ran in shards, the machines of these; what is recorded here then put them together.
    shard_nodes: Annotated[list[NodeFacts], Field(exclude_if=lambda value: not value)] = []
    finished_at: datetime
    # The quant of the one file that the stage is about; "" if several need it. Version 0.1.0 did not record it.
    quant: Annotated[str | None, Field(exclude_if=lambda value: value is None)] = None

    @model_validator(mode="after")
    def _checked(self) -> Self:
        check_stage_facts(str(self.request.get("stage")), self.facts)
        return self


class ImatrixRecord(_Record):
    """The importance matrix that a file was made with: its file beside the models, and the stage's input files.

    The digest of `given` is the stage's input `imatrix`. For a matrix that we computed, `given` includes its text.
    """

    file: FileName
    size_bytes: _Size
    sha256: Sha256
    given: list[FileEntry]


class ContextRecord(_Record):
    """What llama.cpp allocates for a context of so many tokens, in bytes: caches, states and masks.

    `served`: as llama-server runs it for one user; `measured`: at the contexts that speed was measured at.
    """

    served: dict[int, _Size]
    measured: dict[int, _Size]

    def memory_bytes(self, peak_bytes: int, measured_tokens: int, tokens: int) -> int | None:
        """The memory at another context than the measured one; None if it is not known exactly."""
        if tokens not in self.served or measured_tokens not in self.measured:
            return None
        return peak_bytes + self.served[tokens] - self.measured[measured_tokens]


class UseRecord(_Record):
    """How the model is used, as its own files say. `prompt` is a conversation in its chat template; `sampling` maps
    the names that llama.cpp gives its settings ("temp", "top_p") to the model's values.
    """

    context_tokens: _Size = 0  # that it was trained for; 0: not known
    prompt: Annotated[str, Field(max_length=4000)] = ""
    sampling: Annotated[dict[str, float], Field(max_length=20)] = {}
    # The texts of the tokens that end an answer.
    stop: Annotated[list[_StopText], Field(max_length=10, exclude_if=lambda value: not value)] = []


class QuantRecord(_Record):
    """One GGUF: its file, and the stages that made and verified it."""

    file: FileName
    size_bytes: _Size
    sha256: Sha256
    bits_per_weight: float
    made_by: str  # label in `stages`; "": the source itself is the file
    verified_by: str
    parts: list[FileEntry] = []  # if it is published in parts; size and hash above are those of the whole file
    imatrix: ImatrixRecord | None = None
    context: Annotated[ContextRecord | None, Field(exclude_if=lambda value: value is None)] = None  # of a release
    narrow_rows: Annotated[NarrowRows | None, Field(exclude_if=lambda value: value is None)] = None

    @property
    def files(self) -> list[FileEntry]:
        """Its parts, or the one file."""
        return self.parts or [FileEntry(path=self.file, size_bytes=self.size_bytes, sha256=self.sha256)]


class ProjectorRecord(_Record):
    """What reads pictures or sound for these models: a file of its own, in one or two types, or why there is none."""

    media: Annotated[list[Literal["vision", "audio"]], Field(min_length=1, max_length=2)]
    files: list[FileEntry] = []  # the first is the one to serve: in 16 bit; then Q8_0, where it is as good
    made_by: str = ""  # label in `stages`
    left_out: Literal["", "asked", "unsupported"] = ""  # PARTS=text, or the converter cannot make it


class Manifest(_Record):
    """The complete record of one model at one commit."""

    schema_version: Literal[1] = SCHEMA_VERSION
    quantyard: str = __version__
    source: SourceRecord
    stages: dict[FileName, StageRecord] = {}  # by label, which names a folder
    quants: dict[FileName, QuantRecord] = {}
    evaluations: dict[str, EvalReport] = {}  # by the suite's name
    contracts: dict[str, ContractReport] = {}  # by the quant's name
    gate: GateReport | None = None  # the last one
    use: Annotated[UseRecord | None, Field(exclude_if=lambda value: value is None)] = None  # of a release
    projector: Annotated[ProjectorRecord | None, Field(exclude_if=lambda value: value is None)] = None
    # For Ollama and LM Studio.
    app_files: Annotated[list[FileEntry], Field(max_length=10, exclude_if=lambda value: not value)] = []
    # Of a release: the small files published beside the models, by git's names of their contents. What differs from
    # them later was changed by somebody else.
    published: Annotated[dict[RelativePath, str], Field(exclude_if=lambda value: not value)] = {}
    stated_license: str = ""  # set by the publisher, if the source does not state a usable one

    @property
    def imatrices(self) -> dict[str, ImatrixRecord]:
        """Each importance matrix once, by the name of its file."""
        return {record.imatrix.file: record.imatrix for record in self.quants.values() if record.imatrix}

    @property
    def twins(self) -> dict[str, TwinFacts]:
        """What the comparisons with Transformers found, by stage: `twin`, `parity`."""
        return {name: TwinFacts.read(self.stages[name].facts) for name in ("twin", "parity") if name in self.stages}


def stage_record_file(label: str, record: StageRecord) -> str:
    """The quant of the file that a stage is about; "" if several need it. Version 0.1.0 had it only in the label."""
    return label.partition(" ")[2] if record.quant is None else record.quant


def read_manifest(path: Path) -> Manifest | None:
    """The manifest at `path`; None if it is missing or unreadable.

    Raises:
        BadRequest: a newer Quantyard wrote it, and this version would lose parts of it.
    """
    try:
        return parse_manifest(path.read_bytes(), str(path))
    except (OSError, ValueError):
        return None


@contextmanager
def changing_manifest(path: Path) -> Iterator[None]:
    """Read, change and write the manifest at `path` inside of this, so that the changes of other processes stay."""
    with held_lock_file(path.with_name(".manifest.lock")):
        yield


def write_manifest(path: Path, manifest: Manifest) -> None:
    """Write the manifest atomically: a reader sees the old one or the new one."""
    write_file_atomically(path, f"{manifest.model_dump_json(indent=2)}\n".encode())


def parse_manifest(text: bytes, name: str) -> Manifest:
    """Parse a manifest; `name` is for messages.

    Raises:
        ValueError: it is not a valid manifest.
        BadRequest: a newer Quantyard wrote it.
    """
    value = load_json(text, MAX_BYTES)
    version = value.get("schema_version") if isinstance(value, dict) else None
    if isinstance(version, int) and version > SCHEMA_VERSION:
        by = f"{version}, by Quantyard {_brief_manifest_value(value.get('quantyard'))}"
        by += f"; this is {__version__} and knows {SCHEMA_VERSION}"
        raise BadRequest(f"{name} is a manifest of version {by}.", "Update Quantyard: git pull")
    try:
        return Manifest.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_input=False, include_url=False)[0]
        where = ".".join(_brief_manifest_value(part) for part in first["loc"])
        raise ValueError(f"{where}: {first['msg']}" if where else first["msg"]) from error


def _brief_manifest_value(value: object) -> str:
    """A key or value of an untrusted file, short and printable."""
    text = str(value)
    return text if len(text) <= _LONGEST_KEY and text.isprintable() else shown_name(text, _LONGEST_KEY)


def salvaged_manifest(text: bytes, source: SourceRecord) -> tuple[Manifest, list[str]]:
    """A new manifest with every intact record of a damaged one, and the names of the lost ones: ["quants Q4_K_M"]."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = None
    manifest = Manifest(source=source)
    if not isinstance(value, dict):
        return manifest, ["everything"]
    lost, told = list[str](), source.model_dump(mode="json")
    for group in ("stages", "quants", "evaluations", "contracts"):
        records = value.get(group)
        for name, record in records.items() if isinstance(records, dict) else ():
            try:
                part = parse_manifest(dump_finite_json({"source": told, group: {name: record}}).encode(), "")
            except (ValueError, BadRequest, RecursionError):
                lost.append(f"{group} {name}")
            else:
                getattr(manifest, group).update(getattr(part, group))
    return manifest, lost
