"""YAML that means harm: suites, tasks, budgets, recipes and model cards are read by one reader, which has limits."""

from __future__ import annotations

import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from quantyard.card.check import _metadata_on_card
from quantyard.errors import BadRequest
from quantyard.formats.strict_yaml import YamlProblem, load_strict_yaml
from quantyard.gate.budgets import load_gate_budgets
from quantyard.hub.model_card import hub_card_of_readme
from quantyard.paths import REPO_DIR
from quantyard.plan.local_tasks import are_planned_tasks_local
from quantyard.plan.suites import find_suite
from quantyard.quants.recipe_files import read_quant_recipe
from tests.hostile.sampling import sampled

SECONDS = 10.0  # for one file; reading the largest that is allowed takes a second on an idle core
LAUGHS = "a: &a [x, x]\n" + "".join(
    f"{name}: &{name} [*{before}, *{before}, *{before}, *{before}, *{before}, *{before}, *{before}, *{before}]\n"
    for before, name in zip("abcdefghijkl", "bcdefghijklm", strict=True)
)
# To add a file that is refused: a name, the text, and words of the answer.
REFUSED: dict[str, tuple[str, str]] = {
    "billion laughs": (LAUGHS, "alias"),
    "laughs in one line": ("tasks: [" + "&a x, *a, " * 5 + "y]", "alias"),
    "an alias of itself": ("tasks: &a [*a]", "alias"),
    "merged keys": ("x: &x {a: 1}\ntasks: [arc_easy]\n<<: *x", "alias"),
    "merged keys without an alias": ("tasks: [arc_easy]\n<<: {limit: 1}", "not a text"),
    "python": ("tasks: !!python/object/apply:os.system ['true']", "the tag"),
    "a function": ("tasks: !function os.system", "the tag"),
    "a set": ("tasks: !!set {a, b}", "the tag"),
    "binary": ("tasks: !!binary aGVsbG8=", "the tag"),
    "a date by its tag": ("tasks: !!timestamp 2001-01-01", "the tag"),
    "a tag of one's own": ("%TAG ! tag:x,2000:\n---\ntasks: !foo bar", "the tag"),
    "a key twice": ("tasks: [arc_easy]\ntasks: [hellaswag]", "is repeated"),
    "a key that is a number": ("tasks: [arc_easy]\n1: 2", "not a text"),
    "a key that is a list": ("? [a]\n: b", "not a text"),
    "nested lists": ("tasks: " + "[" * 30_000, "nested deeper"),
    "nested mappings": ("tasks: " + "{a: " * 15_000, "nested deeper"),
    "nested blocks": ("\n".join(" " * n + "a:" for n in range(300)), "nested deeper"),
    "nested dashes": ("- " * 30_000, "nested deeper"),
    "many values": ("tasks: [" + "1," * 31_000 + "]", "more than 20,000 values"),
    "many keys": ("{" + ",".join(f"a{n:x}" for n in range(10_100)) + "}", "more than 20,000 values"),
    "too large": ("# " + "x" * 70_000, "larger than 64 KiB"),
    "not a number": ("seed: .nan", "not a finite number"),
    "infinity": ("seed: -.inf", "not a finite number"),
    "infinity by its exponent": ("seed: 1.0e+999", "not a finite number"),
    "a long integer": ("seed: " + "9" * 5000, "too many digits"),
    "a long hexadecimal": ("seed: 0x" + "f" * 17, "too many digits"),
    "two documents": ("tasks: [a]\n---\ntasks: [b]", "document"),
    "control characters": ("tasks: [\x1b[31m]", "special characters"),
    "no UTF-8": ("tasks: [\udcff\udcfe]", ""),
    "a tab": ("tasks:\n\t- a", "line 2"),
}


def _read_suite(path: Path) -> object:
    return find_suite(str(path))


def _read_tasks(path: Path) -> object:
    return are_planned_tasks_local(path.parent, ["mine"])


READERS: dict[str, Callable[[Path], object]] = {
    "suite": _read_suite, "tasks": _read_tasks, "budgets": load_gate_budgets, "recipe": read_quant_recipe,
}  # fmt: skip
CASES = [(reader, case) for case in REFUSED for reader in READERS]
ALLOWED = {("tasks", "a function"), ("tasks", "too large")}  # lm-eval's tag; and tasks may be larger


@pytest.mark.parametrize(("reader", "case"), sampled([case for case in CASES if case not in ALLOWED], 45))
def test_a_file_that_means_harm_is_refused_with_its_place(tmp_path: Path, reader: str, case: str) -> None:
    text, words = REFUSED[case]
    path = tmp_path / "mine.yaml"
    path.write_bytes(text.encode(errors="surrogateescape"))
    started = time.monotonic()
    with pytest.raises(BadRequest) as caught:
        READERS[reader](path)
    assert time.monotonic() - started < SECONDS
    message = caught.value.message
    assert caught.value.code == 2 and "mine.yaml" in message and words in message, message
    assert len(message) < 500 and message.isprintable()


