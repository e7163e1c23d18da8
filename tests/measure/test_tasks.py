"""Tasks: what a name stands for, files beside the YAML, examples and seeds, and what is refused.

The data sets of lm-eval's own tasks are not here, so the tests build local tasks, and hold the index of the others
against lm-eval's.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

from eval.tasks import offline
from quantyard.paths import REPO_DIR
from quantyard.plan import local_tasks
from quantyard.plan.suites import BUILTIN, find_suite
from quantyard.protocol.base import ExitCode
from quantyard.protocol.evaluation import TaskEntry
from quantyard.protocol.runner import StageFailure

SMOKE = REPO_DIR / "eval" / "suites" / "smoke"
EXAMPLE = REPO_DIR / "docs" / "examples" / "own-questions" / "tasks"
MINE = """\
task: mine
dataset_path: json
dataset_kwargs: {data_files: {test: mine.jsonl, train: mine.jsonl}}
training_split: train
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
"""
ROWS = [{"question": f"Number {i}?", "choices": ["yes", "no"], "answer": i % 2} for i in range(9)]
ROW_OF_5 = '{"question": "?", "choices": ["a", "b"], "answer": 5}'


@pytest.fixture(autouse=True)
def _offline(tmp_path_factory: pytest.TempPathFactory) -> None:
    offline.take_datasets_offline(None, tmp_path_factory.mktemp("scratch"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One local task of nine questions."""
    write(tmp_path, "mine.yaml", MINE)
    write(tmp_path, "mine.jsonl", "\n".join(map(json.dumps, ROWS)))
    return tmp_path


def write(folder: Path, name: str, text: str) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(text)


def load(folder: Path | None, *names: str | TaskEntry, **options: Any) -> tuple[Any, ...]:
    from eval.tasks.load import load_tasks

    entries = [TaskEntry(task=name) if isinstance(name, str) else name for name in names]
    return load_tasks(entries, folder, **options)


def refused(folder: Path | None, *names: str) -> str:
    with pytest.raises(StageFailure) as caught:
        load(folder, *names)
    assert caught.value.exit_code == ExitCode.BAD_REQUEST
    return f"{caught.value.error.message} {caught.value.error.hint}"


# ---- Ours --------------------------------------------------------------------------------------------------------


def test_the_smoke_suite_is_built_from_its_folder_alone() -> None:
    leaves = load(SMOKE, *find_suite("smoke").suite.tasks, "smoke_prose")
    assert [(leaf.name, leaf.output_type, leaf.version, len(leaf.task.eval_docs)) for leaf in leaves] == [
        ("smoke_questions", "multiple_choice", "1", 160),
        ("smoke_generation", "generate_until", "1", 32),
        ("smoke_prose", "loglikelihood_rolling", "1", 16),
    ]


def test_the_smoke_questions_are_asked_as_continuations() -> None:
    (leaf,) = load(SMOKE, "smoke_questions")
    first = leaf.task.eval_docs[0]
    assert leaf.task.doc_to_text(first) == f"Question: {first['question']}\nAnswer:"
    assert leaf.task.doc_to_choice(first)[leaf.task.doc_to_target(first)] == "1945"


def test_the_smoke_generation_counts_the_first_word_and_nothing_else() -> None:
    (leaf,) = load(SMOKE, "smoke_generation")
    (ensemble,) = leaf.task._filters
    regex = ensemble.filters[0]()
    said = [[" Paris, the city"], [' "Paris"'], ["\n"], ["paris"]]
    assert regex.apply(said, [{}] * 4) == [["Paris"], ["Paris"], ["[invalid]"], ["paris"]]


def test_the_worked_example_of_the_docs_can_be_asked() -> None:
    leaves = load(EXAMPLE, "shop_questions", "shop_orders")
    assert [list(leaf.task._metric_fn_list) for leaf in leaves] == [["acc", "acc_norm"], ["exact_match"]]
    assert [leaf.version for leaf in leaves] == ["", ""]
    for leaf in leaves:
        assert len({leaf.task.doc_to_text(doc) for doc in leaf.task.eval_docs}) == len(leaf.task.eval_docs)


def test_the_answers_of_the_example_are_spread_over_the_choices() -> None:
    answers = [json.loads(line)["answer"] for line in (EXAMPLE / "shop_questions.jsonl").read_text().splitlines()]
    assert max(answers.count(place) for place in set(answers)) < len(answers) * 0.6


@pytest.mark.parametrize("name", [name for name in BUILTIN if name not in ("smoke", "domains")])
def test_every_task_of_a_suite_of_ours_is_one_of_lm_evals_and_safe(name: str) -> None:
    from eval.tasks.index import task_index_for
    from eval.tasks.load import _refuse_unusable_tasks

    names = [entry.task for entry in find_suite(name).suite.tasks]
    index = task_index_for(names, None)
    assert [task for task in names if task not in index] == []
    _refuse_unusable_tasks(index, allow_unsafe_code=False)


