"""Reads a card back and lists the values on it that differ from the manifest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from difflib import SequenceMatcher
from typing import Any, Final

from quantyard.card.blocks import Block, CardTable, card_blocks, card_table_cells
from quantyard.card.escaping import clean_card_text
from quantyard.card.layout_0_1 import card_blocks_0_1
from quantyard.card.lists import card_lists
from quantyard.card.metadata import card_metadata
from quantyard.card.subject import CardSubject
from quantyard.card.tables import card_tables
from quantyard.formats.strict_yaml import YamlProblem, load_strict_yaml, yaml_front_matter

_EARLIER: Final = (card_blocks_0_1,)  # the blocks of cards that earlier versions wrote
_FRONT_MATTER_BYTES: Final = 512 * 1024  # every score of every file stands in it
_FIELDS: Final = ("base_model", "base_model_relation", "license", "license_name", "license_link", "model-index")


def compare_card(card: str, subject: CardSubject) -> list[str]:
    """One line per difference. Text around the blocks and further metadata are ignored: publishers add them. A card
    that an earlier version wrote is compared with the blocks of that version.
    """
    found = _card_block_differences(card, subject, _card_blocks_to_check(subject))
    if not found or not all(_card_block_differences(card, subject, earlier(subject)) for earlier in _EARLIER):
        return []
    return found


def _card_blocks_to_check(subject: CardSubject) -> Iterator[Block]:
    yield from (*card_tables(subject), *card_lists(subject))


def _card_block_differences(card: str, subject: CardSubject, blocks: Iterable[Block]) -> list[str]:
    wanted = {block.name: block for block in blocks}
    found = list(card_blocks(card))
    names = {name for name, _ in found}
    missing = [f"{block.title}: not on the card" for name, block in wanted.items() if name not in names]
    unknown = [f"{clean_card_text(name)}: on the card, not in the manifest" for name, _ in found if name not in wanted]
    told = [line for name, lines in found if name in wanted for line in _card_differences_of_block(lines, wanted[name])]
    return [*_card_differences_of_metadata(card, subject), *told, *missing, *unknown]


def _card_differences_of_block(lines: list[str], block: Block) -> Iterator[str]:
    return _of_table(lines, block) if isinstance(block, CardTable) else _card_differences_of_lines(lines, block)


def _of_table(lines: list[str], wanted: CardTable) -> Iterator[str]:
    rows = [card_table_cells(line) for line in lines]
    if not rows or rows[0] != list(wanted.head):
        yield f"{wanted.title}: other columns than the manifest's"
        return
    on_card = _numbered_card_rows(rows[2:])
    expected = _numbered_card_rows(wanted.rows)
    for key, row in expected.items():
        if key not in on_card:
            yield f"{wanted.title}, {_shown_card_cell(row[0])}: not on the card"
        else:
            yield from _card_differences_of_row(wanted, on_card[key], row)
    yield from (
        f"{wanted.title}, {_shown_card_cell(key[0])}: not in the manifest" for key in on_card if key not in expected
    )


def _numbered_card_rows(rows: Iterable[Sequence[str]]) -> dict[tuple[str, int], Sequence[str]]:
    """Rows by their first cell, and by a counter if several rows have the same first cell."""
    found: dict[tuple[str, int], Sequence[str]] = {}
    for row in rows:
        first = row[0] if row else ""
        found[first, sum(key[0] == first for key in found)] = row
    return found


def _card_differences_of_row(wanted: CardTable, on_card: Sequence[str], expected: Sequence[str]) -> Iterator[str]:
    if len(on_card) != len(expected):
        cells = _card_cell_difference(f"{len(on_card)} cells", str(len(expected)))
        yield f"{wanted.title}, {_shown_card_cell(expected[0])}: {cells}"
        return
    for column, here, there in zip(wanted.head, on_card, expected, strict=True):
        if here != there:
            yield f"{wanted.title}, {_shown_card_cell(expected[0])}, {column}: {_card_cell_difference(here, there)}"


def _card_differences_of_lines(lines: list[str], wanted: Block) -> Iterator[str]:
    expected = [line.rstrip() for line in wanted.lines() if line.strip()]
    for what, a, b, c, d in SequenceMatcher(None, lines, expected, autojunk=False).get_opcodes():
        if what != "equal":
            yield f"{wanted.title}: {_card_cell_difference(' '.join(lines[a:b]), ' '.join(expected[c:d]))}"


def _card_differences_of_metadata(card: str, subject: CardSubject) -> Iterator[str]:
    expected: dict[str, Any] = card_metadata(subject).to_dict()  # type: ignore[no-untyped-call]
    found = _metadata_on_card(card)
    if found is None:
        yield "metadata: none on the card that can be read"
        return
    for field in _FIELDS:
        here, there = found.get(field), expected.get(field)
        if here != there:
            yield from _card_differences_of_field(field, here, there)


def _card_differences_of_field(path: str, here: Any, there: Any) -> Iterator[str]:
    """Down to the value that differs."""
    if isinstance(here, dict) and isinstance(there, dict):
        for key in dict.fromkeys([*there, *here]):
            yield from _card_differences_of_field(f"{path}.{clean_card_text(key, 60)}", here.get(key), there.get(key))
    elif isinstance(here, list) and isinstance(there, list) and len(here) == len(there):
        for number, (one, two) in enumerate(zip(here, there, strict=True)):
            yield from _card_differences_of_field(f"{path}.{number}", one, two)
    elif here != there:
        yield f"metadata, {path}: {_card_cell_difference(str(here), str(there))}"


def _metadata_on_card(card: str) -> dict[str, Any] | None:
    """The front matter; hostile input, because it comes with the release."""
    try:
        data = load_strict_yaml(yaml_front_matter(card, 2 * _FRONT_MATTER_BYTES) or "", max_bytes=_FRONT_MATTER_BYTES)
    except YamlProblem:
        return None
    return data if isinstance(data, dict) else None


def _card_cell_difference(here: str, there: str) -> str:
    return f"{_shown_card_cell(here) or 'nothing'} on the card, {_shown_card_cell(there) or 'nothing'} in the manifest"


def _shown_card_cell(cell: str) -> str:
    return clean_card_text(cell, 160).strip("`")
