"""The model card: README.md of what is published, from the manifest alone.

`card.md.jinja` is the layout and `snippets/` shows how to run the files; the other modules supply the content.
The template escapes every value that is not a `SafeMarkdown`.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Final

from quantyard.card import check as card_check
from quantyard.card import hub_results as card_results
from quantyard.card.app_files import card_app_texts, ollama_name
from quantyard.card.blocks import card_fence_after, render_card_block
from quantyard.card.escaping import (
    SafeMarkdown,
    clean_card_text,
    escape_card_html,
    escape_markdown,
    markdown_code,
    markdown_code_block,
    markdown_link,
)
from quantyard.card.lists import card_lists
from quantyard.card.metadata import card_metadata
from quantyard.card.subject import CardContext, CardSubject
from quantyard.card.tables import card_tables, card_task_tables
from quantyard.errors import UnknownQuant
from quantyard.formats.purpose import Pooling, Purpose
from quantyard.hub.files import HUB_URL, Closed
from quantyard.quants.catalog import find_quant
from quantyard.store.manifest import MODEL_YAML, MODELFILE, Manifest

if TYPE_CHECKING:
    from jinja2 import Environment

__all__ = ["CardContext", "card_app_files", "card_differences", "card_eval_results", "render_card"]

_HERE: Final = Path(__file__).parent
_PATH: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")
# Alternative texts of the plots. To add a plot: add a row.
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

    subject = CardSubject(manifest, context)
    body = _card_environment().get_template("card.md.jinja").render(_card_template_values(subject))
    metadata = card_metadata(subject).to_yaml(line_break=chr(10))
    return str(ModelCard(f"---\n{metadata}\n---\n\n{_tidy_card_body(body)}\n"))


def card_eval_results(manifest: Manifest, context: CardContext) -> dict[str, str]:
    """{".eval_results/<task>-<quant>.yaml": text} for the Hub's leaderboards; empty if no task uses a Hub data set.

    Raises:
        BadRequest: as `render_card`.
    """
    return card_results.card_eval_yaml(CardSubject(manifest, context))


def card_app_files(manifest: Manifest, context: CardContext) -> dict[str, str]:
    """{"Modelfile": text, "model.yaml": text} for Ollama and LM Studio; without what they cannot run.

    Raises:
        BadRequest: as `render_card`.
    """
    return card_app_texts(CardSubject(manifest, context))


def card_differences(card: str, manifest: Manifest, context: CardContext) -> list[str]:
    """The differences of a card from the manifest, such as "files table, Q4_K_M, PPL: 99.1 on the card, 32.4 in the
    manifest"; empty for a card as it was rendered. Text that others added to the card is ignored.

    Raises:
        BadRequest: as `render_card`.
    """
    return card_check.compare_card(card, CardSubject(manifest, context))


@cache
def _card_environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # Jinja's own escaping covers HTML, not Markdown; `finalize` sees every value that is written.
    return Environment(
        loader=FileSystemLoader(_HERE), undefined=StrictUndefined, finalize=_finalize_card_value, trim_blocks=True,
        lstrip_blocks=True, autoescape=False,  # noqa: S701  (see above)
    )  # fmt: skip


def _tidy_card_body(body: str) -> str:
    """Collapses repeated empty lines, except in code blocks."""
    kept: list[str] = []
    fence = ""
    for line in body.strip().split("\n"):
        fence = card_fence_after(line, fence)
        if line or fence or (kept and kept[-1]):
            kept.append(line)
    return "\n".join(kept)


def _finalize_card_value(value: object) -> str:
    return value if isinstance(value, SafeMarkdown) else escape_markdown(value)


# ---- what the template is given ----------------------------------------------------------------------


def _card_template_values(subject: CardSubject) -> dict[str, Any]:
    blocks = {block.name: render_card_block(block) for block in (*card_tables(subject), *card_lists(subject))}
    source, licence, use = subject.manifest.source, subject.context.licence, subject.manifest.use
    address, licence_text = SafeMarkdown(subject.source_url), subject.context.licence_text
    return {
        "blocks": blocks, "title": escape_markdown(subject.title), "baseline": _card_baseline(subject),
        "source": markdown_link(markdown_code(source.repo_id), address) if source.repo_id
        else markdown_code(subject.title),
        "source_file": markdown_code(source.gguf_file) if source.gguf_file else None,
        "memory": _card_memory_kind(subject), "prompt": markdown_code_block(use.prompt) if use and use.prompt else None,
        "n_missed": sum(result.outcome != "passed" for result in subject.limits),
        "tasks": _card_task_sections(subject, blocks), "plots": list(_card_plots(subject.context.plots)),
        "licence": markdown_code(licence.id), "licence_by_user": licence.stated_by == "user",
        "licence_link": _card_licence_link(source.card.license_link), "source_card": bool(subject.hub_source),
        "notices": [escape_markdown(notice, 2000) for notice in licence.notices],
        "licence_text": markdown_code_block(licence_text) if licence_text.strip() else None,
        "run": _card_snippet_values(subject) if subject.taken else None,
    }  # fmt: skip


def _card_baseline(subject: CardSubject) -> SafeMarkdown | None:
    return markdown_code(subject.baseline.file.label) if subject.baseline else None


def _card_licence_link(url: str) -> SafeMarkdown | None:
    """A link to the licence's text, if it has an address."""
    found = markdown_link(SafeMarkdown("its text"), url.strip())
    return found if found != "its text" else None


