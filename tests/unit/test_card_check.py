"""Every number on the card is the manifest's: a wrong one is found wherever it is, and what a user adds is theirs."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest

from quantyard.card.blocks import card_blocks, card_table_cells
from quantyard.card.render import card_differences, render_card
from quantyard.store.manifest import Manifest
from tests.cards import CONTEXT, standard, whole
from tests.evaluations import LARGE
from tests.manifests import NAME, manifest_of

OTHER = [("BF16", 16.0, 0.0), ("Q8_0", 8.6, 0.002), ("Q4_K_M", 6.0, 0.05)]  # other numbers under the same names


@pytest.fixture(scope="module")
def manifest() -> Manifest:
    return whole()


@pytest.fixture(scope="module")
def card(manifest: Manifest) -> str:
    return render_card(manifest, CONTEXT)


@pytest.mark.parametrize("release", [manifest_of(), manifest_of(LARGE, n_tasks=12), standard()],
                         ids=["usual", "large", "benchmarks"])  # fmt: skip
def test_a_card_as_it_was_rendered_has_no_difference(release: Manifest) -> None:
    assert card_differences(render_card(release, CONTEXT), release, CONTEXT) == []


def test_what_a_user_adds_is_no_difference(card: str, manifest: Manifest) -> None:
    heading = "## Get it and run it"
    added = card.replace(heading, f"My own words, 12345.\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\n{heading}")
    added = added.replace("tags:\n", "tags:\n- mine\n").replace("\n| `Q8", "\n|  `Q8") + "\nThe end, 99.\n"
    assert added.count("12345") == 1 and "- mine" in added
    assert card_differences(added, manifest, CONTEXT) == []


def _wrong(found: str) -> str:
    """The same with its first digit changed."""
    return re.sub(r"\d", lambda digit: str((int(digit[0]) + 1) % 10), found, count=1)


@pytest.mark.commands
def test_a_wrong_number_in_any_cell_of_any_table_is_found(card: str, manifest: Manifest) -> None:
    planted = Counter[tuple[str, str]]()
    lines = card.split("\n")
    for name, rows in card_blocks(card):
        for row in (row for row in rows[2:] if rows[0].startswith("|")):
            for number, cell in enumerate(row.split("|")[1:-1]):
                if number and re.search(r"\d", cell):
                    parts = row.split("|")
                    parts[number + 1] = _wrong(cell)
                    at = next(i for i, line in enumerate(lines) if line.endswith(row) and _block_of(lines, i) == name)
                    head = card_table_cells(rows[0])[number]
                    (told,) = card_differences(_with_line(lines, at, "|".join(parts)), manifest, CONTEXT)
                    assert f", {head}: " in told and " on the card, " in told
                    planted[name, head] += 1
    wanted = {
        ("which", "size"), ("files", "size"), ("files", "bits per weight"), ("files", "PPL"), ("files", "ΔPPL"),
        ("files", "mean KLD"), ("files", "p99 KLD"), ("files", "same top token"), ("speed", "prompt tokens/s"),
        ("speed", "generated tokens/s"), ("speed", "peak memory"), ("verdicts", "worse"), ("contract", "passed"),
        ("contract", "answers that conform to their JSON schema"), ("limits", "limit"), ("limits", "found"),
        ("limits", "interval"), ("hashes", "bytes"), ("hashes", "SHA-256"), ("tasks-2-Q4_K_M", "questions"),
        ("tasks-2-Q4_K_M", "BF16"), ("tasks-2-Q4_K_M", "Δ (95 %)"), ("tasks-2-Q4_K_M", "verdict"),
    }  # fmt: skip
    assert wanted <= set(planted)


def _block_of(lines: list[str], at: int) -> str:
    opened = [found[1] for line in lines[:at] if (found := re.search(r"<!-- quantyard:(\S+) -->", line))]
    return opened[-1]


def _with_line(lines: list[str], at: int, line: str) -> str:
    quote = "> " if lines[at].startswith("> ") else ""
    return "\n".join([*lines[:at], quote + line, *lines[at + 1 :]])


def test_a_wrong_number_in_any_line_of_any_list_is_found(card: str, manifest: Manifest) -> None:
    lines = card.split("\n")
    planted = Counter[str]()
    for name, block in card_blocks(card):
        for line in (line for line in block if not block[0].startswith("|") and re.search(r"\d", line)):
            at = next(i for i, found in enumerate(lines) if found.rstrip() == line and _block_of(lines, i) == name)
            (told,) = card_differences(_with_line(lines, at, _wrong(line)), manifest, CONTEXT)
            assert " on the card, " in told
            planted[name] += 1
    assert set(planted) >= {"gate", "take", "settings", "measured", "not-measured", "made"}


def test_a_difference_names_table_row_column_and_both_values(card: str, manifest: Manifest) -> None:
    planted = card.replace("| 12.66 |", "| 99.1 |")
    assert card_differences(planted, manifest, CONTEXT) == [
        "files table, Q4_K_M, PPL: 99.1 on the card, 12.66 in the manifest"
    ]


@pytest.mark.parametrize(("old", "new", "told"), [
    ("  value: 49.4", "  value: 94.9", "metadata, model-index"),
    (f"base_model: lagoon/{NAME}", "base_model: other/model", f"other/model on the card, lagoon/{NAME} in"),
    ("license: apache-2.0", "license: mit", "metadata, license: mit on the card"),
    ("---\n", "", "metadata: none on the card"),
])  # fmt: skip
def test_wrong_metadata_is_found(card: str, manifest: Manifest, old: str, new: str, told: str) -> None:
    assert old in card
    assert any(told in line for line in card_differences(card.replace(old, new, 1), manifest, CONTEXT))


def test_rows_and_tables_that_are_gone_or_new_are_found(card: str, manifest: Manifest) -> None:
    row = next(line for line in card.split("\n") if line.startswith("| `Q4_K_M` | 848"))
    gone = card_differences(card.replace(row + "\n", ""), manifest, CONTEXT)
    assert gone == ["files table, Q4_K_M: not on the card"]
    new = card_differences(card.replace(row, f"{row}\n{row.replace('Q4_K_M', 'Q2_K')}"), manifest, CONTEXT)
    assert new == ["files table, Q2_K: not in the manifest"]
    hidden = card.replace("<!-- quantyard:speed -->", "```\n<!-- quantyard:speed -->")
    assert "speed table: not on the card" in card_differences(hidden, manifest, CONTEXT)


def test_a_card_of_another_manifest_or_of_none_is_told_apart(card: str, manifest: Manifest) -> None:
    assert len(card_differences(card, manifest_of(OTHER), replace(CONTEXT, quants=()))) > 10
    assert len(card_differences("# Nothing", manifest, CONTEXT)) > 10
