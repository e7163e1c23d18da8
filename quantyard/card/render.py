"""The model card: README.md of what is published, from the manifest alone.

`card.md.jinja` says what stands where and `snippets/` how to run it; the modules beside it say what is true.
Whatever the template writes is escaped unless it is a `Safe`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from quantyard.card import check as card_check
from quantyard.card import hub_results as card_results
from quantyard.card.blocks import fence_after, rendered
from quantyard.card.escaping import Safe, clean, code, fenced, html, link, text
from quantyard.card.lists import lists
from quantyard.card.metadata import metadata
from quantyard.card.subject import HUB, CardContext, Subject
from quantyard.card.tables import tables, task_tables
from quantyard.store.manifest import Manifest

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["CardContext", "card_differences", "eval_results", "render_card"]

_HERE: Final = Path(__file__).parent
_PATH: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")
# What is in the pictures, for who cannot see them: (name, words). To add a plot: add a row.
_PLOTS: Final = {
    "tradeoff": "The size of each file against what it costs",
    "accuracy": "Differences of the tasks' scores to the baseline, with intervals",
    "divergence": "Divergence of each file from the baseline",
    "speed": "Tokens per second of each file",
}


def render_card(manifest: Manifest, context: CardContext) -> str:
    """README.md: YAML metadata and Markdown.

    Raises:
        BadRequest: the suite or quant does not exist, the evaluation is of another file, or the repo name is invalid.
    """
    from huggingface_hub import ModelCard

    subject = Subject(manifest, context)
    body = _environment().get_template("card.md.jinja").render(_view(subject))
    return str(ModelCard(f"---\n{metadata(subject).to_yaml(line_break=chr(10))}\n---\n\n{_tidy(body)}\n"))


def eval_results(manifest: Manifest, context: CardContext) -> dict[str, str]:
    """{".eval_results/<task>-<quant>.yaml": text}, as the Hub's leaderboards read it; empty where no task is theirs.

    Raises:
        BadRequest: as `render_card`.
    """
    return card_results.eval_results(Subject(manifest, context))


def card_differences(card: str, manifest: Manifest, context: CardContext) -> list[str]:
    """What on the card is not the manifest's, such as "files table, Q4_K_M, PPL: 99.1 on the card, 32.4 in the
    manifest"; empty for a card as it was rendered, with anything written around what we wrote.

    Raises:
        BadRequest: as `render_card`.
    """
    return card_check.differences(card, Subject(manifest, context))


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Not Jinja's own escaping, which knows HTML and no Markdown: `finalize` sees every value that is written.
    return Environment(
        loader=FileSystemLoader(_HERE), undefined=StrictUndefined, finalize=_finalize, trim_blocks=True,
        lstrip_blocks=True, autoescape=False,  # noqa: S701  (see above)
    )  # fmt: skip


def _tidy(body: str) -> str:
    """No two empty lines in a row, but for those in blocks of code."""
    kept: list[str] = []
    fence = ""
    for line in body.strip().split("\n"):
        fence = fence_after(line, fence)
        if line or fence or (kept and kept[-1]):
            kept.append(line)
    return "\n".join(kept)


def _finalize(value: object) -> str:
    return value if isinstance(value, Safe) else text(value)


# ---- what the template is given ----------------------------------------------------------------------


def _view(subject: Subject) -> dict[str, Any]:
    blocks = {block.name: rendered(block) for block in (*tables(subject), *lists(subject))}
    source, licence = subject.manifest.source, subject.context.licence
    address = Safe(subject.source_url)
    return {
        "blocks": blocks, "title": text(subject.title), "baseline": _baseline(subject),
        "source": link(code(source.repo_id), address) if source.repo_id else code(subject.title),
        "source_file": code(source.gguf_file) if source.gguf_file else None,
        "memory_unknown": any(not (m := subject.measurement(label)) or not m.speed for label in subject.quants),
        "tasks": _tasks(subject, blocks), "plots": list(_plots(subject.context.plots)),
        "licence": code(licence.id), "licence_by_user": licence.stated_by == "user",
        "licence_link": _licence_link(source.card.license_link), "source_card": bool(subject.hub_source),
        "notices": [text(notice, 2000) for notice in licence.notices],
        "licence_text": fenced(subject.context.licence_text) if subject.context.licence_text.strip() else None,
        "run": _run(subject) if subject.usual else None,
    }  # fmt: skip


def _baseline(subject: Subject) -> Safe | None:
    return code(subject.baseline.file.label) if subject.baseline else None


def _licence_link(url: str) -> Safe | None:
    """Its own words, where they have an address."""
    found = link(Safe("its text"), url.strip())
    return found if found != "its text" else None


@dataclass(frozen=True)
class _Task:
    """The tasks of one file."""

    label: Safe
    table: Safe


def _tasks(subject: Subject, blocks: dict[str, Safe]) -> list[_Task]:
    labels = {table.name: label for table, label in zip(task_tables(subject), subject.measured, strict=True)} \
        if subject.headlines else {}  # fmt: skip
    return [_Task(html(label), blocks[name]) for name, label in labels.items()]


@dataclass(frozen=True)
class _Picture:
    """One plot for both themes."""

    light: Safe
    dark: Safe
    words: Safe


def _plots(paths: Iterable[str]) -> Iterator[_Picture]:
    """In the order of the table; PNG where there is one, since not every viewer shows an SVG of a repo."""
    safe = [path for path in paths if _PATH.fullmatch(path) and ".." not in path]
    for name, words in _PLOTS.items():
        for ending in (".png", ".svg"):
            by_theme = {theme: _path_of(safe, f"{name}-{theme}{ending}") for theme in ("light", "dark")}
            light, dark = by_theme["light"], by_theme["dark"]
            if light:
                yield _Picture(Safe(light), Safe(dark or light), Safe(words))
                break


def _path_of(paths: Iterable[str], name: str) -> str | None:
    return next((path for path in paths if PurePosixPath(path).name == name), None)


def _run(subject: Subject) -> dict[str, Safe]:
    """What the snippets fill in. In a block of code a word of a shell is quoted, and nothing is escaped."""
    quant, repo_id = _word(subject.usual), subject.context.repo_id
    pulled = _word(subject.context.oci) if subject.context.oci else Safe(f"hf.co/{repo_id}:{quant}")
    return {"repo_id": Safe(repo_id), "quant": quant, "oci": pulled, "url": Safe(f"{HUB}/{repo_id}")}


def _word(value: str) -> Safe:
    """One word of a shell, on one line and without a backtick."""
    return Safe(shlex.quote(clean(value).replace("`", "")))
