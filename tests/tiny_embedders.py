"""Small random models that embed texts or rank documents, with the files of sentence-transformers beside them."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.architectures.rows import ROWS, Row
from tests.architectures.tiny import Kitchen

_ROBERTA: dict[str, Any] = {
    "model_type": "roberta", "attention_probs_dropout_prob": 0.1, "bos_token_id": 0, "eos_token_id": 2,
    "pad_token_id": 1, "hidden_act": "gelu", "hidden_dropout_prob": 0.1, "hidden_size": 768, "initializer_range": 0.02,
    "intermediate_size": 3072, "layer_norm_eps": 1e-05, "max_position_embeddings": 514, "num_attention_heads": 12,
    "num_hidden_layers": 12, "type_vocab_size": 1, "vocab_size": 50265, "torch_dtype": "float32",
    "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "transformers_version": "4.38.1",
}  # fmt: skip
_BERT: dict[str, Any] = {
    "model_type": "bert", "hidden_act": "gelu", "hidden_size": 384, "intermediate_size": 1536, "layer_norm_eps": 1e-12,
    "max_position_embeddings": 512, "num_attention_heads": 12, "num_hidden_layers": 6, "pad_token_id": 0,
    "position_embedding_type": "absolute", "type_vocab_size": 2, "vocab_size": 30522, "torch_dtype": "float32",
    "id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}, "transformers_version": "4.38.1",
}  # fmt: skip


@dataclass(frozen=True)
class OwnRow(Row):
    """A row whose config.json is not among those of the sweep."""

    own: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        """Its config.json."""
        return self.own


RERANKER = OwnRow(
    "roberta-reranker", "", "bpe", own={**_ROBERTA, "architectures": ["RobertaForSequenceClassification"]}
)
# llama.cpp's converter leaves out the dense layer before its head.
BERT_CLASSIFIER = OwnRow(
    "bert-reranker", "", "wordpiece", own={**_BERT, "architectures": ["BertForSequenceClassification"]}
)


def write_sentence_modules(folder: Path, pooling: str) -> None:
    """Say how hidden states are pooled: mean, cls or lasttoken."""
    kinds = (("", "Transformer"), ("1_Pooling", "Pooling"))
    modules = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (path, kind) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    modes = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "lasttoken": "pooling_mode_lasttoken"}
    told = {name: key == pooling for key, name in modes.items()}
    (folder / "1_Pooling" / "config.json").write_text(json.dumps(told))


def make_reranker(kitchen: Kitchen) -> Path:
    """A RoBERTa with a head of one label. Its tokenizer tells no types of tokens, as RoBERTa's does not."""
    folder = kitchen.make(RERANKER)
    config = json.loads((folder / "tokenizer_config.json").read_bytes())
    config["model_input_names"] = ["input_ids", "attention_mask"]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


def make_embedder(kitchen: Kitchen) -> Path:
    """A BERT whose hidden states are averaged, with BERT's own vocabulary."""
    row = next(row for row in ROWS if row.name == "bert")
    folder = kitchen.make(row)
    write_sentence_modules(folder, "mean")
    return folder
