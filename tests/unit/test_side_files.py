"""Small files of a model that are not what their names say, a tokenizer that is missing or does not fit: told at the
plan, with the file and what to type.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from quantyard.errors import BadSource
from quantyard.formats.file_kinds import spoiled_file, spoiled_text
from quantyard.formats.sentencepiece import missing_sentencepiece_file, parse_tokenizer_beginning
from quantyard.quants.file_size import TensorShape
from quantyard.sources import side_files
from quantyard.sources.local_source import local_folder_source
from quantyard.sources.side_files import (
    check_local_files,
    parse_side_json,
    refuse_missing_tokenizer,
    refuse_spoiled_weights,
)
from quantyard.sources.source import Source
from quantyard.store.hash_cache import HashCache
from tests.tiny_model import write_safetensors

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 499723\n"
ROWS = (TensorShape("model.embed_tokens.weight", (10, 4), "BF16"),)


def check(folder: Path, **files: bytes) -> list[str]:
    """Files by their names, with `__` for a dot."""
    places = {name.replace("__", "."): folder / name.replace("__", ".") for name in files}
    for name, content in files.items():
        places[name.replace("__", ".")].write_bytes(content)
    return check_local_files("/models/x", places, {"vocab_size": 10}, ROWS)


def refused(folder: Path, **files: bytes) -> str:
    with pytest.raises(BadSource) as caught:
        check(folder, **files)
    return f"{caught.value.message} | {caught.value.hint}"


SPOILED = {
    "pointer": (LFS, "a Git LFS pointer for a file of 499,723 bytes", "git lfs pull"),
    "bom": (b"\xef\xbb\xbf{}", "UTF-8 with a byte order mark", "sed -i"),
    "utf-16": ('{"a": 1}'.encode("utf-16"), "UTF-16 text", "iconv -f UTF-16"),
    "utf-16-be": (b"\xfe\xff" + '{"a": 1}'.encode("utf-16-be"), "UTF-16 text", "iconv -f UTF-16"),
    "utf-16-no-mark": ('{"a": 1}'.encode("utf-16-le"), "UTF-16 text without a mark", "iconv -f UTF-16LE"),
    "utf-32": ('{"a": 1}'.encode("utf-32"), "UTF-32 text", "iconv -f UTF-32"),
    "page": (b"<!DOCTYPE html><html>", "a web page", "download it again"),
    "page-indented": (b"\n  <html lang=en>", "a web page", "download it again"),
    "gzip": (gzip.compress(b"{}"), "a gzip archive", "gunzip"), "zeros": (bytes(64), "all zeros", "Download it again"),
    "empty": (b"", "empty", "Download it again"), "cut": (b'{"a": ', "not valid JSON", "Download or copy it again"),
    "nested": (b"[" * 100_000, "not valid JSON", "Download or copy it again"),
}  # fmt: skip


@pytest.mark.parametrize("kind", SPOILED)
@pytest.mark.parametrize("name", ["tokenizer__json", "tokenizer_config__json"])
def test_a_spoiled_json_file_is_named_with_what_it_is_and_what_helps(kind: str, name: str, tmp_path: Path) -> None:
    content, what, hint = SPOILED[kind]
    said = refused(tmp_path, **{"tokenizer__model": b"\n\x0e", name: content})
    assert said.startswith(name.replace("__", ".")) and what in said and hint in said


@pytest.mark.parametrize("kind", ["pointer", "page", "gzip", "zeros", "empty"])
def test_a_spoiled_sentencepiece_file_is_found_too(kind: str, tmp_path: Path) -> None:
    assert SPOILED[kind][1] in refused(tmp_path, tokenizer__model=SPOILED[kind][0])


@pytest.mark.parametrize("kind", ["pointer", "bom", "utf-16"])
def test_a_spoiled_chat_template_is_found_too(kind: str, tmp_path: Path) -> None:
    assert "chat_template.jinja" in refused(tmp_path, tokenizer__model=b"\n\x0e", chat_template__jinja=SPOILED[kind][0])


@pytest.mark.parametrize(
    ("content", "what"),
    [(LFS, "a Git LFS pointer"), (b"PK\x03\x04", "a zip archive"), (b"GGUF\x03", "a GGUF"), (b"<html>", "a web page")],
)
def test_weights_that_are_something_else_are_called_so(content: bytes, what: str, tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(content)
    for given in (content, tmp_path / "model.safetensors"):
        with pytest.raises(BadSource, match=what):
            refuse_spoiled_weights("/models/x", "model.safetensors", given)


def test_good_files_are_not_spoiled() -> None:
    header = b'\x40\0\0\0\0\0\0\0{"a":{"dtype":"BF16","shape":[4],"data_offsets":[0,8]}}'
    assert spoiled_file(header, "x") is None and spoiled_text('{"a": "ü"}'.encode(), "x") is None
    assert spoiled_text(b"{}", "x") is None and spoiled_text("{{ '你好' }}".encode(), "x") is None


# ---- the tokenizer -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "names",
    [["tokenizer.json"], ["tokenizer.model"], ["spiece.model"], ["sentencepiece.bpe.model"], ["qwen.tiktoken"],
     ["tekken.json"], ["vocab.txt"], ["vocab.json", "merges.txt"], ["tokenizer.model.v3"]],
)  # fmt: skip
def test_each_kind_of_tokenizer_counts(names: list[str]) -> None:
    refuse_missing_tokenizer("/models/x", names, {})


@pytest.mark.parametrize(
    ("names", "says"),
    [
        ([], "neither tokenizer.json nor tokenizer.model is there."), (["vocab.json"], "vocab.json without merges.txt"),
        (["merges.txt"], "merges.txt without vocab.json"),
        (["tokenizer_config.json", "special_tokens_map.json"], "tokenizer_config.json, special_tokens_map.json alone"),
    ],
)
def test_a_missing_tokenizer_is_named_with_the_command_that_saves_one(names: list[str], says: str) -> None:
    with pytest.raises(BadSource) as caught:
        refuse_missing_tokenizer("/models/x", names, {})
    assert says in caught.value.message and "tokenizer.save_pretrained" in caught.value.hint


def tokenizer(kind: str, n_tokens: int, *added: tuple[int, str]) -> bytes:
    tokens = [f"t{i}" for i in range(n_tokens)]
    vocab: Any = {token: i for i, token in enumerate(tokens)} if kind == "BPE" else [[token, -1.0] for token in tokens]
    listed = [{"id": number, "content": text} for number, text in added]
    return json.dumps({"model": {"type": kind, "vocab": vocab}, "added_tokens": listed}).encode()


@pytest.mark.parametrize("kind", ["BPE", "Unigram"])
@pytest.mark.parametrize(("n_tokens", "added"), [(10, ()), (8, ((8, "<a>"), (9, "<b>"))), (3, ())])
def test_a_tokenizer_that_fits_the_embeddings_passes(
    kind: str, n_tokens: int, added: tuple[tuple[int, str], ...], tmp_path: Path
) -> None:
    assert check(tmp_path, tokenizer__json=tokenizer(kind, n_tokens, *added)) == []


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (tokenizer("BPE", 12), "2 tokens without a row of the embeddings, which have 10: 't10' is number 10"),
        (tokenizer("Unigram", 11), "a token without a row"), (tokenizer("BPE", 10, (10, "<start>")), "'<start>'"),
        (tokenizer("BPE", 9, (9, "<a>"), (4_000_000, "<b>")), "number 4,000,000"),
    ],
)
def test_tokens_without_an_embedding_are_counted_and_the_first_is_named(
    content: bytes, says: str, tmp_path: Path
) -> None:
    said = refused(tmp_path, tokenizer__json=content)
    assert says in said and "resize_token_embeddings" in said


def test_added_tokens_beyond_a_sentencepiece_vocabulary_are_a_note(tmp_path: Path) -> None:
    """Gemma's text models have one for pictures, and the converter leaves it out."""
    files = {"tokenizer__json": tokenizer("BPE", 10, (10, "<image>")), "tokenizer__model": b"\n\x0e"}
    assert "leaves such added tokens out" in check(tmp_path, **files)[0]


