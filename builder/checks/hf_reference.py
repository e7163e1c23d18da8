"""Asks the Hugging Face side what its tokenizer and chat template say, and writes it as JSON.

    python builder/checks/hf_reference.py --folder DIR --out reference.json

A script, not a stage: it runs in the converter's Python, which has transformers (4.57 to 5.x) and may have
neither pydantic nor this package. So it imports only the standard library and transformers, reads the probes
and the witnesses from the files beside it, and writes what `quantyard.protocol.builder.Reference` accepts.

The template is a program that others wrote, so it is rendered within the limits of `sandbox/bounded_process.py`. Each
conversation is named on stdout before it is rendered: a process that was ended cannot say with which one.

Exit codes: 0; 3, transformers cannot load the tokenizer without running code that came with the model; 9, the template
breaks a limit, and the last line says which; or the process is ended by a signal.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

UNSUPPORTED_MODEL = 3
OVER_LIMIT = 9
RENDERS = "rendering "  # begins the line that names a conversation
_BOUNDED = runpy.run_path(str(Path(__file__).parents[2] / "quantyard" / "sandbox" / "bounded_process.py"))
_MAX_TEMPLATE = 1 << 20  # characters
_MAX_TEXT = 1 << 20  # of a rendered conversation
_MAX_REASON = 500


class OverLimit(Exception):
    """The template breaks a limit; the message says what it does."""


def main() -> int:
    """Write the reference of one folder; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write what a folder's tokenizer and chat template say.")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    _hide_checks_folder()
    try:
        tokenizer = load_hf_tokenizer(args.folder)
    except Exception as error:  # transformers raises whatever the folder's files lead it to
        print(f"transformers cannot load the tokenizer: {type(error).__name__}: {error}", file=sys.stderr)
        return UNSUPPORTED_MODEL
    try:
        facts = hf_reference_facts(tokenizer, _BOUNDED["sandbox_this_process"], args.folder)
    except OverLimit as error:
        print(error)
        return OVER_LIMIT
    args.out.write_text(json.dumps(facts, ensure_ascii=True), encoding="utf-8")
    return 0


def _hide_checks_folder() -> None:
    """Python puts a script's folder first; a library that imports `stage` or `convert` must not find ours."""
    own = str(Path(__file__).resolve().parent)
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or ".") != own]


def load_hf_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, loaded without the network and without remote code."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # transformers then takes torch as not installed
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)


def hf_reference_facts(
    tokenizer: Any, limit: Callable[[], None] = lambda: None, folder: Path | None = None
) -> dict[str, Any]:
    """Everything `verify` compares: the ids of every probe and passage, and the text of every conversation.

    Args:
        limit: is called before each conversation, to give what renders it its seconds and megabytes.
        folder: the model's; without it transformers' tokenizer is the only witness.
    """
    probes, template = _run_checks_module("tokenizer_probes.py"), getattr(tokenizer, "chat_template", None)
    _refuse_large_chat_template(template)
    chats, refused = hf_render_chats(tokenizer, probes["CONVERSATIONS"], limit) if template else ([], {})
    return {
        "tokenizer_class": type(tokenizer).__name__,
        "bos_token": tokenizer.bos_token,
        **_reference_token_facts(tokenizer, folder, probes),
        "chat_template": bool(template),
        "chats": chats,
        "refused_chats": refused,
    }


def _reference_token_facts(tokenizer: Any, folder: Path | None, probes: dict[str, Any]) -> dict[str, Any]:
    """What the witnesses say: ids without BOS and EOS, those of some texts with them, and who disagrees."""
    tools, corpus = _run_checks_module("witness.py"), _run_checks_module("corpus.py")
    witnesses = tools["tokenizer_witnesses"](folder, tokenizer)
    added = [token for token in tools["added_tokens"](folder, tokenizer) if _is_reference_text(token["content"])]
    names = [token["content"] for token in added]
    encode: Callable[[str, bool], list[int]] = tools["judging_encode"](witnesses, names)
    apart = tools["encode_apart"](encode, {token["content"]: token["id"] for token in added})
    passages = corpus["running_text"]()
    texts = [*probes["PROBES"], *(passage["text"] for passage in passages)]
    return {
        "witness": witnesses[0].title,
        "disagreements": tools["witness_disagreements"](witnesses, texts, names),
        "probe_ids": {text: encode(text, False) for text in probes["PROBES"]},
        "probe_ids_with_special": {text: encode(text, True) for text in probes["ENDS_PROBES"]},
        "passages": [passage | {"ids": encode(passage["text"], False)} for passage in passages],
        "added_tokens": added,
        "added_batches": [
            _reference_token_batch(encode, apart, *batch) for batch in probes["added_token_batches"](added)
        ],
    }


def _reference_token_batch(
    encode: Callable[[str, bool], list[int]], apart: Callable[[str], list[int]], tokens: list[str], texts: list[str]
) -> dict[str, Any]:
    asked = [*texts, "\n".join(texts)]
    ids = [encode(text, False) for text in asked]
    apart_ids = [found if found != own else None for found, own in zip(map(apart, asked), ids, strict=True)]
    return {
        "tokens": tokens,
        "texts": texts,
        "ids": ids[:-1],
        "joined_ids": ids[-1],
        "apart_ids": apart_ids[:-1],
        "joined_apart_ids": apart_ids[-1],
    }


def _run_checks_module(name: str) -> dict[str, Any]:
    """The names of a module in this folder, which cannot be imported here."""
    return runpy.run_path(str(Path(__file__).with_name(name)))


def hf_render_chats(
    tokenizer: Any, conversations: dict[str, list[dict[str, str]]], limit: Callable[[], None]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The text of each conversation, and why the template refuses the others (no system role, for one).

    Raises:
        OverLimit: one takes too much memory, or becomes too long. One that takes too long ends the process.
    """
    chats: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    for name, messages in conversations.items():
        print(f"{RENDERS}{name}", flush=True)
        limit()
        try:
            text = str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
            text.encode()  # a lone surrogate cannot be encoded
        except MemoryError as error:
            raise OverLimit(_BOUNDED["sandbox_memory_exceeded"]()) from error
        except Exception as error:  # templates raise what they like
            refused[name] = f"{type(error).__name__}: {error}"[:_MAX_REASON].encode(errors="replace").decode()
            continue
        if len(text) > _MAX_TEXT:
            raise OverLimit(_BOUNDED["TOO_LARGE"])
        chats.append({"name": name, "messages": messages, "text": text})
    return chats, refused


def _refuse_large_chat_template(template: Any) -> None:
    """A template, or several by name."""
    for text in template.values() if isinstance(template, dict) else [template]:
        if isinstance(text, str) and len(text) > _MAX_TEMPLATE:
            raise OverLimit(f"has {len(text):,} characters, more than the {_MAX_TEMPLATE:,} allowed")


def _is_reference_text(text: str) -> bool:
    """Not where a lone surrogate stands in it, as a special token's name in JSON may have one."""
    return not any("\ud800" <= letter <= "\udfff" for letter in text)


if __name__ == "__main__":
    sys.exit(main())
