"""The card's answer: which file to take, what it costs, how it is used, and whether the limits are met."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Final

from quantyard.card import cells
from quantyard.card.blocks import CardTable, card_table
from quantyard.card.cells import NOTHING
from quantyard.card.escaping import SafeMarkdown, escape_markdown, markdown_code
from quantyard.card.subject import CardSubject
from quantyard.errors import UnknownQuant
from quantyard.formatting.numbers import (
    format_as_written,
    format_bits_per_weight,
    format_context,
    format_count,
    format_digits,
    format_percent,
    format_tokens_per_s,
)
from quantyard.metrics.budget_figures import limits_sentence
from quantyard.metrics.choice import file_cost_sentence, less_memory_sentence, why_file_sentence
from quantyard.metrics.pareto import pareto_entries, pareto_metric, pareto_standings
from quantyard.quants.catalog import find_quant
from quantyard.store.manifest import QuantRecord

_PATH: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_./-]*")
_LLAMA_CPP: Final = "https://github.com/ggml-org/llama.cpp/releases/tag/b"
_BUILD: Final = re.compile(r"(?:\bb|build |version: )(\d{3,6})\b")
_MUCH_MORE: Final = 1.15  # times the bits that a type usually has
# What each of llama.cpp's sampling settings is called on its command line.
_OPTIONS: Final = {
    "temp": "--temp", "top_k": "--top-k", "top_p": "--top-p", "min_p": "--min-p", "penalty_repeat": "--repeat-penalty",
}  # fmt: skip


def card_file_link(label: str, record: QuantRecord) -> SafeMarkdown:
    """The name of a file as a link to it, or to its first part, beside the card."""
    name, path = markdown_code(label), record.files[0].path
    return SafeMarkdown(f"[{name}]({path})") if _PATH.fullmatch(path) and ".." not in path else name


# ---- which file --------------------------------------------------------------------------------------


def card_take_lines(subject: CardSubject) -> Iterator[SafeMarkdown]:
    """The recommendation, why, and the next file."""
    label, choice = subject.taken, subject.choice
    if not label:
        return
    link = card_file_link(label, subject.quants[label])
    if choice is None or subject.report is None:
        yield SafeMarkdown(f"**Take {link}**: {cells.card_size(subject.quants[label].size_bytes)}. Its quality was not "
                           "measured; it is the type that most people use.")  # fmt: skip
        return
    yield SafeMarkdown(f"**Take {link}**: {file_cost_sentence(choice.best.found)}.")
    more = (why_file_sentence(choice, subject.report.baseline), less_memory_sentence(choice))
    yield from (escape_markdown(sentence, 400) for sentence in more if sentence)


def card_which_table(subject: CardSubject) -> CardTable | None:
    """Every file: link, size, memory, speed, agreement, and a note that its figures give."""
    contexts = [f"memory at {format_context(tokens)}" for tokens in subject.contexts]
    head = ("file", "size", *(contexts or ["memory, short context"]), "generated tokens/s", "same top token", "note")
    rows = [
        (card_file_link(label, record), cells.card_size(record.size_bytes), *_card_which_memory(subject, label),
         _card_which_speed(subject, label), _card_which_agreement(subject, label), _card_which_note(subject, label))
        for label, record in subject.quants.items()
    ]  # fmt: skip
    return card_table("which", "table of files to take", head, rows, words=("note",))


def _card_which_memory(subject: CardSubject, label: str) -> Iterator[SafeMarkdown]:
    """The memory at each context; the measured peak where no other context is known."""
    found, context = subject.measurement(label), subject.quants[label].context
    speed = found.speed if found else None
    if not subject.contexts:
        yield cells.card_memory(speed.peak_memory_bytes if speed else None)
    for tokens in subject.contexts:
        known = context.memory_bytes(speed.peak_memory_bytes, speed.n_ctx, tokens) if speed and context else None
        yield cells.card_memory(known)


def _card_which_speed(subject: CardSubject, label: str) -> SafeMarkdown:
    found = subject.measurement(label)
    return SafeMarkdown(format_tokens_per_s(found.speed.generated_tokens_per_s)) if found and found.speed else NOTHING


def _card_which_agreement(subject: CardSubject, label: str) -> SafeMarkdown:
    found = subject.measurement(label)
    share = found.divergence.top1_agreement if found and found.divergence else None
    return SafeMarkdown(format_percent(share.value)) if share else NOTHING


def _card_which_note(subject: CardSubject, label: str) -> SafeMarkdown:
    notes = ["**recommended**"] if label == subject.taken else []
    if subject.report and (said := pareto_standings(
            pareto_entries(subject.report), pareto_metric(subject.report)).get(label)):  # fmt: skip
        notes.append(escape_markdown(said))
    if narrow := subject.quants[label].narrow_rows:
        notes.append(escape_markdown(narrow.short, 200))
    elif (usual := _card_usual_bits(label)) and subject.quants[label].bits_per_weight > _MUCH_MORE * usual:
        bits = format_bits_per_weight(subject.quants[label].bits_per_weight)
        notes.append(f"{bits} bits per weight, where {escape_markdown(label)} usually has {format_digits(usual, 2)}")
    return SafeMarkdown("; ".join(notes)) if notes else NOTHING


def _card_usual_bits(label: str) -> float | None:
    try:
        return find_quant(label).bits_per_weight
    except UnknownQuant:
        return None


# ---- how it is used ----------------------------------------------------------------------------------


def card_settings(subject: CardSubject) -> Iterator[SafeMarkdown]:
    """Context, sampling settings and the llama.cpp that the files were made with."""
    use = subject.manifest.use
    if use and use.context_tokens:
        yield SafeMarkdown(f"Context: trained for {format_count(use.context_tokens)} tokens; set it with `--ctx-size`.")
    if use and (given := {name: value for name, value in use.sampling.items() if name in _OPTIONS}):
        told = " ".join(f"{_OPTIONS[name]} {format_as_written(value)}" for name, value in given.items())
        yield SafeMarkdown(f"Sampling, as the model's makers recommend: `{told}`. llama.cpp reads it from the file.")
    elif use:
        yield SafeMarkdown("Sampling: the model's makers recommend none; llama.cpp's defaults apply.")
    if build := llama_cpp_build(subject):
        release = f"[b{build}]({_LLAMA_CPP}{build})"
        yield SafeMarkdown(f"Made and tested with llama.cpp {release}; take this release or a later one.")


def llama_cpp_build(subject: CardSubject) -> str:
    """The number of llama.cpp's build, which names its release; "" if no stage recorded it."""
    for name in ("quantize", "verify", "convert"):
        for _, stage in subject.stages(name):
            for version in stage.tools.values():
                if found := _BUILD.search(version):
                    return str(found[1])
    return ""


# ---- limits ------------------------------------------------------------------------------------------


def card_gate_line(subject: CardSubject) -> Iterator[SafeMarkdown]:
    """One line: "1 of 10 quality limits missed, 3 undecided, 2 not measured"."""
    if subject.limits:
        is_met = all(result.outcome == "passed" for result in subject.limits)
        more = "" if is_met else ": [details below](#quality-limits)"
        yield SafeMarkdown(f"{limits_sentence(subject.limits)}{more}.")