# ---- The index ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def full() -> dict[str, Any]:
    import lm_eval.tasks
    from lm_eval.tasks._index import TaskIndex

    return TaskIndex.build([Path(lm_eval.tasks.__file__).parent])


def same(a: Any, b: Any) -> bool:
    return (a.kind, a.yaml_path, a.tags, a.cfg) == (b.kind, b.yaml_path, b.tags, b.cfg)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["TASK", "PY_TASK", "GROUP", "TAG"])
def test_the_quick_index_is_a_part_of_lm_evals(kind: str, full: dict[str, Any]) -> None:
    from eval.tasks.index import task_index_for, task_members

    of_kind = sorted(name for name, entry in full.items() if entry.kind.name == kind)
    for name in random.Random(3).sample(of_kind, min(60, len(of_kind))):
        index = task_index_for([name], None)
        assert same(index[name], full[name]), name
        assert all(same(entry, full[other]) for other, entry in index.items()), name
        missing = [
            other for entry in index.values() for other in task_members(entry) if other in full.keys() - index.keys()
        ]
        assert missing == [], name


@pytest.mark.slow
def test_several_suites_at_once_are_the_same_part(full: dict[str, Any]) -> None:
    from eval.tasks.index import task_index_for

    names = {entry.task for suite in BUILTIN[1:] for entry in find_suite(suite).suite.tasks}
    assert all(same(entry, full[name]) for name, entry in task_index_for(names, None).items())


