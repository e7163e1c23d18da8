"""What the original of an embedding model or a reranker answers: `convert` records it, `verify` compares with it."""

from typing import Annotated, Final

from pydantic import Field

from quantyard.formats.purpose import Pooling, Purpose
from quantyard.protocol.base import Frozen

EMBEDDINGS_FILE: Final = "embeddings.json"  # beside reference.json


class EmbeddedText(Frozen):
    """A text of one passage of the running text, and its embedding, of any length."""

    name: str
    script: str
    text: str
    values: list[float]


class ScoredPair(Frozen):
    """A query and a document in one script, and the original's score of them."""

    name: str
    script: str
    query: str
    document: str
    score: float


class EmbeddingReference(Frozen):
    """The answers, by Transformers and the model's own pooling.

    Attributes:
        witness: what computed them.
        why_not: why there are none, as the end of a sentence; "" if there are.
    """

    purpose: Purpose
    pooling: Pooling
    witness: str = ""
    why_not: str = ""
    texts: list[EmbeddedText] = []
    pairs: list[ScoredPair] = []


Cosine = Annotated[float, Field(ge=-1, le=1)]


class ScriptAgreement(Frozen):
    """How far one script's answers are from the original's.

    Attributes:
        script: "english", or as the running text names it.
        agreement: of embeddings the mean cosine; of scores their correlation.
        least: the smallest cosine; of scores -1 to 1, the same correlation.
    """

    script: str
    n: Annotated[int, Field(ge=1, le=1_000_000)]
    agreement: Cosine
    least: Cosine
