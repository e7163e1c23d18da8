"""The card's tables of divergence by domain."""

from __future__ import annotations

from collections.abc import Iterator

from quantyard.card.blocks import CardTable, card_table
from quantyard.card.escaping import SafeMarkdown, escape_markdown, markdown_code
from quantyard.card.subject import CardSubject
from quantyard.metrics.domain_figures import domain_cells, domain_name, domain_rows, worst_domain


def card_domain_tables(subject: CardSubject) -> Iterator[CardTable]:
    """The worst domain of each published file, and the mean KLD of every domain; nothing where none was compared."""
    measured = {label: m for label, m in subject.measured.items() if worst_domain(m.domains)}
    worst = [
        (markdown_code(label), escape_markdown(domain_name(found.domain)), *map(SafeMarkdown, domain_cells(found)))
        for label, m in measured.items() if (found := worst_domain(m.domains))
    ]  # fmt: skip
    head = ("file", "worst domain", "mean KLD (95 %)", "p99 KLD", "same top token")
    if table := card_table("worst-domains", "table of worst domains", head, worst, words=("worst domain",)):
        yield table
    rows = [
        (escape_markdown(name), *map(SafeMarkdown, cells)) for name, *cells in domain_rows([*measured.values()])[:-1]
    ]
    labels = (str(escape_markdown(label)) for label in measured)
    if table := card_table("domains", "table of domains", ("domain", "tokens", *labels), rows):
        yield table
