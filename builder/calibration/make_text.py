"""Makes the calibration text from its grammars: the same bytes on every machine.

    python -m builder.calibration.make_text            # writes builder/calibration/text.jsonl
    python -m builder.calibration.make_text --check    # exits with 1 if the file differs

Every sentence is generated from `grammars/*.txt`, which were written for this project. Each line of the file is one
document: {"domain", "text"}, or {"domain": "dialogues", "messages"} to be rendered with the model's own chat
template. Domains alternate, so that any prefix of the text has something of each.
More: docs/explanation/calibration.md.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

from builder.calibration.grammar import GrammarWriter, read_calibration_grammar

HERE = Path(__file__).parent
TEXT_FILE = HERE / "text.jsonl"
_SEED = "quantyard-1"
_ROLES = {"S": "system", "U": "user", "A": "assistant"}
_TURN = re.compile(r"§([SUA])")

# To add a domain: add a grammar of this name, and a row with the number of its documents in each turn.
SHARES = {
    "en-places": 2, "en-science": 2, "en-affairs": 4, "code": 6, "dialogues": 6, "de": 1, "fr": 1, "es": 1, "it": 1,
    "ru": 1, "zh": 1,
}  # fmt: skip
TURNS = 32


def calibration_documents() -> Iterator[dict[str, object]]:
    """The documents, in the order of the file."""
    writers = {
        name: GrammarWriter(read_calibration_grammar(HERE / "grammars" / f"{name}.txt"), f"{_SEED}:{name}")
        for name in SHARES
    }
    for turn in range(TURNS):
        for name, share in _calibration_domains_of_turn(turn):
            for _ in range(share):
                yield _calibration_document(name, writers[name].document())


def _calibration_domains_of_turn(turn: int) -> list[tuple[str, int]]:
    """The domains, rotated so that each turn starts with another one."""
    rows = list(SHARES.items())
    first = turn % len(rows)
    return rows[first:] + rows[:first]


def _calibration_document(name: str, text: str) -> dict[str, object]:
    if name != "dialogues":
        return {"domain": name, "text": text}
    _, *parts = _TURN.split(text)
    turns = zip(parts[::2], parts[1::2], strict=True)
    return {"domain": name, "messages": [{"role": _ROLES[mark], "content": said} for mark, said in turns]}


def calibration_jsonl() -> str:
    """The content of the file."""
    return "".join(json.dumps(document, ensure_ascii=False) + "\n" for document in calibration_documents())


def main() -> None:
    """Write the file, or with --check compare it."""
    text = calibration_jsonl()
    if "--check" in sys.argv[1:]:
        sys.exit(TEXT_FILE.read_text(encoding="utf-8") != text)
    TEXT_FILE.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
