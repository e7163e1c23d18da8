"""What the small files of a model tell before anything is converted: files that are not what their names say, JSON that
no loader reads, a tokenizer that is missing, a vocabulary that the embeddings do not cover.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Collection, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Final

from quantyard.errors import BadSource
from quantyard.files.own_files import read_named_file
from quantyard.formats.file_kinds import HEAD_BYTES, spoiled_file, spoiled_text
from quantyard.formats.names import shown_names
from quantyard.formats.sentencepiece import TOKENIZER, missing_sentencepiece_file, missing_sentencepiece_words
from quantyard.formatting.numbers import format_count
from quantyard.quants.file_size import TensorShape
from quantyard.quants.model_config import VOCAB, Config, model_config_number, model_text_config
from quantyard.sources.architectures import source_architecture
from quantyard.sources.tensor_faults import embedding_rows

# To recognize one more kind of tokenizer: the files that make it (patterns), each of which must be there.
TOKENIZERS: Final = (
    ("tokenizer.json",), ("tokenizer.model*",), ("spiece.model",), ("sentencepiece*.model",), ("*.tiktoken",),
    ("tekken.json",), ("vocab.txt",), ("vocab.json", "merges.txt"), ("rwkv_vocab*.txt",), ("*.spm",),
)  # fmt: skip
_TEXTS: Final = (".json", ".jinja", ".txt")
_PARSED_AT_MOST: Final = 64 * 2**20  # bytes of a JSON file; the largest tokenizers have half of it
_SPEECH: Final = ("wavtokenizer", "mimi", "snac")  # `model_type` of models that read no text


def check_local_files(
    title: str, places: Mapping[str, Path], config: Config, tensors: Sequence[TensorShape]
) -> list[str]:
    """Check the files of a local model, given by where they really are.

    Returns:
        What is worth knowing and no reason to refuse, a sentence each.

    Raises:
        BadSource: a file is not what its name says, the tokenizer is missing, or it has more tokens than the
            embeddings have rows.
    """
    parsed = {name: _checked_source_side_file(title, name, place) for name, place in places.items()}
    refuse_missing_tokenizer(title, places, config)
    refuse_missing_sentencepiece(title, places, config, parsed.get(TOKENIZER))
    return _check_source_vocabulary(title, parsed.get(TOKENIZER), places, config, tensors)


def refuse_missing_tokenizer(title: str, names: Collection[str], config: Config) -> None:
    """Refuse a model without the files of a tokenizer.

    Raises:
        BadSource: it says which file is missing.
    """
    if str(config.get("model_type")) in _SPEECH or any(
        _has_all_source_side_files(names, files) for files in TOKENIZERS
    ):
        return
    hint = "Copy it from the model that this one was trained from, or save it: tokenizer.save_pretrained(folder)"
    for first, second in (("vocab.json", "merges.txt"), ("merges.txt", "vocab.json")):
        if first in names:
            raise BadSource(f"{title} has {first} without {second}, and no tokenizer.json.", hint)
    have = [name for name in ("tokenizer_config.json", "special_tokens_map.json", "added_tokens.json") if name in names]
    only = f"; {shown_names(have)} alone cannot split text" if have else ""
    raise BadSource(f"{title} has no tokenizer: neither tokenizer.json nor tokenizer.model is there{only}.", hint)


def refuse_missing_sentencepiece(title: str, names: Collection[str], config: Config, tokenizer: Any) -> None:
    """Refuse a SentencePiece tokenizer without the file of its own that the converter reads.

    Args:
        tokenizer: the value of tokenizer.json, or of its beginning.

    Raises:
        BadSource: it says which file is missing.
    """
    if name := missing_sentencepiece_file(names, source_architecture(config), tokenizer):
        raise BadSource(*missing_sentencepiece_words(title, name))


def refuse_spoiled_text(title: str, name: str, text: bytes) -> None:
    """Refuse a text file that is something else.

    Raises:
        BadSource: what it is, and the command that helps.
    """
    if spoiled := spoiled_text(text[:HEAD_BYTES], shlex.quote(name)):
        raise BadSource(f"{name} of {title} is {spoiled.what}.", spoiled.hint)


def refuse_spoiled_weights(title: str, name: str, file: Path | bytes) -> None:
    """Refuse a file of weights that is something else; `file`: where it is, or its beginning.

    Raises:
        BadSource: what it is, and the command that helps.
    """
    if isinstance(file, Path):
        with file.open("rb") as stream:
            file = stream.read(HEAD_BYTES)
    spoiled = spoiled_file(file, shlex.quote(name)) if file else None  # an empty one is truncated
    if spoiled:
        raise BadSource(f"{name} of {title} is {spoiled.what}.", spoiled.hint)


def parse_side_json(title: str, name: str, text: bytes) -> Any:
    """The value of a JSON file.

    Raises:
        BadSource: it is not JSON in UTF-8.
    """
    refuse_spoiled_text(title, name, text)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadSource(f"{name} of {title} is not valid JSON: {error}.", "Download or copy it again.") from error


def _checked_source_side_file(title: str, name: str, place: Path) -> Any:
    """The value of a JSON file, None of any other."""
    if name.endswith(".json") and not name.endswith(".index.json") and place.stat().st_size <= _PARSED_AT_MOST:
        return parse_side_json(title, name, read_named_file(place, _PARSED_AT_MOST))
    with place.open("rb") as stream:
        head = stream.read(HEAD_BYTES)
    if name.endswith(_TEXTS) and head:
        refuse_spoiled_text(title, name, head)
    elif _is_source_side_file_read(name) and (spoiled := spoiled_file(head, shlex.quote(name))):
        raise BadSource(f"{name} of {title} is {spoiled.what}.", spoiled.hint)
    return None


def _is_source_side_file_read(name: str) -> bool:
    """Whether the file is binary and read; a licence may be empty."""
    return name.endswith((".safetensors", ".model", ".tiktoken", ".spm"))


def _has_all_source_side_files(names: Collection[str], patterns: Sequence[str]) -> bool:
    return all(any(fnmatchcase(name, pattern) for name in names) for pattern in patterns)


def _check_source_vocabulary(
    title: str, tokenizer: Any, names: Collection[str], config: Config, tensors: Sequence[TensorShape]
) -> list[str]:
    """Compare the ids of tokenizer.json with the rows of the embeddings."""
    rows = embedding_rows(tensors) or model_config_number(model_text_config(config), *VOCAB)
    model, added = _token_ids_of_source(tokenizer)
    if not rows or not (model or added):
        return []
    without = sorted((i, token) for token, i in (model | added).items() if i >= rows)
    if not without:
        return []
    count = "a token" if len(without) == 1 else f"{format_count(len(without))} tokens"
    first = f"{without[0][1]!r:.60} is number {format_count(without[0][0])}"
    fact = f"The tokenizer has {count} without a row of the embeddings, which have {format_count(rows)}: {first}"
    if any(token in model for _, token in without) or not _has_all_source_side_files(names, ("*.model",)):
        hint = "Take the tokenizer of these weights, or resize them: model.resize_token_embeddings(len(tokenizer))"
        raise BadSource(f"{title}: {fact}.", hint)
    return [f"{fact}. The converter leaves such added tokens out."]


def _token_ids_of_source(tokenizer: Any) -> tuple[dict[str, int], dict[str, int]]:
    """The ids of the model's tokens and of the added ones, in tokenizer.json; empty where it has another form."""
    if not isinstance(tokenizer, dict):
        return {}, {}
    inner = tokenizer.get("model")
    vocab = inner.get("vocab") if isinstance(inner, dict) else None
    if isinstance(vocab, list):  # of a unigram model: pieces with their scores, in order
        vocab = {str(piece[0]): i for i, piece in enumerate(vocab) if isinstance(piece, list) and piece}
    listed = tokenizer.get("added_tokens")
    added = {
        str(token.get("content")): token.get("id") for token in (listed if isinstance(listed, list) else [])
        if isinstance(token, dict)
    }  # fmt: skip
    return _ids_of_source_tokens(vocab if isinstance(vocab, dict) else {}), _ids_of_source_tokens(added)


def _ids_of_source_tokens(found: Mapping[str, object]) -> dict[str, int]:
    return {token: number for token, number in found.items() if type(number) is int}
