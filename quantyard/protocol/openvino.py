"""OpenVINO as a second runtime of the same GGUF: what is asked of it, and what it says of the file."""

from typing import Annotated, Final, Literal

from pydantic import Field

from quantyard.protocol.base import Frozen, RelativePath

# The runtimes that RUNTIME names, beside llama.cpp, which measures in every case.
RUNTIMES: Final = ("openvino",)
RuntimeName = Literal["openvino"]

OpenVinoRefusal = Literal["", "ARCHITECTURE", "TENSOR_TYPE", "VOCABULARY", "NOT_FINITE", "CRASHED", "NOT_LOADED"]
# Reason → what it means, after "is not measured: ".
OPENVINO_REFUSALS: Final[dict[OpenVinoRefusal, str]] = {
    "ARCHITECTURE": "OpenVINO GenAI does not build this architecture from a GGUF",
    "TENSOR_TYPE": "OpenVINO GenAI does not read a type of its tensors",
    "VOCABULARY": "OpenVINO gives logits for another number of tokens",
    "NOT_FINITE": "OpenVINO gives logits that are not numbers",
    "CRASHED": "OpenVINO's process ended by itself",
    "NOT_LOADED": "OpenVINO GenAI does not load it",
}


class OpenVinoSettings(Frozen):
    """How a file is compared in both runtimes. `text` None: the prose that comes with Quantyard."""

    text: RelativePath | None = None  # a plain text file beside the suite
    n_ctx: Annotated[int, Field(ge=64)] = 512  # tokens of a chunk, at most what the model was trained for
    n_chunks: Annotated[int, Field(ge=1, le=1000)] = 4
    generated_tokens: Annotated[int, Field(ge=2)] = 32  # greedily, after the first half of each chunk


class OpenVinoLoaded(Frozen):
    """What OpenVINO made of a file: the first line of its process."""

    versions: dict[str, str]  # of its packages
    weight_bytes: dict[str, int]  # bytes of the weights, by OpenVINO's name of their element type, such as u4


class OpenVinoFailed(Frozen):
    """The process could not load the file; in place of `OpenVinoLoaded`."""

    failure: str  # OpenVINO's words


class OpenVinoAsk(Frozen):
    """One line to the process: generate greedily after a prompt, or read a chunk."""

    tokens: tuple[int, ...]
    generate: int = 0  # tokens; 0: the chunk is read
    first: int = 0  # of the chunk: rows of logits from this position on, but that of the last token
    rows_file: str = ""  # where the rows go, as a NumPy file


class OpenVinoAnswer(Frozen):
    """The process's line in answer to an `OpenVinoAsk`."""

    tokens: tuple[int, ...] = ()  # that were generated
    prompt_s: float = 0.0  # until the first generated token
    token_s: float = 0.0  # for each one after it, on average
    computes: dict[str, str] = {}  # the properties with which a chunk was read, by OpenVINO's names
