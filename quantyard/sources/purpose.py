"""What a model in Hugging Face format is for: by config.json, the files of sentence-transformers, its card's tags."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, Final

from quantyard.formats.gguf import GgufHeader
from quantyard.formats.purpose import Pooling, Purpose, gguf_dimension, gguf_pooling, gguf_purpose
from quantyard.formats.sentence_modules import (
    MODULES_FILE,
    modules_left_out,
    pooling_file,
    read_pooling,
    sentence_modules,
)
from quantyard.formatting.numbers import format_count
from quantyard.quants.model_config import HIDDEN, TRAINED, Config, model_config_number, model_text_config
from quantyard.records import dataclass

_SENTENCES: Final = ("sentence_bert_config.json", "sentence_roberta_config.json", "sentence_xlm-roberta_config.json")
_CROSS_ENCODER: Final = "config_sentence_transformers.json"
_CLASSIFIER: Final = "ForSequenceClassification"
# Parts of the names of architectures that encode a text, and generate none.
_ENCODERS: Final = (
    "Bert", "BERT", "Roberta", "Camembert", "Bidirectional", "T5EncoderModel", "JinaEmbeddings", "MPNet", "Electra",
)  # fmt: skip
_EMBEDS: Final = frozenset({"sentence-similarity", "feature-extraction", "sentence-transformers"})
_RANKS: Final = frozenset({"text-ranking", "reranker", "cross-encoder"})
_QWEN3_RERANKERS: Final = ("qwen3-reranker", "qwen3-vl-reranker")  # what the converter looks for in a name


@dataclass(frozen=True)
class ModelUse:
    """What a model is for, and of one that embeds or ranks, how."""

    purpose: Purpose = "generate"
    pooling: Pooling = "none"
    dimension: int | None = None  # numbers of an embedding
    max_tokens: int | None = None  # of a text
    left_out: tuple[str, ...] = ()  # modules after the pooling, which a GGUF does not have
    n_labels: int = 1  # of a classifier

    @property
    def notes(self) -> tuple[str, ...]:
        """What the plan says of it, a sentence each."""
        if self.purpose == "generate":
            return ()
        length = f", texts of up to {format_count(self.max_tokens)} tokens" if self.max_tokens else ""
        if self.purpose == "rerank":
            said = f"A reranker: one score of a query and a document{length}. It is served at /v1/rerank."
        else:
            size = f", {format_count(self.dimension)} dimensions" if self.dimension else ""
            said = f"An embedding model: {self.pooling} pooling{size}{length}. It is served at /v1/embeddings."
        return (said, *self._limits())

    def _limits(self) -> tuple[str, ...]:
        """What the GGUF does not do."""
        found = []
        if self.left_out:
            found.append(
                f"Its last modules ({', '.join(self.left_out)}) are not converted: the GGUF's embeddings are those "
                "before them."
            )
        if self.n_labels > 1:
            found.append(f"It classifies texts by {self.n_labels} labels; only its embeddings are checked and served.")
        return tuple(found)


def read_model_use(
    config: Config, names: Collection[str], read: Callable[[str], bytes], tags: Collection[str], title: str
) -> ModelUse:
    """What the model of these files is for.

    Args:
        config: config.json.
        names: the files of the model.
        read: the content of one of them.
        tags: of its card, with its `pipeline_tag`.
        title: its name, by which the converter knows a Qwen3-Reranker.
    """

    def read_json(name: str) -> Any:
        return _parsed_source_json(read(name)) if name in names else None

    modules = read_json(MODULES_FILE)
    purpose = _purpose_of_source_config(
        config, read_json(_CROSS_ENCODER), sentence_modules(modules), frozenset(tags), title
    )
    if purpose == "generate":
        return ModelUse()
    text = model_text_config(config)
    told = next((found for name in _SENTENCES if isinstance(found := read_json(name), Mapping)), {})
    lengths = (model_config_number(told, "max_seq_length"), _n_source_positions(config))
    return ModelUse(
        purpose, "rank" if purpose == "rerank" else read_pooling(read_json(pooling_file(modules))),
        model_config_number(text, *HIDDEN), next((length for length in lengths if length), None),
        modules_left_out(modules),
        _n_source_classifier_labels(config) if _architecture_of_source_config(config).endswith(_CLASSIFIER) else 1,
    )


def gguf_model_use(header: GgufHeader) -> ModelUse:
    """The same, of a GGUF."""
    purpose = gguf_purpose(header)
    if purpose == "generate":
        return ModelUse()
    return ModelUse(purpose, gguf_pooling(header), gguf_dimension(header), header.context_length)


def _purpose_of_source_config(
    config: Config, cross: object, modules: Sequence[object], tags: Collection[str], title: str
) -> Purpose:
    name = _architecture_of_source_config(config)
    if name.endswith(_CLASSIFIER):
        return "rerank" if _n_source_classifier_labels(config) == 1 else "embed"
    hints = (title, str(config.get("_name_or_path", "")))
    if any(part in hint.lower() for part in _QWEN3_RERANKERS for hint in hints) and name.startswith("Qwen3"):
        return "rerank"
    if isinstance(cross, Mapping) and cross.get("model_type") == "CrossEncoder":
        return "generate"  # the converter makes no head of it
    if modules or any(part in name for part in _ENCODERS):
        return "embed"
    is_headless = name.endswith("Model") and not name.endswith("LMHeadModel")
    return "embed" if is_headless and _EMBEDS & set(tags) and not _RANKS & set(tags) else "generate"


def _architecture_of_source_config(config: Config) -> str:
    names = config.get("architectures")
    return str(names[0]) if isinstance(names, Sequence) and not isinstance(names, str) and names else ""


def _n_source_classifier_labels(config: Config) -> int:
    """How many a classifier has; Transformers takes two where nothing is said."""
    labels = config.get("id2label")
    return model_config_number(config, "num_labels") or (len(labels) if isinstance(labels, Mapping) else 2)


def _n_source_positions(config: Config) -> int | None:
    """Tokens of a text; the positions of RoBERTa and its kin begin after that of the padding."""
    text = model_text_config(config)
    found = model_config_number(text, *TRAINED)
    is_offset = any(part in _architecture_of_source_config(config) for part in ("Roberta", "Camembert"))
    return found - 1 - (model_config_number(text, "pad_token_id") or 0) if found and is_offset else found


def _parsed_source_json(text: bytes) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None