def test_local_names_are_found_without_reading_lm_evals(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from eval.tasks import index as task_index

    monkeypatch.setattr(task_index, "_task_file_texts", lambda: pytest.fail("lm-eval's files were read"))
    assert set(task_index.task_index_for(["mine"], folder)) == {"mine"}


def test_a_local_task_wins_over_one_of_lm_evals(folder: Path) -> None:
    write(folder, "arc.yaml", MINE.replace("task: mine", "task: arc_easy"))
    (leaf,) = load(folder, "arc_easy")
    assert len(leaf.task.eval_docs) == 9


def test_tasks_are_counted_by_the_members_of_their_groups() -> None:
    from eval.tasks.load import count_tasks

    assert count_tasks([TaskEntry(task="mmlu"), TaskEntry(task="piqa")]) == 58


# ---- What a name stands for --------------------------------------------------------------------------------------


def test_groups_and_tags_become_their_tasks_with_the_line_they_came_from(folder: Path) -> None:
    for name, more in (("one", "tag: ours\n"), ("two", "tag: ours\n"), ("three", "")):
        write(folder, f"{name}.yaml", MINE.replace("task: mine", f"task: {name}") + more)
    write(folder, "g.yaml", "group: g\ntask: [three, {task: mine, num_fewshot: 2}]\n")
    leaves = load(folder, TaskEntry(task="ours", limit=4), "g")
    assert [(leaf.name, leaf.entry.task, leaf.entry.limit, leaf.num_fewshot) for leaf in leaves] == [
        ("one", "ours", 4, 0), ("two", "ours", 4, 0), ("three", "g", None, 0), ("mine", "g", None, 2),
    ]


def test_data_files_are_relative_to_the_yaml_wherever_the_process_runs(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    write(folder, "deep/er/more.yaml", MINE.replace("task: mine", "task: more").replace("mine.jsonl", "more.jsonl"))
    write(folder, "deep/er/more.jsonl", json.dumps(ROWS[0]))
    inline = {
        "task": "inline", "dataset_path": "json", "dataset_kwargs": {"data_files": {"test": "mine.jsonl"}},
        "test_split": "test", "output_type": "multiple_choice", "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}", "doc_to_target": "answer",
    }
    write(folder, "g.yaml", json.dumps({"group": "g", "task": [inline]}))
    leaves = load(folder, "mine", "more", "g")
    assert [(leaf.name, len(leaf.task.eval_docs)) for leaf in leaves] == [("mine", 9), ("more", 1), ("g::inline", 9)]


def test_a_list_of_files_and_a_folder_may_be_named_too(folder: Path) -> None:
    write(folder, "parts/test.jsonl", "\n".join(map(json.dumps, ROWS[:2])))
    many = MINE.replace("{test: mine.jsonl, train: mine.jsonl}", "{test: [mine.jsonl, parts/test.jsonl]}")
    write(folder, "many.yaml", many.replace("task: mine", "task: many").replace("training_split: train\n", ""))
    write(folder, "dir.yaml", MINE.replace("task: mine", "task: dir").replace("training_split: train\n", "").replace(
        "dataset_path: json\ndataset_kwargs: {data_files: {test: mine.jsonl, train: mine.jsonl}}", "dataset_path: parts"
    ))
    assert [len(leaf.task.eval_docs) for leaf in load(folder, "many", "dir")] == [11, 2]


def test_a_read_only_folder_will_do(folder: Path) -> None:
    for path in (folder, *folder.iterdir()):
        path.chmod(0o555 if path.is_dir() else 0o444)
    try:
        before = sorted(folder.rglob("*"))
        load(folder, "mine")
        assert sorted(folder.rglob("*")) == before
    finally:
        folder.chmod(0o755)


def test_python_beside_the_yaml_is_used(folder: Path) -> None:
    write(folder, "utils.py", "def half(docs):\n    return docs.filter(lambda doc: doc['answer'] == 0)\n")
    write(folder, "half.yaml", MINE.replace("task: mine", "task: half") + "process_docs: !function utils.half\n")
    (leaf,) = load(folder, "half")
    assert len(leaf.task.eval_docs) == 5


# ---- Examples and seeds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "asked", "used"), [(None, None, 0), (None, 3, 3), (2, None, 2), (2, 4, 4), (0, 4, 0), (2, 0, 0)]
)
def test_examples_are_as_the_suite_says_unless_the_task_forbids_them(
    folder: Path, says: int | None, asked: int | None, used: int
) -> None:
    write(folder, "mine.yaml", MINE + ("" if says is None else f"num_fewshot: {says}\n"))
    (leaf,) = load(folder, TaskEntry(task="mine", num_fewshot=asked))
    assert leaf.num_fewshot == leaf.task.config.num_fewshot == used


def test_a_question_never_comes_with_its_own_answer(folder: Path) -> None:
    alone = MINE.replace("training_split: train\n", "")
    write(folder, "mine.yaml", alone)
    with pytest.raises(StageFailure, match="asked with 2 examples, but has none apart from its questions"):
        load(folder, TaskEntry(task="mine", num_fewshot=2))
    write(folder, "mine.yaml", alone + "fewshot_split: test\n")
    (leaf,) = load(folder, TaskEntry(task="mine", num_fewshot=8))
    for doc in leaf.task.eval_docs:
        assert leaf.task.fewshot_context(doc, 8).count(doc["question"]) == 1
    with pytest.raises(StageFailure, match="asked with 9 examples, but there are only 8"):
        load(folder, TaskEntry(task="mine", num_fewshot=9))


def test_a_text_is_read_without_examples() -> None:
    (leaf,) = load(SMOKE, TaskEntry(task="smoke_prose", num_fewshot=5))
    assert leaf.num_fewshot == 0


def test_the_seed_chooses_the_examples(folder: Path) -> None:
    def context(seed: int) -> str:
        (leaf,) = load(folder, TaskEntry(task="mine", num_fewshot=4), seed=seed)
        return str(leaf.task.fewshot_context(leaf.task.eval_docs[0], 4))

    assert context(1) == context(1) and len({context(seed) for seed in range(4)}) > 1


# ---- What is refused ---------------------------------------------------------------------------------------------


def test_an_unknown_task_is_answered_with_the_nearest(folder: Path) -> None:
    said = refused(folder, "hellaswagg")
    assert "has a task 'hellaswagg'" in said and "'hellaswag'" in said
    assert "'mine'" in refused(folder, "minee")


def test_a_template_is_compiled_once_however_many_questions_it_renders(folder: Path) -> None:
    from lm_eval import utils

    (leaf,) = load(folder, "mine")
    first = utils.env.from_string(leaf.task.config.doc_to_text)
    assert [leaf.task.doc_to_text(row) for row in ROWS] == [row["question"] for row in ROWS]
    assert utils.env.from_string(leaf.task.config.doc_to_text) is first


def test_a_task_asked_for_twice_is_refused_with_both_lines(folder: Path) -> None:
    write(folder, "g.yaml", "group: g\ntask: [mine]\n")
    assert "'mine' is in the suite twice: by 'g' and by 'mine'" in refused(folder, "g", "mine")


@pytest.mark.parametrize("name", ["humaneval", "mbpp"])
def test_code_that_a_model_writes_is_run_only_on_request(name: str) -> None:
    said = refused(None, name)
    assert f"{name!r} runs code that the model writes" in said and "ALLOW_UNSAFE_CODE=1" in said
    with pytest.raises(StageFailure) as caught:
        load(None, name, allow_unsafe_code=True)
    assert caught.value.error.kind in ("data-set-not-fetched", "remote-code")


def test_a_task_with_pictures_is_refused() -> None:
    assert "takes images or audio" in refused(None, "mmmu_val")


def test_a_data_set_that_was_not_fetched_is_named() -> None:
    assert "The data set allenai/openbookqa (main) was not fetched" in refused(None, "openbookqa")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (("doc_to_text", "doc_to_txt"), "'mine' (mine.yaml) has the key 'doc_to_txt', which lm-eval does not know."),
        (("mine.jsonl", "other.jsonl"), "other.jsonl"),
        (("test_split: test", "test_split: tset"), "its data has no 'tset'"),
        (("multiple_choice", "multiple_choices"), "multiple_choices"),
        (("{{question}}", "{{question"), "cannot be used"),
        (("answer\n", "answre\n"), "doc_to_target is 'answre', which is not a field of its questions. Did you"),
        (('"{{question}}"', "text"), "doc_to_text is 'text', which is not a field of its questions. Its fields are"),
        (("task: mine", "task: [mine"), "mine.yaml is not a task of lm-eval"),
        (("task: mine", "- task"), "mine.yaml is not a task of lm-eval"),
    ],
)
def test_a_slip_in_the_yaml_is_said_with_its_place(folder: Path, change: tuple[str, str], said: str) -> None:
    write(folder, "mine.yaml", MINE.replace(*change))
    assert said in refused(folder, "mine")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "mine.yaml"),
        ("not json", "mine.yaml"),
        ('{"question": "?", "choices": ["a", "b"], "answer": 5}', "an answer is not one of the choices"),
        (f"{json.dumps(ROWS[0])}\n{ROW_OF_5}", "the answer of question 2 is 5, which is not one of its 2 choices"),
        ('{"question": "?", "choices": ["a", "b"], "answer": "1"}', "the answer of question 1 is '1'"),
        ('{"question": "?", "choices": ["a", "b"], "answer": -1}', "the answer of question 1 is -1"),
        ('{"question": "?", "choices": ["a", "b"], "answer": null}', "the answer of question 1 is None"),
        ('{"question": "?", "choices": ["a", "b"], "answer": [0, 2]}', "the answer of question 1 is [0, 2]"),
    ],
)
def test_bad_questions_are_refused_as_the_tasks_fault(folder: Path, content: str, said: str) -> None:
    write(folder, "mine.jsonl", content)
    assert said in refused(folder, "mine")


