"""What a card says of pictures and sound: the files that read them, how they were checked, or why there are none."""

from __future__ import annotations

from collections.abc import Iterator

from quantyard.card.escaping import SafeMarkdown, markdown_code
from quantyard.card.subject import CardSubject
from quantyard.formats.gguf import MEDIUM_WORDS
from quantyard.formatting.numbers import format_bytes, format_count, format_percent
from quantyard.protocol.facts import ProjectorFacts


def card_media(subject: CardSubject) -> Iterator[SafeMarkdown]:
    """The items; none for a model that reads text alone."""
    record = subject.manifest.projector
    if record is None:
        return
    media = " and ".join(MEDIUM_WORDS[medium] for medium in record.media)
    if record.left_out:
        why = "which was asked for (PARTS=text)" if record.left_out == "asked" else "which llama.cpp cannot convert"
        yield SafeMarkdown(f"The original reads {media} too. Without that part, {why}, these files read text alone.")
        return
    if not record.files:
        return
    named = ", or ".join(f"{markdown_code(file.path)} ({format_bytes(file.size_bytes)})" for file in record.files)
    yield SafeMarkdown(f"It reads {media} with {named}, which goes with each of the models.")
    first = record.files[0].path
    model = subject.quants[subject.taken].files[0].path if subject.taken else "model.gguf"
    typed = markdown_code(f"llama-server -m {model} --mmproj {first}", 400)
    yield SafeMarkdown(f"With -hf, llama.cpp finds it in the repo by itself; with files, type {typed}.")
    yield from _card_checked_media(subject, record.made_by, has_q8_0=len(record.files) > 1)


def _card_checked_media(subject: CardSubject, made_by: str, *, has_q8_0: bool) -> Iterator[SafeMarkdown]:
    stage = subject.manifest.stages.get(made_by)
    if stage is None:
        return
    facts = ProjectorFacts.read(stage.facts)
    n_tensors = facts.n_same + facts.n_moved + facts.n_computed
    moved = f", {format_count(facts.n_moved)} of them in another order" if facts.n_moved else ""
    rest = f"; {format_count(facts.n_computed)} were computed by the converter" if facts.n_computed else ""
    held = f"{format_count(facts.n_same + facts.n_moved)} of its {format_count(n_tensors)} tensors"
    yield SafeMarkdown(f"{held} hold the original's values{moved}{rest}. Its answers were not measured.")
    if has_q8_0 and facts.q8_0_error is not None:
        most = format_percent(facts.q8_0_error, 2)
        yield SafeMarkdown(f"No tensor of the Q8_0 file differs from it by more than {most} (RMS).")
