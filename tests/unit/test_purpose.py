"""What a model is for, by its small files or by a GGUF's own metadata."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from quantyard.formats.gguf import read_gguf_header
from quantyard.formats.purpose import gguf_pooling, gguf_purpose
from quantyard.sources.purpose import ModelUse, read_model_use
from tests.gguf_files import TensorSpec, gguf

_MODULES = [
    {"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"},
    {"idx": 1, "name": "1", "path": "1_Pooling", "type": "sentence_transformers.models.Pooling"},
    {"idx": 2, "name": "2", "path": "2_Normalize", "type": "sentence_transformers.models.Normalize"},
]


def _use(config: dict[str, Any], *tags: str, title: str = "model", **files: Any) -> ModelUse:
    texts = {name.replace("__", "/") + ".json": json.dumps(value).encode() for name, value in files.items()}
    return read_model_use(config, texts, texts.__getitem__, tags, title)


def _config(architecture: str, **fields: Any) -> dict[str, Any]:
    return {"architectures": [architecture], "hidden_size": 384, "max_position_embeddings": 512, **fields}


@pytest.mark.parametrize("architecture", [
    "BertModel", "BertForMaskedLM", "XLMRobertaModel", "RobertaModel", "CamembertModel", "NomicBertModel",
    "ModernBertModel", "JinaBertModel", "JinaBertForMaskedLM", "DistilBertModel", "EuroBertModel", "NeoBERT",
    "LlamaBidirectionalModel", "T5EncoderModel",
])  # fmt: skip
def test_an_encoder_embeds_texts(architecture: str) -> None:
    assert _use(_config(architecture)).purpose == "embed"


@pytest.mark.parametrize("architecture", [
    "BertForSequenceClassification", "XLMRobertaForSequenceClassification", "ModernBertForSequenceClassification",
    "RobertaForSequenceClassification", "NeoBERTForSequenceClassification",
])  # fmt: skip
def test_a_classifier_with_one_label_ranks_documents(architecture: str) -> None:
    use = _use(_config(architecture, id2label={"0": "LABEL_0"}))
    assert (use.purpose, use.pooling) == ("rerank", "rank")


def test_a_classifier_of_three_labels_is_no_reranker_and_the_plan_says_so() -> None:
    use = _use(_config("BertForSequenceClassification", id2label={"0": "a", "1": "b", "2": "c"}))
    assert use.purpose == "embed"
    assert "It classifies texts by 3 labels" in use.notes[1]


@pytest.mark.parametrize("architecture", ["Qwen3ForCausalLM", "MistralModel", "Gemma3TextModel"])
def test_a_decoder_with_the_files_of_sentence_transformers_embeds_texts(architecture: str) -> None:
    pooling = {"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}
    use = _use(_config(architecture), modules=_MODULES, **{"1_Pooling__config": pooling})
    assert (use.purpose, use.pooling) == ("embed", "last")


def test_a_qwen3_reranker_is_known_by_its_name_as_the_converter_knows_it() -> None:
    assert _use(_config("Qwen3ForCausalLM"), title="Qwen3-Reranker-0.6B").purpose == "rerank"
    assert _use(_config("Qwen3ForCausalLM"), title="Qwen3-0.6B").purpose == "generate"


def test_a_headless_decoder_embeds_texts_where_its_card_says_so() -> None:
    assert _use(_config("Qwen3Model"), "feature-extraction").purpose == "embed"
    assert _use(_config("Qwen3Model"), "text-generation").purpose == "generate"


@pytest.mark.parametrize("architecture", ["LlamaForCausalLM", "GPT2LMHeadModel", "T5ForConditionalGeneration", ""])
def test_other_models_generate_text_and_their_plan_says_nothing_of_it(architecture: str) -> None:
    use = _use(_config(architecture))
    assert use.purpose == "generate"
    assert use.notes == ()


def test_the_plan_says_pooling_dimensions_and_the_longest_text() -> None:
    files = {"1_Pooling__config": {"pooling_mode_cls_token": True}, "sentence_bert_config": {"max_seq_length": 256}}
    use = _use(_config("BertModel"), modules=_MODULES, **files)
    assert use.notes == (
        "An embedding model: cls pooling, 384 dimensions, texts of up to 256 tokens. It is served at /v1/embeddings.",
    )


def test_the_positions_of_a_roberta_begin_after_that_of_the_padding() -> None:
    assert _use(_config("XLMRobertaModel", max_position_embeddings=514, pad_token_id=1)).max_tokens == 512


def test_a_dense_layer_after_the_pooling_is_named_as_left_out() -> None:
    dense = {"idx": 2, "name": "2", "path": "2_Dense", "type": "sentence_transformers.models.Dense"}
    use = _use(_config("BertModel"), modules=[*_MODULES[:2], dense])
    assert use.left_out == ("2_Dense",)
    assert "2_Dense" in use.notes[1]


@pytest.mark.parametrize("spoiled", ["[", "3", '[{"type": 4}, 5]', '{"a": 1}'])
def test_damaged_side_files_are_no_reason_to_fail(spoiled: str) -> None:
    texts = {"modules.json": spoiled.encode(), "1_Pooling/config.json": spoiled.encode()}
    use = read_model_use(_config("BertModel"), texts, texts.__getitem__, (), "model")
    assert (use.purpose, use.pooling) == ("embed", "mean")


@pytest.mark.parametrize(
    ("architecture", "metadata", "heads", "purpose", "pooling"),
    [
        ("llama", {}, (), "generate", "mean"),
        ("bert", {"attention.causal": False}, (), "embed", "mean"),
        ("bert", {"attention.causal": False, "pooling_type": 2}, (), "embed", "cls"),
        ("qwen3", {"pooling_type": 3}, (), "embed", "last"),
        ("t5encoder", {}, (), "embed", "mean"),
        ("qwen3", {"pooling_type": 4, "classifier.output_labels": ["yes", "no"]}, (), "rerank", "rank"),
        ("bert", {"attention.causal": False}, ("cls.output.weight",), "rerank", "rank"),
        ("bert", {"classifier.output_labels": ["LABEL_0"]}, ("cls.weight", "cls.output.weight"), "rerank", "rank"),
        ("bert", {"attention.causal": False, "classifier.output_labels": ["a", "b"]}, ("cls.output.weight",), "embed",
         "mean"),
        ("bert", {"attention.causal": False, "pooling_type": 77}, (), "embed", "mean"),
    ],
)  # fmt: skip
def test_a_gguf_says_itself_what_it_is_for(
    tmp_path: Path, architecture: str, metadata: dict[str, Any], heads: tuple[str, ...], purpose: str, pooling: str
) -> None:
    told = {"general.architecture": architecture} | {f"{architecture}.{key}": v for key, v in metadata.items()}
    (tmp_path / "m.gguf").write_bytes(gguf(told, [TensorSpec(name, (32, 1)) for name in heads]))
    header = read_gguf_header(tmp_path / "m.gguf")
    assert (gguf_purpose(header), gguf_pooling(header)) == (purpose, pooling)