@pytest.mark.parametrize("answer", [1, "b", [0, 1]])
def test_an_answer_may_be_a_place_a_choice_or_several(folder: Path, answer: object) -> None:
    write(folder, "mine.jsonl", json.dumps({"question": "?", "choices": ["a", "b"], "answer": answer}))
    assert load(folder, "mine")


def test_a_task_that_needs_a_missing_package_says_which(folder: Path) -> None:
    write(folder, "utils.py", "import no_such_package\n")
    write(folder, "mine.yaml", MINE + "process_docs: !function utils.f\n")
    assert "no_such_package" in refused(folder, "mine")


def test_a_metric_whose_code_lies_on_the_hub_is_never_loaded(folder: Path) -> None:
    write(folder, "utils.py", "import evaluate\nrouge = evaluate.load('rouge')\ndef f(docs):\n    return docs\n")
    write(folder, "mine.yaml", MINE + "process_docs: !function utils.f\n")
    assert "The metric 'rouge' is code from the Hub" in refused(folder, "mine")


def test_both_sides_agree_on_what_reads_files() -> None:
    assert local_tasks.FILE_READERS == offline.FILE_READERS


# ---- The sample of a limit ---------------------------------------------------------------------------------------


def _asked(folder: Path, limit: int | None, shots: int = 0) -> tuple[list[int], dict[int, tuple[str, ...]]]:
    """The questions whose answers lm-eval would count; number of each question that is computed → its requests."""
    from eval.tasks.drawn_questions import ask_drawn_questions

    (leaf,) = load(folder, TaskEntry(task="mine", num_fewshot=shots, limit=limit))
    ask_drawn_questions(leaf.task, limit, 1234)
    leaf.task.build_all_requests()
    found: dict[int, list[str]] = {}
    for instance in leaf.task.instances:
        found.setdefault(instance.doc_id, []).append("".join(instance.args))
    counted = [number for number, _ in leaf.task.doc_iterator()]
    return counted, {number: tuple(requests) for number, requests in found.items()}


@pytest.mark.parametrize("shots", [0, 3])
def test_a_question_is_asked_alike_and_with_the_same_examples_whatever_else_is_asked(folder: Path, shots: int) -> None:
    rows = [{"question": f"Number {i}?", "choices": ["yes", "no"], "answer": i % 2} for i in range(60)]
    write(folder, "mine.jsonl", "\n".join(map(json.dumps, rows)))
    (_, whole), *limited = [_asked(folder, limit, shots) for limit in (None, 30, 3)]
    assert [(len(counted), len(computed)) for counted, computed in limited] == [(30, 50), (3, 20)]
    assert set(limited[1][0]) < set(limited[0][0]) < set(whole)
    for counted, computed in limited:
        assert set(counted) <= set(computed)
        assert all(asked == whole[number] for number, asked in computed.items())
