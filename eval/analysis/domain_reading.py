"""What is read of a domain: its passages for one model, within the model's trained context and the settings' budget."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from typing import Final

from eval.analysis.domain_chats import ShownChats, show_chats
from eval.analysis.domain_passages import Passage, chat_passage, document_passage
from eval.analysis.domain_texts import LONG, DomainText, domain_reading_lengths
from eval.llama.model import GgufModel
from quantyard.formatting.numbers import format_count, format_percent
from quantyard.protocol.divergence_results import DomainForm
from quantyard.protocol.evaluation import DomainSettings, last_long_position
from quantyard.sandbox.chat_template import ChatTemplate

_TEXT: Final = "text"  # the kind of a document's tokens
_LEAST_CONTEXT: Final = 64  # tokens
_LEAST_CHATS: Final = 4  # conversations that a budget is enough for


@dataclass(frozen=True)
class DomainReading:
    """The passages of a domain, the form of its conversations, and what is left out or read otherwise, and why."""

    form: DomainForm
    passages: tuple[Passage, ...]
    left_out: tuple[str, ...] = ()


def domain_reading(
    model: GgufModel, text: DomainText, settings: DomainSettings, fitting: int = sys.maxsize
) -> DomainReading:
    """The passages of a domain.

    Args:
        fitting: the positions that memory is enough for, of long documents.
    """
    trained = model.n_ctx_train
    if trained < _LEAST_CONTEXT:
        return DomainReading("text", (), (f"the model was trained for {trained} tokens, fewer than {_LEAST_CONTEXT}",))
    if text.is_chat:
        return _chat_reading(model, text, settings, min(settings.n_ctx, trained))
    if text.name == LONG:
        return _long_reading(model, text, settings, fitting)
    return _text_reading(model, text, settings, min(settings.n_ctx, trained))


def _text_reading(model: GgufModel, text: DomainText, settings: DomainSettings, longest: int) -> DomainReading:
    """Of each document as much as of the others where it is long enough."""
    documents = [model.tokenize(d.text, add_special=False, parse_special=False) for d in text.documents]
    lengths = domain_reading_lengths([len(tokens) for tokens in documents], settings.tokens, longest - 1)  # BOS
    read = [tokens[:n] for tokens, n in zip(documents, lengths, strict=True) if n > 1]
    n_all = sum(min(len(tokens), longest - 1) for tokens in documents)
    asked = format_count(settings.tokens)
    short = (f"{format_count(n_all)} of {asked} tokens: the text has no more",) if n_all < settings.tokens else ()
    return DomainReading("text", tuple(document_passage(model, tokens, _TEXT) for tokens in read), short)


def _long_reading(model: GgufModel, text: DomainText, settings: DomainSettings, fitting: int) -> DomainReading:
    """The first documents, each to the last position."""
    longest = max(_LEAST_CONTEXT, min(last_long_position(settings.positions, model.n_ctx_train), fitting))
    chosen = text.documents[: settings.long_documents]
    documents = [model.tokenize(d.text, add_special=False, parse_special=False)[: longest - 1] for d in chosen]
    reached = max(len(tokens) for tokens in documents) + 1
    left_out = []
    if reached < model.n_ctx_train:
        what = "the documents end there" if reached < longest else "the suite reads no further"
        what = f"memory is enough for {format_count(fitting)}" if longest == fitting else what
        trained = format_count(model.n_ctx_train)
        left_out.append(f"positions from {format_count(reached)} on: {what}, and the model was trained for {trained}")
    return DomainReading("text", tuple(document_passage(model, tokens, _TEXT) for tokens in documents), tuple(left_out))


def _chat_reading(model: GgufModel, text: DomainText, settings: DomainSettings, longest: int) -> DomainReading:
    """Conversations in order, until the budget is read."""
    shown, why = _shown_by_model(model, text)
    parse_special, passages, n_read, n_cut = shown.form != "labelled text", list[Passage](), 0, 0
    for chat in shown.chats:
        if n_read >= settings.tokens:
            break
        wanted = settings.tokens // _LEAST_CHATS
        passage = chat_passage(model, chat, wanted, longest, parse_special=parse_special)
        passages.append(passage)
        n_read += passage.n_read
        n_cut += not len(passage.targets)
    if n_cut:
        what = f"{n_cut} of {len(passages)} conversations"
        why.append(f"{what}: no answer begins in their first {format_count(longest)} tokens")
    return DomainReading(shown.form, tuple(passages), tuple(why))


def _shown_by_model(model: GgufModel, text: DomainText) -> tuple[ShownChats, list[str]]:
    """The conversations as the model reads them, and why not in its own template."""
    if not (source := model.chat_template):
        return show_chats(text.documents, None), ["read as labelled text: the model has no chat template"]
    template = ChatTemplate(source, model.special_text(model.bos), model.special_text(model.eos))
    try:
        shown = show_chats(text.documents, template)
    finally:
        template.close()
    why = [f"read as {shown.form}: {reason}" for reason in shown.why_not[-1:]]
    if shown.share < 1:
        share = format_percent(shown.share)
        why.append(f"{share} of what the assistant writes is scored: the template does not show the rest")
    return shown, why