@dataclass(frozen=True)
class _Task:
    """The tasks of one file."""

    label: SafeMarkdown
    table: SafeMarkdown


def _card_task_sections(subject: CardSubject, blocks: dict[str, SafeMarkdown]) -> list[_Task]:
    labels = {table.name: label for table, label in zip(card_task_tables(subject), subject.measured, strict=True)} \
        if subject.headlines else {}  # fmt: skip
    return [_Task(escape_card_html(label), blocks[name]) for name, label in labels.items()]


@dataclass(frozen=True)
class _Picture:
    """One plot for both themes."""

    light: SafeMarkdown
    dark: SafeMarkdown
    words: SafeMarkdown


def _card_plots(paths: Iterable[str]) -> Iterator[_Picture]:
    """The plots in the order of `_PLOTS`; PNG if present, because not every viewer shows an SVG of a repo."""
    safe = [path for path in paths if _PATH.fullmatch(path) and ".." not in path]
    for name, words in _PLOTS.items():
        for ending in (".png", ".svg"):
            by_theme = {theme: _card_plot_path(safe, f"{name}-{theme}{ending}") for theme in ("light", "dark")}
            light, dark = by_theme["light"], by_theme["dark"]
            if light:
                yield _Picture(SafeMarkdown(light), SafeMarkdown(dark or light), SafeMarkdown(words))
                break


def _card_plot_path(paths: Iterable[str], name: str) -> str | None:
    return next((path for path in paths if PurePosixPath(path).name == name), None)


def _card_memory_kind(subject: CardSubject) -> str:
    """What the memory of the table of files is: "context" for that at whole contexts, "peak" for the measured peak."""
    timed = any(m.speed for m in subject.measured.values())
    return "context" if timed and subject.contexts else "peak" if timed else ""


def _card_snippet_values(subject: CardSubject) -> dict[str, SafeMarkdown | bool]:
    """The values of the snippets. They stand in code blocks, so shell words are quoted and nothing is escaped."""
    label, repo_id, context = subject.taken, subject.context.repo_id, subject.context
    names = [file.path for file in subject.quants[label].files]
    purpose, pooling = subject.purpose
    by_name = bool(repo_id) and not context.branch  # only files can be had from another branch
    tag = label if _is_card_hub_tag(label) else names[0]
    apps = {entry.path for entry in subject.manifest.app_files}
    model = f"{repo_id}:{_card_shell_word(label)}" if by_name else _card_shell_word(names[0])
    return {
        "repo_id": SafeMarkdown(repo_id), "hub": SafeMarkdown(repo_id if by_name else ""),
        "quant": _card_shell_word(label), "file": _card_shell_word(names[0]), "parts": len(names) > 1,
        "url": SafeMarkdown(f"{HUB_URL}/{repo_id}"),
        "files": _card_download_arguments(names),
        "branch": _card_shell_word(context.branch) if context.branch else SafeMarkdown(""),
        "model": SafeMarkdown(f"-{'hf' if by_name else 'm'} {model}"),
        "oci": _card_shell_word(_card_oci_name(context.oci, label)) if context.oci else SafeMarkdown(""),
        "tagged": SafeMarkdown(f"hf.co/{repo_id}:{_card_shell_word(tag)}" if by_name else ""),
        "closed": SafeMarkdown(context.closed), "token": _card_token_line(repo_id, context.closed),
        "known": _is_card_hub_tag(label), "chat": subject.has_chat_template,
        "encoder_decoder": subject.is_encoder_decoder,
        "ollama": SafeMarkdown(ollama_name(subject) if MODELFILE in apps else ""), "model_yaml": MODEL_YAML in apps,
        "purpose": SafeMarkdown(purpose), "flags": SafeMarkdown(_FLAGS[purpose](pooling)),
    }  # fmt: skip


def _is_card_hub_tag(label: str) -> bool:
    """Whether the Hub finds a file by this name of a type; one of a recipe is named by the whole file."""
    try:
        return find_quant(label).name == label
    except UnknownQuant:
        return False


def _card_oci_name(oci: str, label: str) -> str:
    """What was pushed: each quant has its name as tag, unless one was given. There is no `latest`."""
    return oci if ":" in oci.rpartition("/")[2] else f"{oci}:{label}"


def _card_download_arguments(names: list[str]) -> SafeMarkdown:
    """The arguments of `hf download` for exactly these files."""
    if len(names) == 1:
        return _card_shell_word(names[0])
    stem, _, of = names[0].rpartition("-00001-of-")
    files = f"--include {_card_shell_word(f'{stem}-*-of-{of}')}" if of else " ".join(map(_card_shell_word, names))
    return SafeMarkdown(files)


def _card_token_line(repo_id: str, closed: Closed) -> SafeMarkdown:
    """The first line of each snippet that reads the repo; "" if everybody may."""
    why = {"private": "may read this private repo", "gated": f"has accepted the terms at {HUB_URL}/{repo_id}"}
    return SafeMarkdown(f"export HF_TOKEN=hf_xxx  # of an account that {why[closed]}" if closed and repo_id else "")


# What llama-server is told, by what a model is for.
_FLAGS: Final[dict[Purpose, Callable[[Pooling], str]]] = {
    "generate": lambda _: "", "embed": lambda pooling: f" --embeddings --pooling {pooling}",
    "rerank": lambda _: " --reranking",
}  # fmt: skip


def _card_shell_word(value: str) -> SafeMarkdown:
    """One shell word, on one line and without a backtick."""
    return SafeMarkdown(shlex.quote(clean_card_text(value).replace("`", "")))
