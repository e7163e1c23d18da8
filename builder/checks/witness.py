"""Who says how texts are tokenized: `tokenizer.json` itself, else `tokenizer.model`, else transformers' class.

A class of transformers may build another tokenizer than the one in the folder (5.x builds LlamaTokenizer and
GPT2Tokenizer from parts of their own), so the file is asked, with the library that it was written for. What the class
and `tokenizer.model` answer otherwise is recorded and decides nothing.

No import but the standard library: this file runs in the converter's Python, which has `tokenizers` and may have
`sentencepiece`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

Encode = Callable[[str, bool], list[int]]
_SHOWN = 40  # characters of a text in a sentence
FLAGS = ("special", "lstrip", "rstrip", "single_word", "normalized")


class Witness:
    """One source of token ids.

    Attributes:
        title: what it is called, with the version of the library that reads it.
        encode: text, and whether BOS and EOS are added → token ids; special tokens in the text are parsed.
        sees_added: whether it knows the added tokens; sentencepiece alone does not.
    """

    def __init__(self, title: str, encode: Encode, *, sees_added: bool = True) -> None:
        self.title, self.encode, self.sees_added = title, encode, sees_added


def tokenizer_witnesses(folder: Path | None, tokenizer: Any) -> list[Witness]:
    """The witnesses of a folder; the first decides.

    Args:
        tokenizer: what transformers loaded from the folder.
    """
    found = [_transformers_witness(tokenizer)]
    if folder and (folder / "tokenizer.model").is_file() and (pieces := _sentencepiece_witness(folder, tokenizer)):
        found.insert(0, pieces)
    if folder and (folder / "tokenizer.json").is_file():
        found.insert(0, _tokenizer_json_witness(folder / "tokenizer.json"))
    return found


def _transformers_witness(tokenizer: Any) -> Witness:
    """Transformers' class."""

    def encode(text: str, add_special: bool) -> list[int]:
        ids = tokenizer(text, add_special_tokens=add_special, return_attention_mask=False)["input_ids"]
        return [int(token) for token in ids]

    return Witness(f"{type(tokenizer).__name__} of transformers {_witness_version('transformers')}", encode)


def _tokenizer_json_witness(path: Path) -> Witness:
    """`tokenizer.json`, without the truncation and padding that some files ask for."""
    from tokenizers import Tokenizer

    file = Tokenizer.from_file(str(path))
    file.no_truncation()
    file.no_padding()
    title = f"{path.name} (tokenizers {_witness_version('tokenizers')})"
    return Witness(title, lambda text, special: list(file.encode(text, add_special_tokens=special).ids))


def _sentencepiece_witness(folder: Path, tokenizer: Any) -> Witness | None:
    """`tokenizer.model`; None where this Python cannot read it (a tiktoken file has the same name).

    BOS and EOS are those that the class adds: the file says nothing of them.
    """
    try:
        from sentencepiece import SentencePieceProcessor

        pieces = SentencePieceProcessor(model_file=str(folder / "tokenizer.model"))
    except Exception:  # the library raises what it likes
        return None
    before, after = _added_by_class(_transformers_witness(tokenizer).encode)

    def encode(text: str, add_special: bool) -> list[int]:
        ids = list(pieces.encode(text))
        return [*before, *ids, *after] if add_special else ids

    title = f"tokenizer.model (sentencepiece {_witness_version('sentencepiece')})"
    return Witness(title, encode, sees_added=False)


def _added_by_class(encode: Encode) -> tuple[list[int], list[int]]:
    """The ids that are put before and after a text."""
    bare, full = encode("a", False), encode("a", True)
    for at in range(len(full) - len(bare) + 1):
        if full[at : at + len(bare)] == bare:
            return full[:at], full[at + len(bare) :]
    return [], []


def judging_encode(witnesses: list[Witness], added: Iterable[str]) -> Encode:
    """The first witness's answers; texts with added tokens go to the first that knows these."""
    names = [token for token in added if token]
    first = witnesses[0]
    if first.sees_added:
        return first.encode
    other = next(witness for witness in witnesses if witness.sees_added)

    def encode(text: str, add_special: bool) -> list[int]:
        return (other if any(name in text for name in names) else first).encode(text, add_special)

    return encode


def encode_apart(encode: Encode, added: dict[str, int]) -> Callable[[str], list[int]]:
    """Token ids where each stretch of text between added tokens is tokenized as a text of its own.

    Tokenizers that put a space before a text put it before each stretch then. llama.cpp does so
    (`llm_tokenizer_spm_session`), and Transformers unless `legacy` is false.

    Args:
        added: the id of each added token.
    """
    names = sorted(filter(None, added), key=len, reverse=True)
    if not names:
        return lambda text: encode(text, False)
    split = re.compile(f"({'|'.join(map(re.escape, names))})").split

    def apart(text: str) -> list[int]:
        stretches = [[added[part]] if part in added else encode(part, False) for part in split(text) if part]
        return [token for stretch in stretches for token in stretch]

    return apart


def witness_disagreements(witnesses: list[Witness], texts: Iterable[str], added: Iterable[str]) -> list[str]:
    """A sentence for each witness that answers otherwise than the first, with and without BOS and EOS."""
    names, texts = [token for token in added if token], list(texts)
    sentences = []
    for other in witnesses[1:]:
        both_see = other.sees_added and witnesses[0].sees_added
        asked = [text for text in texts if both_see or not any(name in text for name in names)]
        wrong = [text for text in asked if other.encode(text, False) != witnesses[0].encode(text, False)]
        if wrong:
            shown = repr(wrong[0][:_SHOWN])
            sentences.append(f"{other.title} differs on {len(wrong)} of {len(asked)} texts, first {shown}")
        ends = [_added_by_class(witness.encode) for witness in (witnesses[0], other)]
        if ends[0] != ends[1]:
            first, second = map(_witness_ends, ends)
            sentences.append(f"{other.title} adds {second}, where {witnesses[0].title} adds {first}")
    return sentences


def _witness_ends(ids: tuple[list[int], list[int]]) -> str:
    return f"{ids[0] or 'nothing'} before a text and {ids[1] or 'nothing'} after it"


def added_tokens(folder: Path | None, tokenizer: Any) -> list[dict[str, Any]]:
    """Every added token with its flags, by id: those of `tokenizer.json`, else those that transformers knows."""
    if folder and (folder / "tokenizer.json").is_file():
        found = json.loads((folder / "tokenizer.json").read_bytes()).get("added_tokens") or []
        tokens = [(int(token["id"]), str(token["content"]), token) for token in found]
    else:
        decoder = getattr(tokenizer, "added_tokens_decoder", {})
        tokens = [(int(id_), str(token), _added_token_flags(token)) for id_, token in decoder.items()]
    return [
        {"id": id_, "content": content, **{flag: bool(said.get(flag)) for flag in FLAGS}}
        for id_, content, said in sorted(tokens, key=lambda token: token[0])
        if content
    ]


def _added_token_flags(token: Any) -> dict[str, Any]:
    """The flags of one of transformers' added tokens."""
    return {flag: getattr(token, flag, False) for flag in FLAGS}


def _witness_version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "of unknown version"
