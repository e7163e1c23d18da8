"""The metadata of a GGUF that somebody else made, against those of our conversion: vocabulary, template, settings."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from builder.checks.foreign_values import foreign_type_share
from builder.checks.tensors import PROMISED_TYPES, count_tensor_types
from quantyard.formats.gguf import GgufArray, GgufError, GgufHeader, MetadataValue, gguf_strings
from quantyard.formats.names import shown_name
from quantyard.formatting.numbers import format_digits, format_rough_percent
from quantyard.protocol.foreign_findings import ForeignFinding, foreign_finding

_TOKENS: Final = "tokenizer.ggml.tokens"
_TOKEN_ARRAYS: Final = ("tokenizer.ggml.token_type", "tokenizer.ggml.scores", "tokenizer.ggml.merges")
_ROPE: Final = re.compile(r"\.rope\.|\.context_length$")
_SPECIAL: Final = re.compile(r"tokenizer\.ggml\..*(_token_id|_token_ids|add_\w+_token|add_space_prefix)$")
_OTHER_TOKENS_SHARE: Final = 0.01  # of the vocabulary: more are another vocabulary
_LEAST_OF_TYPE: Final = 0.2  # of the weights: what a name promises is less in mixes that still deserve it
_MAX_NAMED: Final = 5
_SHOWN: Final = 60


def foreign_metadata_findings(source: GgufHeader, model: GgufHeader, named_type: str) -> Iterator[ForeignFinding]:
    """What differs, apart from the chat template.

    Args:
        named_type: the quant in the file's name; "": none.
    """
    if model.architecture != source.architecture:
        what = f"The architecture is {shown_name(model.architecture)}, of our conversion {source.architecture}."
        yield foreign_finding("other-architecture", what)
        return
    yield from _foreign_vocabulary_findings(source, model)
    yield from _foreign_settings_findings(source, model)
    if found := _named_type_finding(model, named_type):
        yield found
    if matrix := [key for key in model.metadata if key.startswith("quantize.imatrix.")]:
        yield foreign_finding("imatrix", f"It was made with an importance matrix ({_imatrix_words(model, matrix)}).")


def _foreign_vocabulary_findings(source: GgufHeader, model: GgufHeader) -> Iterator[ForeignFinding]:
    ours, theirs = source.metadata.get(_TOKENS), model.metadata.get(_TOKENS)
    if not (isinstance(ours, GgufArray) and isinstance(theirs, GgufArray)):
        yield foreign_finding("other-vocabulary", "The file has no vocabulary.")
        return
    if ours.length != theirs.length:
        what = f"The vocabulary has {theirs.length:,} tokens, of our conversion {ours.length:,}."
        yield foreign_finding("other-vocabulary", what)
    elif ours.sha256 != theirs.sha256:
        yield _other_tokens_finding(source, model, ours.length)
    pairs = {key: [_comparable_foreign_metadata(header, key) for header in (source, model)] for key in _TOKEN_ARRAYS}
    if differs := [key for key, (own, other) in pairs.items() if own != other]:
        names = ", ".join(key.rpartition(".")[2] for key in differs)
        yield foreign_finding("other-token-kinds", f"Of the vocabulary these differ: {names}.")
    special = {key for key in (*source.metadata, *model.metadata) if _SPECIAL.fullmatch(key)}
    yield from _differing_metadata_findings(source, model, special, "other-special-tokens", is_absence_same=True)
    tokenizer = {"tokenizer.ggml.pre", "tokenizer.ggml.model"}
    yield from _differing_metadata_findings(source, model, tokenizer, "other-pre-tokenizer")


def _other_tokens_finding(source: GgufHeader, model: GgufHeader, length: int) -> ForeignFinding:
    """One by one: some writers give reserved tokens other names."""
    try:
        ours, theirs = (gguf_strings(header, _TOKENS, range(length)) for header in (source, model))
    except GgufError as error:
        return foreign_finding("other-vocabulary", f"The vocabulary cannot be read: {error}.")
    differ = [n for n in range(length) if ours.get(n) != theirs.get(n)]
    shown = ", ".join(
        f"{n} is {shown_name(theirs.get(n, ''), _SHOWN)} in place of {shown_name(ours.get(n, ''), _SHOWN)}"
        for n in differ[:_MAX_NAMED]
    )
    kind = "other-vocabulary" if len(differ) > _OTHER_TOKENS_SHARE * length else "other-tokens"
    return foreign_finding(kind, f"{len(differ):,} of {length:,} tokens have other texts: {shown}.")


def _foreign_settings_findings(source: GgufHeader, model: GgufHeader) -> Iterator[ForeignFinding]:
    start = f"{source.architecture}."
    keys = {key for key in (*source.metadata, *model.metadata) if key.startswith(start)}
    rope = {key for key in keys if _ROPE.search(key)}
    yield from _differing_metadata_findings(source, model, rope, "other-rope")
    others = keys - rope - {f"{start}vocab_size"}
    yield from _differing_metadata_findings(source, model, others, "other-hyperparameters")


def _differing_metadata_findings(
    source: GgufHeader, model: GgufHeader, keys: set[str], kind: str, *, is_absence_same: bool = False
) -> Iterator[ForeignFinding]:
    """One finding on the keys whose values differ. `is_absence_same`: a key that one file lacks is not a difference
    where the other's is false.
    """
    found = []
    for key in sorted(keys):
        ours, theirs = _comparable_foreign_metadata(source, key), _comparable_foreign_metadata(model, key)
        if ours != theirs and not (is_absence_same and {ours, theirs} == {None, False}):
            said = f"{_shown_foreign_metadata(model, key)}, of our conversion {_shown_foreign_metadata(source, key)}"
            found.append(f"{shown_name(key, _SHOWN)} is {said}")
    if found:
        more = f"; and {len(found) - _MAX_NAMED} more" if len(found) > _MAX_NAMED else ""
        yield foreign_finding(kind, f"{'; '.join(found[:_MAX_NAMED])}{more}.")


def _comparable_foreign_metadata(header: GgufHeader, key: str) -> object:
    value = header.metadata.get(key)
    return getattr(value, "sha256", value)


def _shown_foreign_metadata(header: GgufHeader, key: str) -> str:
    value: MetadataValue | None = header.metadata.get(key)
    if value is None:
        return "not given"
    if isinstance(value, GgufArray):
        return f"a list of {value.length:,}"
    if isinstance(value, str):
        return shown_name(value, _SHOWN)
    return format_digits(value, 6) if isinstance(value, float) else str(value)


def _named_type_finding(model: GgufHeader, named_type: str) -> ForeignFinding | None:
    promised = PROMISED_TYPES.get(named_type)
    if promised is None or foreign_type_share(model, promised) >= _LEAST_OF_TYPE:
        return None
    held = ", ".join(f"{name} {n}" for name, n in list(count_tensor_types(model.tensors).items())[:_MAX_NAMED])
    share = foreign_type_share(model, promised)
    what = f"The name says {named_type}, but {format_rough_percent(share)} of the weights are {' or '.join(promised)}"
    return foreign_finding("other-type-than-named", f"{what}; tensors by type: {held}.")


def _imatrix_words(model: GgufHeader, keys: list[str]) -> str:
    """Its text and chunks, as llama-quantize records them."""
    said = {key.rpartition(".")[2]: model.metadata[key] for key in keys}
    parts = [shown_name(str(said["dataset"]), _SHOWN)] if "dataset" in said else []
    parts += [f"{said['chunks_count']} chunks"] if "chunks_count" in said else []
    return ", ".join(parts) or "nothing more is said of it"
