"""What the orchestrator and a stage say to each other: the only code that both sides share.

A stage is a process. It finds `request.json` and its inputs under `/in` (read-only), writes its files
to `/out/files` and its answer to `/out/result.json`, prints progress as JSON lines on stdout and logs on
stderr, and ends with one of `ExitCode`. Inputs are named by digest, never by a path of the machine that
planned them, so that an engine may run the stage anywhere.
"""

from __future__ import annotations

import hashlib
import json
from typing import Annotated, Any, ClassVar, Final, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from quantyard.formats.finite_json import MAX_INT, only_finite
from quantyard.formats.names import one_name, relative_path
from quantyard.protocol.exit_codes import ExitCode as ExitCode  # noqa: PLC0414  (stages import it from here)

CONTRACT_VERSION: Final = 1
MAX_OUTPUTS: Final = 20_000  # files of one stage
_MAX_TEXT: Final = 20_000  # characters of an error's message or detail
_MAX_DURATION_S: Final = 1e9


class Frozen(BaseModel):
    """Base of everything that crosses the border: immutable, strict about unknown fields, and no number in it is NaN
    or infinite.
    """

    # Deferred: a command that starts builds the validators of those classes alone that it meets.
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, defer_build=True)


def _cut(text: object) -> object:
    """The end of a text that is too long: a tool's last lines say most."""
    return f"… {text[-_MAX_TEXT:]}" if isinstance(text, str) and len(text) > _MAX_TEXT + 2 else text


def _no_truth(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("a truth value is no exit code")  # noqa: TRY004  (pydantic's way)
    return value


def _is_none(value: object) -> bool:
    return value is None


def _is_empty(value: object) -> bool:
    return not value


def _without_slash(value: object) -> object:
    return value.removesuffix("/") if isinstance(value, str) else value


RelativePath = Annotated[str, AfterValidator(relative_path)]
RelativeFolder = Annotated[RelativePath, BeforeValidator(_without_slash)]  # people write tasks/
FileName = Annotated[str, AfterValidator(one_name)]  # of a file or a folder, not a path
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
JsonObject = Annotated[dict[str, JsonValue], AfterValidator(only_finite)]
Cut = Annotated[str, BeforeValidator(_cut)]
_Count = Annotated[int, Field(ge=0, lt=MAX_INT)]
_Word = Annotated[str, Field(max_length=1000)]


class FileEntry(Frozen):
    """One file of an artifact: where it is inside it, how large it is, and what it holds."""

    path: RelativePath
    size_bytes: _Count
    sha256: Sha256 | None = None  # None: the source does not say (small files of a Hub repo)


class StageRequest(Frozen):
    """Base of the requests. `not_in_key` names the settings that cannot change the stage's bytes ("runtime.threads":
    one inside another).
    """

    contract: Literal[1] = CONTRACT_VERSION
    stage: str
    not_in_key: ClassVar[frozenset[str]] = frozenset()


class FetchRequest(StageRequest):
    """Download exactly these files of a Hub repo at one commit.

    `endpoint` stays out of the key: a mirror serves the same commit.
    """

    stage: Literal["fetch"] = "fetch"
    repo_id: str
    commit: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]
    files: tuple[FileEntry, ...]
    endpoint: str | None = None
    workers: Annotated[int, Field(ge=1, le=32)] = 4
    not_in_key: ClassVar[frozenset[str]] = frozenset({"endpoint", "workers"})


OutType = Literal["auto", "bf16", "f16", "f32", "q8_0"]


class ConvertRequest(StageRequest):
    """Turn the Hugging Face folder at `/in/source` into `/out/files/model.gguf`, and record in
    `/out/files/reference.json` what its tokenizer and chat template say (see `Reference`).
    """

    stage: Literal["convert"] = "convert"
    name: str  # the model's name in the GGUF metadata
    outtype: OutType = "auto"
    allow_pickle: bool = False


