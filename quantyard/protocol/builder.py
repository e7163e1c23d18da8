"""Requests of the stages that make and check files."""

from typing import Annotated, ClassVar, Literal

from pydantic import Field

from quantyard.protocol.base import FileEntry, RelativePath, StageRequest
from quantyard.protocol.text_findings import MismatchKind


def _is_field_none(value: object) -> bool:
    return value is None


def _is_field_empty(value: object) -> bool:
    return not value


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


class ProjectorRequest(StageRequest):
    """Turn what lets the model in `/in/source` read pictures or sound into `/out/files/mmproj-F16.gguf` (BF16 where F16
    does not hold it), and into `mmproj-Q8_0.gguf` where that is as good, for the text model in `/in/model`.
    """

    stage: Literal["projector"] = "projector"
    name: str  # the model's name in the GGUF metadata
    model_file: RelativePath = "model.gguf"
    allow_pickle: bool = False


Parity = Literal["twin", "full", "off"]
Parts = Literal["all", "text"]  # of a model that reads more than text


class TwinRequest(StageRequest):
    """Compare what llama.cpp and Transformers compute of a small random model of the same kind as the one in
    `/in/source`, of which the configuration and the tokenizer alone are read; see builder/twin.py.
    """

    stage: Literal["twin"] = "twin"
    allow_twin_mismatch: bool = False  # record that they differ, and pass
    threads: Annotated[int, Field(ge=0)] = 0
    not_in_key: ClassVar[frozenset[str]] = frozenset({"threads"})


class ParityRequest(StageRequest):
    """Compare the GGUF in `/in/model` with what Transformers computes of the model in `/in/source`; see
    builder/parity.py.
    """

    stage: Literal["parity"] = "parity"
    model_file: RelativePath = "model.gguf"
    allow_twin_mismatch: bool = False
    threads: Annotated[int, Field(ge=0)] = 0
    not_in_key: ClassVar[frozenset[str]] = frozenset({"threads"})


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
    imatrix_file: Annotated[RelativePath | None, Field(exclude_if=_is_field_none)] = None
    recipe: Annotated[str, Field(exclude_if=_is_field_empty)] = ""  # its name; what it says is in the next three
    tensor_types: Annotated[dict[str, str], Field(exclude_if=_is_field_empty)] = {}  # see `tensor_patterns.py`
    output_type: Annotated[str | None, Field(exclude_if=_is_field_none)] = None
    token_embedding_type: Annotated[str | None, Field(exclude_if=_is_field_none)] = None
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
    tensor_types: Annotated[dict[str, str], Field(exclude_if=_is_field_empty)] = {}  # of the recipe it was made by
    output_type: Annotated[str | None, Field(exclude_if=_is_field_none)] = None
    token_embedding_type: Annotated[str | None, Field(exclude_if=_is_field_none)] = None
    # The kinds of texts that may differ from the model's own tokenizer and template; see text_findings.py.
    allow_mismatch: Annotated[tuple[MismatchKind, ...], Field(exclude_if=_is_field_empty)] = ()
    threads: Annotated[int, Field(ge=0)] = 0
    not_in_key: ClassVar[frozenset[str]] = frozenset({"threads"})


class VerifyForeignRequest(StageRequest):
    """Check the GGUF in `/in/model`, which somebody else made, against our conversion of the model in `/in/source`, and
    against `reference.json` of `/in/reference` if there is one; see builder/verify_foreign.py.
    """

    stage: Literal["verify_foreign"] = "verify_foreign"
    model_file: RelativePath = "model.gguf"
    source_file: RelativePath = "model.gguf"
    has_reference: bool = True
    named_type: Annotated[str, Field(exclude_if=_is_field_empty)] = ""  # the quant in the file's name; "": none
    weights: Annotated[int, Field(ge=256)] = 65_536  # of each tensor that are compared, at most
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
