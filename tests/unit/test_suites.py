"""Suites: ours, a user's own, what is wrong with one, and what the command line changes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from quantyard.errors import BadRequest
from quantyard.paths import REPO_DIR
from quantyard.plan.suites import BUILTIN, BadSuite, LoadedSuite, adjusted_suite, find_suite
from quantyard.protocol.cache_types import CacheSettings
from quantyard.protocol.evaluation import Suite, TaskEntry

EXAMPLE = REPO_DIR / "docs" / "examples" / "own-questions"
TASK = """\
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: mine.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A suite of one task of its own, with room for more."""
    write(tmp_path, "suite.yaml", "include_path: tasks\ntasks: [mine]\n")
    write(tmp_path, "tasks/mine.yaml", TASK)
    write(tmp_path, "tasks/mine.jsonl", json.dumps({"question": "?", "choices": ["a", "b"], "answer": 0}))
    return tmp_path


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def suite_of(folder: Path, text: str) -> Suite:
    return find_suite(str(write(folder, "suite.yaml", text))).suite


def refused(folder: Path, text: str) -> str:
    with pytest.raises(BadRequest) as caught:
        suite_of(folder, text)
    return f"{caught.value.message} {caught.value.hint}"


# ---- Ours --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", BUILTIN)
def test_a_suite_of_ours_is_found_by_name_and_brings_no_files(name: str) -> None:
    loaded = find_suite(name.upper())
    assert loaded.suite.name == name and loaded.local is None
    suite = loaded.suite
    assert (suite.tasks or suite.domains or suite.cache or suite.behaviour or suite.speed) and suite.description


def test_every_suite_file_of_ours_has_a_name_and_the_other_way_round() -> None:
    assert {path.stem for path in (REPO_DIR / "eval" / "suites").glob("*.yaml")} == set(BUILTIN)


def test_smoke_and_the_suites_without_tasks_do_without_a_network() -> None:
    suites = [find_suite(name).suite for name in BUILTIN]
    assert [s.name for s in suites if not s.needs_network] == ["smoke", *(s.name for s in suites if not s.tasks)]


def test_types_of_the_kv_cache_are_measured_only_where_a_suite_names_them(tmp_path: Path) -> None:
    assert suite_of(tmp_path, "tasks: [piqa]\n").cache is None
    assert suite_of(tmp_path, "cache: true\n").cache == CacheSettings()
    assert suite_of(tmp_path, "cache: {types: [q8_0/f16]}\n").cache == CacheSettings(types=("q8_0/f16",))


def test_full_asks_everything_that_standard_asks() -> None:
    standard, full = ({entry.task for entry in find_suite(name).suite.tasks} for name in ("standard", "full"))
    assert standard < full


def test_no_suite_of_ours_asks_for_a_limit_where_it_says_every_question() -> None:
    assert not [entry.task for entry in find_suite("full").suite.tasks if entry.limit]


# ---- A user's own ------------------------------------------------------------------------------------------------


def test_the_worked_example_is_a_suite_without_a_network() -> None:
    loaded = find_suite(str(EXAMPLE / "suite.yaml"))
    assert loaded.suite.name == "own-questions" and not loaded.suite.needs_network
    assert loaded.local is not None
    files = {path.relative_to(EXAMPLE).as_posix() for path in (EXAMPLE / "tasks").iterdir()}
    assert {entry.path for entry in loaded.local.files} == files


def test_the_example_in_the_docs_is_the_example_in_the_folder() -> None:
    page = (REPO_DIR / "docs" / "how-to" / "your-own-questions.md").read_text()
    for path in (EXAMPLE / "tasks").glob("*.yaml"):
        for line in path.read_text().splitlines():
            assert line in page, f"{path.name}: {line}"


def test_only_the_files_a_suite_needs_belong_to_it(folder: Path) -> None:
    write(folder, "secret.txt", "not yours")
    write(folder, "prose.txt", "Some words.")
    write(folder, "tasks/__pycache__/x.pyc", "x")
    write(folder, "tasks/.hidden", "x")
    write(folder, "tasks/more/utils.py", "x = 1")
    loaded = find_suite(str(write(
        folder, "suite.yaml", "include_path: tasks\ntasks: [mine]\ndivergence: {text: prose.txt}\n"
    )))
    assert loaded.local is not None and not loaded.local.whole_folder
    paths = [f.path for f in loaded.local.files]
    assert paths == ["prose.txt", "tasks/mine.jsonl", "tasks/mine.yaml", "tasks/more/utils.py"]


def test_the_digest_follows_the_content_and_not_the_place(
    folder: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    def digest(of: Path) -> str:
        local = find_suite(str(of / "suite.yaml")).local
        assert local is not None
        return local.digest

    elsewhere = tmp_path_factory.mktemp("elsewhere") / "copy"
    shutil.copytree(folder, elsewhere)
    assert digest(folder) == digest(elsewhere)
    write(elsewhere, "tasks/mine.jsonl", json.dumps({"question": "!", "choices": ["a", "b"], "answer": 0}))
    assert digest(folder) != digest(elsewhere)


def test_a_suite_without_files_of_its_own_brings_none(tmp_path: Path) -> None:
    loaded = find_suite(str(write(tmp_path, "mine.yaml", "tasks: [arc_easy]\n")))
    assert loaded.local is None and loaded.suite.needs_network and loaded.suite.name == "mine"


def test_parts_can_be_left_out_or_changed(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, "tasks: [{task: piqa, limit: 3}]\ndivergence: false\nspeed: {repeats: 2}\nseed: 7\n")
    assert suite.tasks == (TaskEntry(task="piqa", limit=3),)
    assert suite.divergence is None and suite.speed is not None and suite.speed.repeats == 2 and suite.seed == 7


def test_a_suite_may_measure_divergence_and_speed_alone(tmp_path: Path) -> None:
    suite = suite_of(tmp_path, "divergence: true\n")
    assert suite.tasks == () and suite.divergence is not None and not suite.needs_network


# ---- Whether a network is needed ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("files", "tasks", "needed"),
    [
        ({}, "mine", False),
        ({}, "mine, arc_easy", True),
        ({"tasks/hub.yaml": "task: hub\ndataset_path: openai/gsm8k\n"}, "mine", False),
        ({"tasks/hub.yaml": "task: hub\ndataset_path: openai/gsm8k\n"}, "hub", True),
        ({"tasks/u.yaml": TASK.replace("task: mine", "task: u").replace("mine.jsonl", "https://x.org/a")}, "u", True),
        ({"tasks/kid.yaml": "include: mine.yaml\ntask: kid\n"}, "kid", False),
        ({"tasks/py.yaml": "task: py\nclass: !function mine.Task\n"}, "py", True),
        ({"tasks/fn.yaml": TASK.replace("mine\n", "fn\n", 1) + "process_docs: !function u.f\n"}, "fn", False),
        ({"tasks/g.yaml": "group: g\ntask: [mine, {task: mine, num_fewshot: 1}]\n"}, "g", False),
        ({"tasks/g.yaml": "group: g\ntask: [mine, arc_easy]\n"}, "g", True),
        ({"tasks/g.yaml": "group: g\ntask: [g]\n"}, "g", True),
        ({"tasks/t.yaml": TASK.replace("mine\n", "t\ntag: [ours]\n", 1)}, "ours", False),
    ],
)
def test_a_network_is_needed_unless_every_question_lies_beside_the_suite(
    folder: Path, files: dict[str, str], tasks: str, needed: bool
) -> None:
    for name, text in files.items():
        write(folder, name, text)
    assert suite_of(folder, f"include_path: tasks\ntasks: [{tasks}]\n").needs_network is needed


def test_a_suite_can_ask_for_the_network_that_its_python_needs(folder: Path) -> None:
    assert suite_of(folder, "include_path: tasks\ntasks: [mine]\nneeds_network: true\n").needs_network


# ---- What is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("Standart", "Did you mean 'standard'?"),
        ("nothing-like-it", "Built-in suites: smoke, quick, standard, full, domains, cache, speed, behaviour"),
        ("no/such.yaml", "The file no/such.yaml does not exist."),
        (str(EXAMPLE), f"Name the file in it: {EXAMPLE / 'suite.yaml'}"),
    ],
)
def test_a_suite_that_does_not_exist_is_answered_with_what_does(text: str, said: str) -> None:
    with pytest.raises(BadSuite) as caught:
        find_suite(text)
    assert said in f"{caught.value.message} {caught.value.hint}"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("tasks: [a\nb: c\n", "line 2"),
        ("\ttasks: [a]\n", "line 1"),
        ("- a\n- b\n", "is not a suite"),
        ("", "is not a suite"),
        ("task: [a]\n", "unknown key 'task'. Did you mean 'tasks'?"),
        ("tasks: [{task: a, limt: 3}]\n", "task 1: unknown key 'limt'. Did you mean 'limit'?"),
        ("tasks: [a]\nspeed: {repeat: 3}\n", "speed: unknown key 'repeat'. Did you mean 'repeats'?"),
        ("tasks: [a]\ndivergence: {nctx: 3}\n", "Did you mean 'n_ctx'?"),
        ("tasks: [{task: a, limit: many}]\n", "tasks.1.limit is 'many'"),
        ("tasks: [{task: a, limit: 0}]\n", "tasks.1.limit is 0"),
        ("tasks: [{task: a, limit: true}]\n", "tasks.1.limit is True"),
        ("tasks: [{limit: 3}]\n", "tasks.1.task"),
        ("tasks: [7]\n", "task 1 is 7"),
        ("tasks: a\n", "tasks is not a list"),
        ("tasks: [a]\nspeed: fast\n", "speed is 'fast'"),
        ("tasks: [a]\nmargin: 2\n", "margin is 2"),
        ("tasks: [a, b, a]\n", "names the task 'a' twice"),
        ("tasks: []\ndivergence: false\nspeed: false\n", "measures nothing"),
        ("tasks: [a]\ninclude_path: nowhere\n", "nowhere is not in"),
        ("tasks: [a]\ninclude_path: ../\n", "not a relative path"),
        ("tasks: [a]\ninclude_path: /etc\n", "not a relative path"),
        ("tasks: [a]\ninclude_path: tasks/mine.yaml\n", "is a file"),
        ("tasks: [a]\ninclude_path: bare\n", "does not have a task"),
        ("tasks: [a]\ninclude_path: out\n", "leads out of"),
        ("tasks: [a]\ninclude_path: broken\n", "x.yaml is not valid YAML: line 2"),
        ("tasks: [a]\ninclude_path: orphan\n", "includes base.yaml, which is not there"),
        ("tasks: [a]\ninclude_path: far\n", "includes ../ring/x.yaml, which lies outside of far"),
        ("tasks: [a]\ninclude_path: ring\n", "includes itself"),
        ("tasks: [a]\ndivergence: {text: nothing.txt}\n", "nothing.txt is not in"),
        ("tasks: [a]\ndivergence: {text: empty.txt}\n", "empty.txt is empty"),
        ("tasks: [a]\ndivergence: {text: binary.txt}\n", "binary data"),
        ("tasks: [a]\ndivergence: {text: latin.txt}\n", "not text in UTF-8"),
        ("tasks: [a]\ndivergence: {text: tasks}\n", "is not a file"),
    ],
)
def test_what_is_wrong_is_said_with_its_place(folder: Path, text: str, said: str) -> None:
    (folder / "bare").mkdir()
    (folder / "out").symlink_to("/usr")
    write(folder, "broken/x.yaml", "task: [x\ny: z\n")
    write(folder, "orphan/x.yaml", "task: x\ninclude: base.yaml\n")
    write(folder, "far/x.yaml", "task: x\ninclude: ../ring/x.yaml\n")
    write(folder, "ring/x.yaml", "task: x\ninclude: x.yaml\n")
    write(folder, "empty.txt", " \n")
    write(folder, "binary.txt", "a\0b")
    (folder / "latin.txt").write_bytes("Grüße".encode("latin-1"))
    assert said in refused(folder, text)


def test_a_file_that_is_no_text_at_all_is_refused(tmp_path: Path) -> None:
    (tmp_path / "suite.yaml").write_bytes(b"GGUF\x03\x00\xff\xfe")
    with pytest.raises(BadSuite, match="not valid YAML"):
        find_suite(str(tmp_path / "suite.yaml"))


def test_a_link_among_the_tasks_must_not_lead_out(folder: Path) -> None:
    (folder / "tasks" / "passwd.jsonl").symlink_to("/etc/passwd")
    assert "leads out of" in refused(folder, "include_path: tasks\ntasks: [mine]\n")


# ---- The command line --------------------------------------------------------------------------------------------

SUITE = Suite(name="s", tasks=(TaskEntry(task="a", limit=9, num_fewshot=2), TaskEntry(task="b")), needs_network=False)
LOADED = LoadedSuite(SUITE, None, Path("s.yaml"))


def test_nothing_given_changes_nothing() -> None:
    assert adjusted_suite(LOADED) == SUITE


def test_limit_examples_and_seed_hold_for_every_task() -> None:
    changed = adjusted_suite(LOADED, limit=5, num_fewshot=0, seed=3)
    assert [(t.limit, t.num_fewshot) for t in changed.tasks] == [(5, 0), (5, 0)] and changed.seed == 3
    assert not changed.needs_network


def test_a_changed_suite_has_a_name_of_its_own() -> None:
    assert adjusted_suite(LOADED, limit=5, seed=3).name == "s+limit-5+seed-3"
    assert adjusted_suite(LOADED, tasks=("b",), num_fewshot=0).name == "s+b+num_fewshot-0"


def test_chosen_tasks_keep_their_settings_and_foreign_ones_need_a_network() -> None:
    smoke = find_suite("smoke")
    chosen = adjusted_suite(smoke, tasks=("smoke_questions", "smoke_prose"))
    assert chosen.tasks == (smoke.suite.tasks[0], TaskEntry(task="smoke_prose")) and not chosen.needs_network
    more = adjusted_suite(LOADED, tasks=("a", "arc_easy"))
    assert more.tasks == (SUITE.tasks[0], TaskEntry(task="arc_easy")) and more.needs_network
    assert adjusted_suite(smoke, tasks=("arc_easy",)).needs_network


@pytest.mark.parametrize(
    "change", [{"tasks": ()}, {"tasks": ("a", "a")}, {"limit": 0}, {"seed": -1}, {"num_fewshot": -1}]
)
def test_what_cannot_be_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(BadSuite):
        adjusted_suite(LOADED, **change)  # type: ignore[arg-type]