class CalibrateRequest(StageRequest):
    """Make `/out/files/imatrix.gguf`, the importance matrix of the GGUF in `/in/source`, and beside it
    `calibration.txt`, the text that was read: the files in `/in/text` one after the other, or Quantyard's own.
    """

    stage: Literal["calibrate"] = "calibrate"
    source_file: RelativePath = "model.gguf"
    text_files: tuple[RelativePath, ...] = ()  # (): Quantyard's own text
    n_ctx: Annotated[int, Field(ge=64)] = 512  # tokens of a chunk; llama-imatrix's default
    n_chunks: Annotated[int, Field(ge=0)] = 0  # 0: the whole text
    save_every: Annotated[int, Field(ge=1)] = 20  # chunks between two saves, at most so many are lost to a kill
    threads: Annotated[int, Field(ge=0)] = 0
    not_in_key: ClassVar[frozenset[str]] = frozenset({"threads"})


class QuantizeRequest(StageRequest):
    """Quantize the GGUF in `/in/source` to `/out/files/model.gguf`, with the matrix in `/in/imatrix` if there is one.

    A request without a matrix says nothing of it, so that its key is what it was before there were any; the same goes
    for a recipe, which changes the types that `quant` gives.
    """

    stage: Literal["quantize"] = "quantize"
    quant: str
    ftype: int  # llama_ftype, include/llama.h
    source_file: RelativePath = "model.gguf"
    imatrix_file: Annotated[RelativePath | None, Field(exclude_if=_is_none)] = None
    recipe: Annotated[str, Field(exclude_if=_is_empty)] = ""  # its name; what it says is in the next three
    tensor_types: Annotated[dict[str, str], Field(exclude_if=_is_empty)] = {}  # see `tensor_patterns.py`
    output_type: Annotated[str | None, Field(exclude_if=_is_none)] = None
    token_embedding_type: Annotated[str | None, Field(exclude_if=_is_none)] = None
    allow_requantize: bool = False
    threads: Annotated[int, Field(ge=0)] = 0  # 0: all cores
    not_in_key: ClassVar[frozenset[str]] = frozenset({"threads", "recipe"})

    @property
    def label(self) -> str:
        """What the file is called: the recipe's name, else the quant's."""
        return self.recipe or self.quant


class RoundingRequest(StageRequest):
    """Measure how far each of these types rounds the weights of the GGUF in `/in/source`; see builder/rounding.py."""

    stage: Literal["rounding"] = "rounding"
    source_file: RelativePath = "model.gguf"
    types: tuple[str, ...]
    rows: Annotated[int, Field(ge=1)] = 256  # of each tensor, at most


class VerifyRequest(StageRequest):
    """Check the GGUF in `/in/model` against the one it came from in `/in/source`, and against the
    Hugging Face side's `reference.json` where the source was a Hugging Face folder.
    """

    stage: Literal["verify"] = "verify"
    quant: str
    model_file: RelativePath = "model.gguf"
    source_file: RelativePath = "model.gguf"
    has_reference: bool = True
    tensor_types: Annotated[dict[str, str], Field(exclude_if=_is_empty)] = {}  # of the recipe it was made by
    output_type: Annotated[str | None, Field(exclude_if=_is_none)] = None
    token_embedding_type: Annotated[str | None, Field(exclude_if=_is_none)] = None
    allow_mismatch: bool = False  # record what differs from the Hugging Face tokenizer and template, and pass
    threads: Annotated[int, Field(ge=0)] = 0
    not_in_key: ClassVar[frozenset[str]] = frozenset({"threads"})


class DequantizeRequest(StageRequest):
    """Turn the GGUF in `/in/source` back into a Hugging Face folder (what `make demo` starts from)."""

    stage: Literal["dequantize"] = "dequantize"
    source_file: RelativePath