@pytest.mark.parametrize("content", [b"[]", b"{}", b'{"model": 7, "added_tokens": 7}', b'{"model": {"vocab": [7]}}',
                                     b'{"added_tokens": [{"id": "x"}, 7]}'])  # fmt: skip
def test_a_tokenizer_of_another_form_is_left_to_the_stage(content: bytes, tmp_path: Path) -> None:
    assert check(tmp_path, tokenizer__json=content) == []


def test_files_that_passed_are_not_parsed_again_until_one_of_them_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "config.json").write_text('{"architectures": ["LlamaForCausalLM"], "model_type": "llama"}')
    tokenizer = folder / "tokenizer.json"
    tokenizer.write_text('{"model": {"type": "BPE", "vocab": {}, "merges": []}}')
    write_safetensors(folder / "model.safetensors", {"model.norm.weight": (64,)})
    parsed: list[str] = []

    def spy(title: str, name: str, text: bytes) -> Any:
        parsed.append(name)
        return parse_side_json(title, name, text)

    def plan() -> Source:
        hashes = HashCache(tmp_path / "hashes")  # of another run
        return local_folder_source(folder, hashes, allow_pickle=False, gguf_file=None)

    monkeypatch.setattr(side_files, "parse_side_json", spy)
    first = plan()
    assert set(parsed) == {"config.json", "tokenizer.json"}
    parsed.clear()
    assert plan().notes == first.notes and parsed == []
    tokenizer.write_bytes(LFS)
    for _ in range(2):  # a refusal is not kept
        with pytest.raises(BadSource, match="Git LFS"):
            plan()


