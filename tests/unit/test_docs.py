"""The documents are true as far as a program can tell: links lead somewhere, and what they name is there."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from markdown_it import MarkdownIt
from markdown_it.token import Token

REPO_DIR = Path(__file__).parents[2]
DOCS_DIR = REPO_DIR / "docs"
PAGES = sorted([*REPO_DIR.glob("*.md"), *DOCS_DIR.rglob("*.md")])
_FOLDERS = ("builder", "eval", "server", "quantyard", "scripts", "tests", "docker")
_CODE = [path for folder in _FOLDERS for path in (REPO_DIR / folder).rglob("*")
         if path.suffix in (".py", ".yaml", ".sh", ".toml") and path.name != Path(__file__).name]
_PATH = re.compile(rf"(?<![\w/])(?:{'|'.join(_FOLDERS)})/[\w./-]*+(?!:\w)")  # name:tag is an image


def _name(path: Path) -> str:
    return path.relative_to(REPO_DIR).as_posix()


@cache
def _tokens(path: Path) -> tuple[Token, ...]:
    parsed = MarkdownIt("commonmark").enable("table").parse(path.read_text())
    return tuple(token for block in parsed for token in (block, *(block.children or ())))


@cache
def _anchors(path: Path) -> frozenset[str]:
    """The anchors of a page's headings, as both GitHub and the site make them."""
    tokens = _tokens(path)
    titles = (after.content.lower() for token, after in pairwise(tokens) if token.type == "heading_open")
    return frozenset(re.sub(r"[^\w\- ]", "", title).replace(" ", "-") for title in titles)


def _links(path: Path) -> Iterator[str]:
    for token in _tokens(path):
        target = token.attrGet("href") if token.type == "link_open" else token.attrGet("src")
        if target and not re.match(r"[a-z]+:", str(target)):
            yield unquote(str(target))


def _names(path: Path) -> Iterator[str]:
    """What stands in the page as code, but not what a reader types elsewhere."""
    yield from (token.content for token in _tokens(path) if token.type in ("code_inline", "fence", "code_block"))


@pytest.mark.commands
@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_link_of_a_page_leads_to_a_file_and_a_heading(page: Path) -> None:
    for link in _links(page):
        target, _, anchor = link.partition("#")
        path = (page.parent / target).resolve() if target else page
        assert path.exists(), f"{link} leads nowhere"
        assert not anchor or anchor in _anchors(path), f"{link}: {_name(path)} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_file_of_ours_that_a_page_names_is_there(page: Path) -> None:
    named = {found.rstrip(".") for text in _names(page) for found in _PATH.findall(text)}
    assert [name for name in sorted(named) if not (REPO_DIR / name).exists()] == []


@pytest.mark.commands
@pytest.mark.parametrize("page", PAGES, ids=_name)
def test_every_test_that_a_page_names_is_there(page: Path) -> None:
    known = "\n".join(path.read_text() for path in (REPO_DIR / "tests").rglob("*.py"))
    named = {found for text in _names(page) for found in re.findall(r"\btest_\w+\b(?!\.py|/|…)", text)}
    files = {path.stem for path in (REPO_DIR / "tests").rglob("*.py")}
    missing = [name for name in sorted(named) if f"def {name}(" not in known and name not in files]
    assert [name for name in missing if not name.endswith("_")] == []  # "test_a_false_word_…" stands for several


def test_every_page_that_the_code_names_is_there() -> None:
    named = {found for path in _CODE for found in re.findall(r"\bdocs/[\w/-]+\.md\b", path.read_text())}
    assert [name for name in sorted(named) if not (REPO_DIR / name).is_file() and "gguf.md" not in name] == []


def test_every_page_is_in_the_sites_navigation() -> None:
    def pages(entry: object) -> Iterator[str]:
        if isinstance(entry, str):
            yield entry
        for value in entry if isinstance(entry, list) else entry.values() if isinstance(entry, dict) else ():
            yield from pages(value)

    listed = set(pages(yaml.safe_load((REPO_DIR / "mkdocs.yml").read_text())["nav"]))
    assert listed == {path.relative_to(DOCS_DIR).as_posix() for path in DOCS_DIR.rglob("*.md")}


def test_the_readme_is_one_screen() -> None:
    assert (REPO_DIR / "README.md").stat().st_size <= 9_000