class RandomModelRequest(StageRequest):
    """Make a model of random weights in Hugging Face format, to time the other stages with; see `make rates`."""

    stage: Literal["random_model"] = "random_model"
    layers: Annotated[int, Field(ge=1)]
    width: Annotated[int, Field(ge=128, multiple_of=128)]  # of a row; two attention heads are the least
    vocab_size: Annotated[int, Field(ge=1000)] = 16_000  # tokens; about as many as our text is good for
    seed: Annotated[int, Field(ge=0)] = 1234


class LoraRequest(StageRequest):
    """Turn the PEFT adapter at `/in/adapter` into `/out/files/adapter.gguf`, for the base model whose configuration
    is in `/in/base`.
    """

    stage: Literal["lora"] = "lora"
    name: str  # the adapter's name in the GGUF metadata
    allow_pickle: bool = False


class SplitRequest(StageRequest):
    """Split the GGUF in `/in/source` into shards `/out/files/<prefix>-00001-of-0000N.gguf`, none above the limit."""

    stage: Literal["split"] = "split"
    model_file: RelativePath
    prefix: Annotated[RelativePath, Field(pattern=r"^[^/]{1,200}$")]  # of the shards' names
    max_size_bytes: Annotated[int, Field(ge=1)]


class ChatReference(Frozen):
    """One conversation and the text the Hugging Face template renders it to."""

    name: str
    messages: list[dict[str, str]]
    text: str


class Reference(Frozen):
    """What the Hugging Face side says; `verify` holds every GGUF of the model against it."""

    tokenizer_class: str
    bos_token: str | None
    probe_ids: dict[str, list[int]]  # probe text → token ids, special tokens parsed, none added
    probe_ids_with_special: dict[str, list[int]]  # the same with BOS/EOS added as the tokenizer does
    chat_template: bool
    chats: list[ChatReference]
    refused_chats: dict[str, str]  # conversation name → why the template itself refuses it


class StageError(Frozen):
    """Why a stage failed: fact and value in `message`, what to do next in `hint`."""

    kind: _Word
    message: Cut
    hint: Cut = ""
    detail: Cut = ""  # the last lines of the failed tool's stderr


class StageResult(Frozen):
    """What a stage answers. `outputs` are paths under `/out/files`; whoever takes them computes their SHA-256 anew, so
    a stage says one only where it knows it anyway.
    """

    contract: Literal[1] = CONTRACT_VERSION
    stage: _Word
    exit_code: Annotated[ExitCode, BeforeValidator(_no_truth)]
    outputs: Annotated[tuple[FileEntry, ...], Field(max_length=MAX_OUTPUTS)] = ()
    facts: JsonObject = {}
    tools: Annotated[dict[_Word, _Word], Field(max_length=100)] = {}  # tool → version
    argv: Annotated[tuple[tuple[str, ...], ...], Field(max_length=1000)] = ()  # the commands it ran
    duration_s: Annotated[float, Field(ge=0, le=_MAX_DURATION_S)] = 0.0
    error: StageError | None = None


class Progress(Frozen):
    """One line of a stage's stdout."""

    event: Literal["progress"] = "progress"
    stage: _Word
    done: _Count
    total: _Count | None
    unit: Literal["bytes", "tensors", "checks", "questions", "chunks", "repeats"]


def digest_of(value: JsonValue) -> str:
    """SHA-256 (hex) of a JSON value in canonical form: sorted keys, no spaces, UTF-8."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def digest_of_files(files: tuple[FileEntry, ...]) -> str:
    """One digest for a set of files: what names an artifact, wherever it lies."""
    return digest_of([[f.path, f.size_bytes, f.sha256] for f in sorted(files, key=lambda f: f.path)])


def digest_of_request(request: StageRequest) -> str:
    """The part of a stage's key that its request decides."""
    parts = (name.partition(".") for name in request.not_in_key)
    exclude: dict[str, Any] = {name: {inner} if inner else True for name, _, inner in parts}
    return digest_of(request.model_dump(mode="json", exclude=exclude))