def test_a_repeated_key_is_refused_with_file_line_and_key_in_every_kind_of_yaml(tmp_path: Path) -> None:
    """Suites, tasks, budgets and recipes; presets are TOML, whose reader refuses it too."""
    path = tmp_path / "mine.yaml"
    path.write_text("# a comment\nname: one\nother: [1, 2]\nname: two\n")
    for kind, read in READERS.items():
        with pytest.raises(BadRequest) as caught:
            read(path)
        assert "mine.yaml" in caught.value.message, kind
        assert "line 4: the key 'name' is repeated" in caught.value.message, kind
    (tmp_path / "models.toml").write_text("a = 1\na = 2\n")
    with pytest.raises(ValueError, match="line 2"):
        tomllib.loads((tmp_path / "models.toml").read_text())


@pytest.mark.parametrize("case", REFUSED)
def test_a_model_card_that_means_harm_says_nothing_and_stops_nothing(case: str) -> None:
    text = f"---\nlicense: mit\n{REFUSED[case][0]}\n---\n# Model\n".encode(errors="replace").decode()
    started = time.monotonic()
    licence, _ = hub_card_of_readme(text)
    assert licence in (None, "mit")
    _metadata_on_card(text)
    assert time.monotonic() - started < SECONDS


@pytest.mark.parametrize("text", ["---\n" + "\n" * 400_000, "-" * 400_000, "\n---" * 100_000, "---\n" + "-x\n" * 9000])
def test_finding_the_front_matter_takes_no_time(text: str) -> None:
    started = time.monotonic()
    hub_card_of_readme(text)
    _metadata_on_card(text)
    assert time.monotonic() - started < SECONDS


def test_dates_and_times_of_day_stay_texts() -> None:
    found = load_strict_yaml(
        "{a: 2001-01-01, b: 2001-02-30, c: 1:30, d: 190:20:30.15, e: 2001-12-14t21:59:43.10-05:00}"
    )
    assert found == {
        "a": "2001-01-01", "b": "2001-02-30", "c": "1:30", "d": "190:20:30.15", "e": "2001-12-14t21:59:43.10-05:00",
    }  # fmt: skip


def test_plain_values_are_read_as_yaml_has_them() -> None:
    text = "{a: 1, b: -2.5, c: true, d: no, e: ~, f: '1', g: [], h: 1_000, i: 0x10, j: .5, k: text, l: }"
    assert load_strict_yaml(text) == {
        "a": 1, "b": -2.5, "c": True, "d": False, "e": None, "f": "1", "g": [], "h": 1000, "i": 16, "j": 0.5,
        "k": "text", "l": None,
    }  # fmt: skip


def test_the_largest_file_that_is_allowed_takes_little_memory() -> None:
    """In a process of its own, where 300 MB are all there is."""
    code = (
        "import resource; from quantyard.formats.strict_yaml import load_strict_yaml\n"
        "resource.setrlimit(resource.RLIMIT_DATA, (300 << 20,) * 2)\n"
        "assert len(load_strict_yaml('[' + '1, ' * 19000 + ']')) == 19000"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=REPO_DIR, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr


# ---- tasks of a suite -------------------------------------------------------------------------------------------


def _folder(tmp_path: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


DOUBLING = {f"i{n}.yaml": f"include: [i{n + 1}.yaml, i{n + 1}.yaml]\nx{n}: 1" for n in range(40)} | {"i40.yaml": "y: 1"}
GROUPS = {
    f"g{n}.yaml": f"group: g{n}\ntask: [g{n + 1}, g{n + 1}, g{n + 1}, g{n + 1}, g{n + 1}, g{n + 1}]" for n in range(15)
}
CHAIN = {f"g{n}.yaml": f"group: g{n}\ntask: [g{n + 1}]" for n in range(900)}
# To add a folder of tasks that is refused: its files and words of the answer.
FOLDERS: list[tuple[dict[str, str], str]] = [
    ({"mine.yaml": "include: mine.yaml"}, "includes itself"),
    ({"mine.yaml": "include: b.yaml", "b.yaml": "include: mine.yaml"}, "includes itself"),
    (DOUBLING, "more than 50 files"),
    ({"mine.yaml": "include: /etc/passwd"}, "lies outside"),
    ({"sub/mine.yaml": f"include: {30 * '../'}etc/passwd"}, "lies outside"),
    ({"mine.yaml": "include: 'a\\0b'"}, "includes"),
    ({"mine.yaml": 'include: "a\\0b"'}, "not there"),
    ({"mine.yaml": "include: [[b.yaml]]"}, "not a file name"),
    ({"mine.yaml": "include: 2001-01-01"}, "not there"),
    (GROUPS, "more than 20,000 tasks"),
    (CHAIN, "nested deeper"),
]


@pytest.mark.parametrize(("files", "words"), FOLDERS)
def test_tasks_that_include_or_hold_each_other_without_end_are_refused(
    tmp_path: Path, files: dict[str, str], words: str
) -> None:
    folder = _folder(tmp_path / "tasks", files)
    started = time.monotonic()
    with pytest.raises(BadRequest) as caught:
        are_planned_tasks_local(folder, ["g0", "mine"])
    assert words in caught.value.message and time.monotonic() - started < SECONDS


# To add a text that is no YAML, or odd YAML: write it.
ODD = ("\0", "\ufeff\ufeff", "%", "%YAML 9.9\n---\na", "!", "&", "*", "|", ">", "@", "`", "? ", ": ", "- -", "'")


@pytest.mark.parametrize("text", ODD)
def test_what_is_no_yaml_raises_nothing_else(text: str) -> None:
    with suppress(YamlProblem):
        load_strict_yaml(text)
