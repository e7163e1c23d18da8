"""Asks the Hugging Face side what its tokenizer and chat template say, and writes it as JSON.

    python builder/reference.py --folder DIR --out reference.json

A script, not a stage: it runs in the converter's Python, which has transformers (4.57 to 5.x) and may have
neither pydantic nor this package. So it imports only the standard library and transformers, reads the probes
from the file beside it, and writes what `pipeline.contract.Reference` accepts.

Exit codes are those of the contract: 0, or 3 when transformers cannot load the tokenizer without running code
that came with the model.
"""

from __future__ import annotations

import argparse
import json
import os
import runpy
import sys
from pathlib import Path
from typing import Any

UNSUPPORTED_MODEL = 3


def main() -> int:
    """Write the reference of one folder; returns the exit code."""
    parser = argparse.ArgumentParser(description="Write what a folder's tokenizer and chat template say.")
    parser.add_argument("--folder", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    _hide_own_folder()
    try:
        tokenizer = load_tokenizer(args.folder)
    except Exception as error:  # transformers raises whatever the folder's files lead it to
        print(f"transformers cannot load the tokenizer: {type(error).__name__}: {error}", file=sys.stderr)
        return UNSUPPORTED_MODEL
    args.out.write_text(json.dumps(reference(tokenizer), ensure_ascii=True), encoding="utf-8")
    return 0


def _hide_own_folder() -> None:
    """Python puts a script's folder first; a library that imports `stage` or `convert` must not find ours."""
    own = str(Path(__file__).resolve().parent)
    sys.path[:] = [entry for entry in sys.path if os.path.realpath(entry or ".") != own]


def load_tokenizer(folder: Path) -> Any:
    """The folder's tokenizer, loaded without the network and without remote code."""
    sys.modules["torch"] = None  # type: ignore[assignment]  # transformers then takes torch as not installed
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)


def reference(tokenizer: Any) -> dict[str, Any]:
    """Everything `verify` compares: the ids of every probe, and the text of every conversation."""
    probes = runpy.run_path(str(Path(__file__).with_name("probes.py")))
    texts = [*probes["PROBES"], *probes["special_token_probes"](special_tokens(tokenizer))]
    has_template = bool(getattr(tokenizer, "chat_template", None))
    chats, refused = render(tokenizer, probes["CONVERSATIONS"]) if has_template else ([], {})
    return {
        "tokenizer_class": type(tokenizer).__name__,
        "bos_token": tokenizer.bos_token,
        "probe_ids": {text: encode(tokenizer, text, add_special=False) for text in texts},
        "probe_ids_with_special": {text: encode(tokenizer, text, add_special=True) for text in texts},
        "chat_template": has_template,
        "chats": chats,
        "refused_chats": refused,
    }


def special_tokens(tokenizer: Any) -> list[str]:
    """The tokenizer's special tokens, those with a role (BOS, EOS, …) first."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    others = [str(token) for _, token in sorted(added.items()) if getattr(token, "special", False)]
    return [str(token) for token in (*tokenizer.all_special_tokens, *others)]


def encode(tokenizer: Any, text: str, *, add_special: bool) -> list[int]:
    """Token ids of a text, special tokens in it parsed."""
    ids = tokenizer(text, add_special_tokens=add_special, return_attention_mask=False)["input_ids"]
    return [int(token) for token in ids]


def render(
    tokenizer: Any, conversations: dict[str, list[dict[str, str]]]
) -> tuple[list[dict[str, Any]], dict[str, str]]:
    """The text of each conversation, and why the template refuses the others (no system role, for one)."""
    chats: list[dict[str, Any]] = []
    refused: dict[str, str] = {}
    for name, messages in conversations.items():
        try:
            text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        except Exception as error:  # templates raise what they like
            refused[name] = f"{type(error).__name__}: {error}"
        else:
            chats.append({"name": name, "messages": messages, "text": text})
    return chats, refused


if __name__ == "__main__":
    sys.exit(main())
