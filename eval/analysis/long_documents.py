"""Long documents that are made of the documents and conversations of other domains, always in the same order.

A document that a person wrote as one is rare at this length, and a single one gives no interval: what another document
would have given is unknown. One made of several texts has no references from its end to its beginning; the rest that a
long context changes (positions, attention over many tokens) it has. Each domain is spread evenly over the document, so
that positions far into it are not those of another kind of text.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from eval.analysis.domain_chats import labelled_chat
from eval.analysis.domain_texts import (
    DomainDocument,
    DomainText,
    bad_domain,
    domain_folder,
    read_domain,
    read_domain_texts,
)
from quantyard.protocol.evaluation import DomainSettings

_BETWEEN: Final = "\n\n* * *\n\n"


def read_domains_with_long_documents(suite_dir: Path, settings: DomainSettings) -> list[DomainText]:
    """The domains that the settings name, each document with its text.

    Raises:
        StageFailure: `bad-domain` (2), as `read_domain_texts`; or a long document is of a domain that is not there.
    """
    folder = domain_folder(suite_dir, settings)

    def other(name: str) -> DomainText:
        if not (path := folder / f"{name}.jsonl").is_file():
            raise bad_domain(f"A long document is made of the domain {name!r}, which {folder.name} does not have.")
        return read_domain(path)

    return [_with_texts(text, other) for text in read_domain_texts(suite_dir, settings)]


def _with_texts(text: DomainText, other: Callable[[str], DomainText]) -> DomainText:
    documents = (
        replace(one, text=interleaved_text([other(name) for name in one.interleaved])) if one.interleaved else one
        for one in text.documents
    )
    return replace(text, documents=tuple(documents))


def interleaved_text(domains: list[DomainText]) -> str:
    """The documents of several domains one after the other, each domain's in its own order and evenly spread;
    conversations as labelled text.
    """
    places = [
        ((at + 0.5) / len(domain.documents), number, document)
        for number, domain in enumerate(domains) for at, document in enumerate(domain.documents)
    ]  # fmt: skip
    return _BETWEEN.join(_plain_text(document) for *_, document in sorted(places, key=lambda place: place[:2]))


def _plain_text(document: DomainDocument) -> str:
    return (labelled_chat(document).text if document.messages else document.text).strip()
