"""SentencePiece models and the `tokenizer.json` of one, each made from the other or from a vocabulary."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final

# trainer's ids of ModelProto.SentencePiece.Type, which are those of GGUF's token types
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
_SPACE: Final = "▁"


def model_of_vocabulary(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], *, prefix: bool
) -> bytes:
    """A `tokenizer.model` (BPE).

    Args:
        prefix: whether a space is put before every text.
    """
    from sentencepiece import sentencepiece_model_pb2 as protocol

    model = protocol.ModelProto()
    for token, score, kind in zip(tokens, scores, types, strict=True):
        piece = model.pieces.add()
        piece.piece, piece.score, piece.type = token, score, kind
    model.trainer_spec.model_type = 2  # BPE
    model.trainer_spec.byte_fallback = BYTE in types
    model.trainer_spec.vocab_size = len(tokens)
    model.trainer_spec.unk_id = list(types).index(UNKNOWN)
    model.trainer_spec.unk_piece = tokens[model.trainer_spec.unk_id]
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = prefix
    model.normalizer_spec.remove_extra_whitespaces = False
    return bytes(model.SerializeToString())


def vocabulary_of_model(data: bytes) -> tuple[list[str], list[float], list[int]]:
    """Tokens, scores and types of a `tokenizer.model`."""
    from sentencepiece import sentencepiece_model_pb2 as protocol

    model = protocol.ModelProto()
    model.ParseFromString(data)
    pieces = model.pieces
    return [p.piece for p in pieces], [p.score for p in pieces], [p.type for p in pieces]


def bpe_tokenizer_json(
    tokens: Sequence[str], scores: Sequence[float], types: Sequence[int], added: Iterable[dict[str, Any]] = ()
) -> dict[str, Any]:
    """The `tokenizer.json` that Llama-2's kind of models have beside their `tokenizer.model`.

    Args:
        added: tokens beyond the vocabulary, with their flags.
    """
    vocabulary = {token: i for i, token in enumerate(tokens)}
    special = [
        {"id": i, "content": tokens[i], "special": True, **_NO_FLAGS}
        for i, kind in enumerate(types) if kind in (UNKNOWN, CONTROL)
    ]  # fmt: skip
    plain = [
        {"id": i, "content": tokens[i], "special": False, **_NO_FLAGS}
        for i, kind in enumerate(types) if kind == USER_DEFINED
    ]  # fmt: skip
    extra = list(added)
    named = {token["content"] for token in extra}
    return {
        "version": "1.0", "truncation": None, "padding": None,
        "added_tokens": sorted(
            [*(token for token in (*special, *plain) if token["content"] not in named), *extra], key=lambda t: t["id"]
        ),
        "normalizer": {"type": "Sequence", "normalizers": [
            {"type": "Prepend", "prepend": _SPACE},
            {"type": "Replace", "pattern": {"String": " "}, "content": _SPACE},
        ]},
        "pre_tokenizer": None, "post_processor": begins_with("<s>", vocabulary["<s>"]), "decoder": None,
        "model": {
            "type": "BPE", "dropout": None, "unk_token": "<unk>", "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": True, "byte_fallback": True, "ignore_merges": False,
            "vocab": vocabulary, "merges": _merges(vocabulary, scores, types),
        },
    }  # fmt: skip


_NO_FLAGS: Final = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}


def begins_with(token: str, token_id: int) -> dict[str, Any]:
    """The post-processor that puts this token before every text."""
    first = {"SpecialToken": {"id": token, "type_id": 0}}
    text = {"Sequence": {"id": "A", "type_id": 0}}
    other = {"Sequence": {"id": "B", "type_id": 1}}
    return {
        "type": "TemplateProcessing", "single": [first, text], "pair": [first, text, other],
        "special_tokens": {token: {"id": token, "ids": [token_id], "tokens": [token]}},
    }  # fmt: skip


def _merges(vocabulary: dict[str, int], scores: Sequence[float], types: Sequence[int]) -> list[list[str]]:
    """The merges that make the pieces of higher scores first, as transformers' converter orders them."""
    found: list[tuple[float, int, int, list[str]]] = []
    for piece, i in vocabulary.items():
        if types[i] == NORMAL:
            pairs = [[piece[:at], piece[at:]] for at in range(1, len(piece))]
            known = [pair for pair in pairs if pair[0] in vocabulary and pair[1] in vocabulary]
            known.sort(key=lambda pair: (vocabulary[pair[0]], vocabulary[pair[1]]))
            found += [(scores[i], len(pair[0]), len(pair[1]), pair) for pair in known]
    return [pair for *_, pair in sorted(found, key=lambda each: each[:3], reverse=True)]


def model_of_bpe(tokenizer: dict[str, Any]) -> bytes:
    """The `tokenizer.model` of a Gemma's `tokenizer.json`: its ids are in the order of the scores."""
    ids = {i: token for token, i in tokenizer["model"]["vocab"].items()}
    special = {token["id"]: token["special"] for token in tokenizer["added_tokens"]}
    tokens = [ids[i] for i in range(len(ids))]
    unknown = tokenizer["model"]["unk_token"]
    types = [_type_of(token, unknown, special.get(i)) for i, token in enumerate(tokens)]
    scores = [-float(i) if kind == NORMAL else 0.0 for i, kind in enumerate(types)]
    return model_of_vocabulary(tokens, scores, types, prefix=False)


def _type_of(token: str, unknown: str, special: bool | None) -> int:
    if token == unknown:
        return UNKNOWN
    if special is not None:
        return CONTROL if special else USER_DEFINED
    return BYTE if token.startswith("<0x") and token.endswith(">") and len(token) == 6 else NORMAL
