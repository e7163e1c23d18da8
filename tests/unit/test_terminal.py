"""What a terminal shows: nothing is cut, nothing is broken that is copied, and lists fit a screen."""

from __future__ import annotations

import io

import pytest
from rich.text import Text

from quantyard.cli.output import SafeConsole
from quantyard.cli.render import build as summary
from quantyard.cli.render.tables import FittedTable
from quantyard.cli.render.wrapping import wrapped_lines
from quantyard.quants.catalog import QUANTS
from quantyard.sources.presets import shipped_presets

_PATH = "/home/somebody/quantyard/artifacts/local/A-Model-With-A-Long-Name-Instruct/A-Model-Q4_K_M.gguf"


def _shown(text: str, width: int) -> list[str]:
    return [line.plain for line in wrapped_lines(Text(text), width)]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("short", ["short"]),
        ("", [""]),
        ("a sentence of several words that goes on", ["a sentence of several", "  words that goes on"]),
        ("Note         it begins below its text", ["Note         it begins", f"{'':13}below its", f"{'':13}text"]),
        ("Note         it begins here and goes on, told in words", None),
        ("ok  name  it goes on", ["ok  name  it goes on"]),
        ("ok  name  it begins below both", ["ok  name  it begins", f"{'':10}below both"]),
        ("    indented words stay indented", ["    indented words stay", "    indented"]),
        ("List them: make models FIND=x QUANT=y", ["List them:", "make models FIND=x QUANT=y"]),
        ("Serve:  LORA_FILE=a docker compose up", ["Serve: ", "LORA_FILE=a docker compose up"]),
        ("It begins: make it so, and go on with it", None),
        (f"file {_PATH}", ["file", _PATH]),
        ("             /a/path/of/22/letters.", ["  /a/path/of/22/letters."]),
        ("語語語語語語語語 語語語語語語語語", ["語語語語語語語語", "  語語語語語語語語"]),
    ],
)  # fmt: skip
def test_a_line_breaks_at_words_and_never_in_what_is_copied(text: str, lines: list[str] | None) -> None:
    shown = [line.rstrip() for line in _shown(text, 24)]
    if lines is not None:
        assert shown == [line.rstrip() for line in lines]
    assert " ".join(" ".join(shown).split()) == " ".join(text.split())


def test_the_style_of_a_broken_line_stays() -> None:
    first, second = wrapped_lines(Text.from_markup("[bold]one two three[/] four five six"), 15)
    assert [span.style for span in first.spans] == ["bold"] and not second.spans


def test_lines_for_a_pipe_are_not_broken() -> None:
    out = io.StringIO()
    SafeConsole(file=out, width=20).print_lines("a sentence of several words")
    terminal = io.StringIO()
    SafeConsole(file=terminal, width=20, force_terminal=True, color_system=None).print_lines(
        "a sentence of several words"
    )
    assert out.getvalue() == "a sentence of several words\n"
    assert terminal.getvalue() == "a sentence of\n  several words\n"


@pytest.mark.parametrize("width", [60, 80, 120])
@pytest.mark.parametrize("name", ["Q4_K_M", "a-recipe-whose-name-is-long-Q4_K_M", _PATH])
def test_a_table_keeps_every_cell_whole(name: str, width: int) -> None:
    table = FittedTable(("file", "size", "mean KLD", "p1 cosine", "generated", "memory", ""), words=("",))
    for n in range(6):
        cells = ("105 MB", "0.0464 (0.0446 to 0.0483)", "0.9997", "61.2 tokens/s", "312 MiB", "the choice")
        table.add_row(f"{name}-{n}", *cells)
    out = io.StringIO()
    console = SafeConsole(file=out, width=width, force_terminal=True, color_system=None)
    console.print(table)
    text = out.getvalue()
    assert "…" not in text and all(len(line) <= width for line in text.splitlines())
    joined = text.replace("\n", "")
    assert all(f"{name}-{n}" in joined for n in range(6))
    assert joined.count("0.0464 (0.0446 to 0.0483)") == 6 and joined.count("the choice") == 6


def test_lists_fit_eighty_columns() -> None:
    presets = shipped_presets()
    listed = {"quants": (summary.terminal_quants(QUANTS), len(QUANTS))}
    listed["models"] = (summary.terminal_presets(presets, searched=False, wide=False), len(presets))
    for what, (shown, n_rows) in listed.items():
        out = io.StringIO()
        SafeConsole(file=out, width=80).print(shown)
        lines = out.getvalue().splitlines()
        assert len(lines) == 1 + n_rows and max(map(len, lines)) <= 80, what


@pytest.mark.parametrize("text", ["qwen3", "qwen3-4b", "llama", "gemma", "smollm2-1.7b", "mistral", "phi"])
def test_what_was_searched_fits_a_screen(text: str) -> None:
    found = [preset for preset in shipped_presets() if text in preset.name.lower()]
    out = io.StringIO()
    shown = summary.terminal_presets(found)
    assert isinstance(shown, str)
    SafeConsole(file=out, width=80, force_terminal=True, color_system=None).print_lines(shown)
    assert found and len(out.getvalue().splitlines()) <= 22