# ---- SentencePiece -----------------------------------------------------------------------------------

METASPACE = {"pre_tokenizer": {"type": "Metaspace", "replacement": "▁"}}
PREPEND = {"normalizer": {"type": "Sequence", "normalizers": [{"type": "Prepend", "prepend": "▁"}]}}
BYTES = {"type": "BPE", "byte_fallback": True}
MISSING = {
    "metaspace": (METASPACE, BYTES, "LlamaForCausalLM", "tokenizer.model"),
    "prepended": (PREPEND, BYTES, "MistralForCausalLM", "tokenizer.model"),
    "unigram T5": (METASPACE, {"type": "Unigram"}, "T5ForConditionalGeneration", "spiece.model"),
    "unigram": (METASPACE, {"type": "Unigram"}, "XLMRobertaModel", ""),
    "byte level": ({"pre_tokenizer": {"type": "ByteLevel"}}, BYTES, "Qwen3ForCausalLM", ""),
    "no bytes": (METASPACE, {"type": "BPE", "byte_fallback": False}, "LlamaForCausalLM", ""),
    "read by its converter": (METASPACE, BYTES, "Gemma4ForCausalLM", ""),
}  # fmt: skip


def tokenizer_text(parts: dict[str, Any], model: dict[str, Any], *, ascii_only: bool = False) -> bytes:
    """A tokenizer.json whose model comes last, its vocabulary before its merges, as the library writes it."""
    added = [{"id": 0, "content": "<s>", "special": True}]
    vocab = {f"▁{n}": n for n in range(8)}
    said = {"version": "1.0", "added_tokens": added, **parts, "model": {**model, "vocab": vocab, "merges": []}}
    return json.dumps(said, ensure_ascii=ascii_only, indent=2).encode()


@pytest.mark.parametrize("kind", MISSING)
@pytest.mark.parametrize("ascii_only", [False, True])
def test_a_sentencepiece_tokenizer_without_its_own_file_is_refused_with_its_name(
    kind: str, ascii_only: bool, tmp_path: Path
) -> None:
    parts, model, architecture, wanted = MISSING[kind]
    text = tokenizer_text(parts, model, ascii_only=ascii_only)
    for value in (json.loads(text), parse_tokenizer_beginning(text[:-60])):
        assert missing_sentencepiece_file(["tokenizer.json"], architecture, value) == wanted
        assert missing_sentencepiece_file(["tokenizer.json", "tokenizer.model"], architecture, value) == ""
    places = {"tokenizer.json": tmp_path / "tokenizer.json"}
    places["tokenizer.json"].write_bytes(text)
    config = {"vocab_size": 10, "architectures": [architecture]}
    if not wanted:
        check_local_files("/models/x", places, config, ROWS)
        return
    with pytest.raises(BadSource, match=f"no {wanted}") as caught:
        check_local_files("/models/x", places, config, ROWS)
    assert caught.value.hint.startswith(f"Copy {wanted} ")


@pytest.mark.parametrize("head", [b"", b"{}", b'{"added_tokens": [', b'{"model": {"vocab": {"a": 1}', b"\xff\xfe"])
def test_a_beginning_that_does_not_tell_is_left_to_the_stage(head: bytes) -> None:
    assert parse_tokenizer_beginning(head) is None
