"""What a stage on another machine needs to know: everything, and no path or secret of the machine that planned it.

A `NodeSpec` is stored as JSON in the shared store and read by `quantyard node run`. Inputs are named by digest, secrets
by name alone. `NodeEnd` is what an attempt says of itself when it ended without a result to commit.
"""

from typing import Annotated, Final, Literal

from pydantic import Field

from quantyard.formats.finite_json import MAX_INT
from quantyard.protocol.base import (
    MAX_OUTPUTS,
    FileEntry,
    FileName,
    Frozen,
    JsonObject,
    RanOn,
    Sha256,
    StageError,
    StageResult,
)

MAX_SPEC_BYTES: Final = 32 * 1024 * 1024
ENDED: Final = "ended"  # the object of an attempt that holds its NodeEnd
_Count = Annotated[int, Field(ge=0, lt=MAX_INT)]
_Seconds = Annotated[float, Field(gt=0, le=1e9)]
_Word = Annotated[str, Field(max_length=1000)]
NodeEngine = Literal["local", "docker", "podman"]


class NodeInput(Frozen):
    """One input: the digest of its files, and each file with the SHA-256 under which the store has it."""

    digest: _Word
    files: Annotated[tuple[FileEntry, ...], Field(max_length=MAX_OUTPUTS)]


class NodeResources(Frozen):
    """What a stage needs of its node; a queue turns it into its own options."""

    cpus: Annotated[int, Field(ge=1, le=100_000)] = 1
    memory_bytes: _Count = 0  # 0: as the queue gives by default
    gpus: Annotated[int, Field(ge=0, le=1024)] = 0
    gpu_memory_bytes: _Count = 0  # of each; 0: any
    scratch_bytes: _Count = 0  # on the node's own disk: inputs and outputs
    exclusive: bool = False  # alone on its node: its times are measured
    node_class: _Word = ""  # nodes that count as one machine when speeds are compared


class RetryRules(Frozen):
    """How often a stage is tried again. A bad request, an unsupported model and a bug never are."""

    network_waits_s: Annotated[tuple[_Seconds, ...], Field(max_length=20)] = (30.0, 120.0, 600.0)
    memory_factors: Annotated[tuple[Annotated[float, Field(ge=1, le=16)], ...], Field(max_length=5)] = (2.0,)
    full_disks: Annotated[int, Field(ge=0, le=20)] = 1  # each time on another node
    lost_nodes: Annotated[int, Field(ge=0, le=20)] = 3


class NodeSpec(Frozen):
    """One stage that any node can run. Its key identifies the result, whoever computes it."""

    schema_version: Literal[1] = 1
    label: _Word  # "quantize Q4_K_M"
    stage: FileName
    key: Sha256
    code: Sha256  # version of the stage's code; a node with another refuses
    image: _Word  # the identity of the tools, wherever they lie
    pull: _Word = ""  # repository@digest of the image in a registry; "": the node has its tools
    engine: NodeEngine = "local"  # of the node
    request: JsonObject
    inputs: dict[FileName, NodeInput] = {}
    resources: NodeResources = NodeResources()
    network: bool = False
    secrets: tuple[_Word, ...] = ()  # names; the node has the values
    time_limit_s: _Seconds
    retry: RetryRules = RetryRules()


class NodeEnd(Frozen):
    """How an attempt ended without a commit, and where: with a result of the stage, or an error of the node itself."""

    job: _Word = ""  # as the queue names it
    node: RanOn
    result: StageResult | None = None
    error: StageError | None = None  # the node's tools or folders cannot be used


class NodeCheck(Frozen):
    """What a node finds when it is examined: itself, and the tools and the code that it would run stages with."""

    host: _Word
    cpus: _Count
    memory_bytes: _Count
    scratch_free_bytes: _Count
    engine: _Word
    code: dict[_Word, Sha256]  # package → version of its code
    tools: dict[_Word, _Word]  # image → identity; "" where the node lacks them
    registry: _Word = ""  # why the node cannot ask the registry of its images; "": it can, or there is none


def image_identity(image: str) -> str:
    """How a key names an image of nodes: by its digest, whatever registry it comes from."""
    return f"node+{image.rpartition('@')[2]}"
