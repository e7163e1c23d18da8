"""What the headers of a checkpoint tell against its config.json, before anything is downloaded or converted: layers and
tensors that are missing, shapes that disagree, weights of an adapter that were never merged.

Transformers fills what is missing with random numbers and a warning; llama.cpp stops after the conversion.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Final

from quantyard.errors import BadSource
from quantyard.formats.names import shown_names
from quantyard.formats.wrapped_names import unwrapped_names, wrapper_words
from quantyard.quants.file_size import TensorShape
from quantyard.quants.model_config import (
    HIDDEN,
    VOCAB,
    Config,
    model_config_number,
    model_text_config,
    n_heads,
    n_kv_heads,
    n_layers,
)
from quantyard.records import dataclass

# Architectures (`model_type`) whose layers are all alike, and whose last norm has weights. To add one: its type.
LIKE_LLAMA: Final = frozenset({
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "phi3", "phi", "stablelm", "starcoder2",
    "olmo2", "granite", "smollm3", "cohere", "cohere2", "mixtral",
})  # fmt: skip
_EMBEDDINGS: Final = re.compile(r"(?:^|\.)(?:embed_tokens|wte|word_embeddings|embed_in|tok_embeddings)\.weight$")
# The layers of the language model; those of a picture or sound encoder, and of drafts, have other names before them.
_LAYER: Final = re.compile(
    r"^(?P<stack>(?:(?:language_model|text_model|llm)\.)?(?:model|transformer|gpt_neox|backbone)?"
    r"(?:(?:^|\.)(?:language_model|text_model|decoder))?(?:^|\.)(?:layers|h|blocks))\.(?P<number>\d{1,5})\.(?P<rest>.+)$"
)
_NOT_WEIGHTS: Final = re.compile(r"(?:inv_freq|masked_bias|attn\.bias|attention\.bias|rotary_emb\..*)$")
_ADAPTER: Final = re.compile(r"\.(?:lora_[AB]\b|base_layer\.|modules_to_save\.|lora_embedding)")
_OTHER_SIZES: Final = ("word_embed_proj_dim", "embedding_size", "auto_map", "pad_vocab_size_multiple")
_INCOMPLETE: Final = "The upload or download is not complete, or it was saved without a part: fetch or save it again."
_UNTIED: Final = "Where the model uses its embeddings as output, set tie_word_embeddings to true; else fetch it again."
_UNFIT: Final = "config.json and the weights are not of one model, or one of them was changed: take both from one save."


def refuse_faulty_tensors(title: str, config: Config, tensors: Sequence[TensorShape]) -> None:
    """Refuse weights that cannot be what config.json describes.

    Only what is certain is refused: architectures whose layers differ, and quantized weights, are checked less.

    Raises:
        BadSource: an adapter was not merged, layers or tensors are missing, or a shape disagrees.
    """
    text, shapes = model_text_config(config), {tensor.name: tensor.shape for tensor in tensors}
    if unmerged := sorted(name for name in shapes if _ADAPTER.search(name)):
        message = f"{title} holds an adapter that is not merged into its weights: {shown_names(unmerged, 2)}."
        raise BadSource(message, "Merge it first: model.merge_and_unload().save_pretrained(folder)")
    if config.get("quantization_config") or text.get("quantization_config"):
        return
    _refuse_source_embeddings(title, text, shapes)
    stack = _layer_stack_of_source(shapes)
    if stack is None or text.get("is_encoder_decoder"):
        return
    _refuse_source_layers(title, text, stack)
    if str(text.get("model_type")) in LIKE_LLAMA:
        if missing := list(_missing_source_tensors(text, config, shapes, stack)):
            count = "a tensor" if len(missing) == 1 else f"{len(missing)} tensors"
            hint = _UNTIED if missing[0].startswith("lm_head") else _INCOMPLETE
            raise BadSource(f"{title} lacks {count} of its model: {shown_names(missing)}.", hint)
        _refuse_source_shapes(title, text, shapes)


def unwrapped_tensors(
    tensors: tuple[TensorShape, ...] | None,
) -> tuple[tuple[TensorShape, ...] | None, str]:
    """The tensors by the names that the model has without a wrapper of training, and a note of what is stripped."""
    renamed = unwrapped_names([tensor.name for tensor in tensors or ()])
    if not tensors or not renamed:
        return tensors, ""
    bare = tuple(replace(tensor, name=renamed.get(tensor.name, tensor.name)) for tensor in tensors)
    count = "all" if len(renamed) == len(tensors) else f"{len(renamed)} of {len(tensors)}"
    words = wrapper_words(renamed)
    return bare, f"{words!r}, left by a wrapper of training, is stripped from the names of {count} tensors."


def embedding_rows(tensors: Sequence[TensorShape]) -> int | None:
    """The number of tokens that have an embedding; None where no tensor, or several, can be it."""
    rows = {tensor.shape[0] for tensor in tensors if _EMBEDDINGS.search(tensor.name) and len(tensor.shape) == 2}
    return rows.pop() if len(rows) == 1 else None


@dataclass(frozen=True)
class _Stack:
    """The layers of the language model: what each holds, by its number."""

    name: str
    layers: Mapping[int, set[str]]


def _layer_stack_of_source(shapes: Mapping[str, tuple[int, ...]]) -> _Stack | None:
    """The only stack of such a name; None without one."""
    found: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    for name in shapes:
        match = _LAYER.match(name)
        if match and not _NOT_WEIGHTS.search(name):
            found[match["stack"]][int(match["number"])].add(match["rest"])
    return _Stack(*next(iter(found.items()))) if len(found) == 1 else None


def _refuse_source_layers(title: str, text: Config, stack: _Stack) -> None:
    """Layers that are missing, or more than config.json names."""
    wanted, alike = n_layers(text), str(text.get("model_type")) in LIKE_LLAMA
    missing = sorted(set(range(wanted)) - stack.layers.keys())
    if missing and (len(stack.layers) > 1 or alike):
        which = shown_names([str(number) for number in missing])
        message = f"{title} lacks {len(missing)} of {wanted} layers of its config.json: {stack.name}.N, N = {which}."
        raise BadSource(message, _INCOMPLETE)
    if alike and wanted and any(number >= wanted for number in stack.layers):
        message = f"{title} holds {len(stack.layers)} layers, and its config.json names {wanted} (num_hidden_layers)."
        raise BadSource(message, _UNFIT)


def _missing_source_tensors(
    text: Config, config: Config, shapes: Mapping[str, tuple[int, ...]], stack: _Stack
) -> Iterator[str]:
    """What some layers of the stack have and others lack, then what is outside of layers."""
    whole = set().union(*stack.layers.values())
    for number, rest in sorted(stack.layers.items()):
        yield from (f"{stack.name}.{number}.{each}" for each in sorted(whole - rest))
    yield from _missing_outside_source_layers(text, config, shapes)


def _missing_outside_source_layers(
    text: Config, config: Config, shapes: Mapping[str, tuple[int, ...]]
) -> Iterator[str]:
    """The embeddings, the last norm, and the output where config.json says that it is a tensor of its own."""
    if not any(_EMBEDDINGS.search(name) for name in shapes):
        yield "embed_tokens.weight"
    if not any(re.search(r"(?:^|\.)(?:norm|final_layernorm)\.weight$", name) for name in shapes):
        yield "norm.weight"
    architectures = config.get("architectures") or text.get("architectures")
    causal = isinstance(architectures, list) and any(str(name).endswith("ForCausalLM") for name in architectures)
    tied = text.get("tie_word_embeddings", config.get("tie_word_embeddings"))
    if causal and tied is False and not any(name.endswith("lm_head.weight") for name in shapes):
        yield "lm_head.weight (config.json says tie_word_embeddings: false)"


def _refuse_source_embeddings(title: str, text: Config, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """The one embedding table must have a row for each word of vocab_size, each as long as hidden_size."""
    tables = [(name, shape) for name, shape in shapes.items() if _EMBEDDINGS.search(name) and len(shape) == 2]
    if len(tables) != 1 or any(key in text for key in _OTHER_SIZES):
        return
    name, shape = tables[0]
    for at, keys in ((0, VOCAB), (1, HIDDEN)):
        _refuse_source_tensor_size(title, text, name, shape, at, keys)


def _refuse_source_tensor_size(
    title: str, text: Config, name: str, shape: tuple[int, ...], at: int, keys: Sequence[str]
) -> None:
    said = model_config_number(text, *keys)
    if said and said != shape[at]:
        key = next(key for key in keys if key in text)
        raise BadSource(f"{title}: {name} is {list(shape)}, and config.json says {key} = {said}.", _UNFIT)


def _refuse_source_shapes(title: str, text: Config, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Of the projections of each layer, as the config gives them."""
    hidden, wide = model_config_number(text, *HIDDEN), model_config_number(text, "intermediate_size")
    if not hidden or not wide:
        return
    head = model_config_number(text, "head_dim") or hidden // max(1, n_heads(text))
    queries, keys = n_heads(text) * head, n_kv_heads(text) * head
    expected = {
        "self_attn.q_proj.weight": (queries, hidden), "self_attn.o_proj.weight": (hidden, queries),
        "self_attn.k_proj.weight": (keys, hidden), "self_attn.v_proj.weight": (keys, hidden),
        "mlp.gate_proj.weight": (wide, hidden), "mlp.up_proj.weight": (wide, hidden),
        "mlp.down_proj.weight": (hidden, wide),
    }  # fmt: skip
    for name, shape in shapes.items():
        match = _LAYER.match(name)
        want = expected.get(match["rest"]) if match else None
        if want and want != shape:
            raise BadSource(f"{title}: {name} is {list(shape)}, and by config.json it is {list(want)}.", _UNFIT)
