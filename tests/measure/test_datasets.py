"""The stage `datasets` as the process it is, against a small Hub, and what it leaves: used offline, read-only."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lm_eval")

import pyarrow as pa
import pyarrow.parquet as pq

from quantyard.paths import REPO_DIR
from quantyard.protocol.base import ExitCode, StageResult
from quantyard.protocol.evaluation import DatasetsRequest
from tests.hub_server import HubServer

ARC = "datasets/allenai/ai2_arc"
ROWS = {"train": 5, "validation": 3, "test": 7}
CARD = """\
---
configs:
- config_name: ARC-Easy
  data_files:
  - {split: train, path: ARC-Easy/train-*}
  - {split: validation, path: ARC-Easy/validation-*}
  - {split: test, path: ARC-Easy/test-*}
---
"""
LOCAL = """\
task: ours
dataset_path: json
dataset_kwargs: {data_files: {test: ours.jsonl}}
test_split: test
output_type: multiple_choice
doc_to_text: "{{question}}"
doc_to_choice: "{{choices}}"
doc_to_target: answer
"""
# What `evaluate` does before its first question, in a process of its own.
ASK = """\
import json, os, sys
from pathlib import Path
from eval.tasks import offline
folder, scratch, include, names = json.loads(sys.argv[1])
offline.take_datasets_offline(Path(folder) if folder else None, Path(scratch))
from eval.tasks.load import load_tasks
from quantyard.protocol.evaluation import TaskEntry
from quantyard.protocol.runner import StageFailure
try:
    leaves = load_tasks([TaskEntry(task=n, num_fewshot=2) for n in names], Path(include) if include else None)
except StageFailure as failure:
    sys.exit(failure.error.message)
docs = [(leaf, leaf.task.eval_docs) for leaf in leaves]
print(json.dumps({leaf.name: [leaf.task.fewshot_context(doc, 2) for doc in asked] for leaf, asked in docs}))
"""


@dataclass
class Run:
    """How one run of the stage ended."""

    result: StageResult
    stdout: str
    stderr: str

    @property
    def error(self) -> str:
        assert self.result.error is not None
        return f"{self.result.error.message} {self.result.error.hint}"


@dataclass
class Bench:
    """A stage directory, and the Hub it fetches from."""

    hub: HubServer
    folder: Path
    out: Path
    environment: dict[str, str] = field(default_factory=dict)

    @property
    def files(self) -> Path:
        return self.out / "files"

    def run(self, *tasks: str, token: str | None = None, **request: Any) -> Run:
        given = {"tasks": tasks, "endpoint": self.hub.endpoint} | request
        write(self.folder, "in/request.json", DatasetsRequest.model_validate(given).model_dump_json())
        self.out.mkdir(exist_ok=True)
        argv = ("-m", "eval.datasets", "--in", self.folder / "in", "--out", self.out, "--secrets-on-stdin")
        done = self.python(*argv, said=json.dumps({"HF_TOKEN": token} if token else {}) + "\n")
        result = StageResult.model_validate_json((self.out / "result.json").read_bytes())
        assert result.exit_code == done.returncode
        return Run(result, done.stdout, done.stderr)

    def ask(self, *tasks: str, include: Path | None = None, datasets: bool = True) -> subprocess.CompletedProcess[str]:
        """Build the tasks from what the stage left, which is read-only, with no Hub and another home."""
        scratch = self.folder / "elsewhere"
        scratch.mkdir(exist_ok=True)
        self.hub.requests.clear()
        arguments = json.dumps([str(self.files) if datasets else None, str(scratch), str(include or ""), tasks])
        with read_only(self.files):
            return self.python("-c", ASK, arguments)

    def python(self, *argv: object, said: str = "") -> subprocess.CompletedProcess[str]:
        environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(REPO_DIR), "HOME": str(self.folder / "home")}
        return subprocess.run(
            [sys.executable, *map(str, argv)], cwd=self.folder, env=environment | self.environment, text=True,
            input=said, capture_output=True, timeout=300,
        )


class read_only:  # noqa: N801  (used as a statement)
    """A folder as a read-only mount shows it; root may write all the same, so the content is compared too."""

    def __init__(self, folder: Path) -> None:
        self.paths = [folder, *folder.rglob("*")] if folder.exists() else []

    def __enter__(self) -> None:
        self.before = {path: path.read_bytes() for path in self.paths if path.is_file()}
        for path in self.paths:
            path.chmod(0o555 if path.is_dir() else 0o444)

    def __exit__(self, *_: object) -> None:
        for path in self.paths:
            path.chmod(0o755 if path.is_dir() else 0o644)
        now = {path for top in self.paths[:1] for path in top.rglob("*") if path.is_file()}
        assert now == self.before.keys() and all(path.read_bytes() == self.before[path] for path in now)


def write(folder: Path, name: str, text: str) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def parquet(rows: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), buffer)
    return buffer.getvalue()


def arc_rows(split: str, count: int) -> list[dict[str, Any]]:
    choices = {"text": ["red", "green", "blue"], "label": ["A", "B", "C"]}
    return [
        {"id": f"{split}{i}", "question": f"{split} {i}?", "choices": choices, "answerKey": "ABC"[i % 3]}
        for i in range(count)
    ]


def arc_files() -> Mapping[str, bytes]:
    data = {f"ARC-Easy/{split}-00000-of-00001.parquet": parquet(arc_rows(split, n)) for split, n in ROWS.items()}
    return {"README.md": CARD.encode(), **data}


@pytest.fixture(scope="module")
def server() -> Iterator[HubServer]:
    with HubServer() as running:
        yield running


@pytest.fixture
def bench(server: HubServer, tmp_path: Path) -> Bench:
    server.heal()
    server.repos.clear()
    server.add_repo(ARC, arc_files())
    return Bench(server, tmp_path, tmp_path / "out")


# ---- The way it should go ----------------------------------------------------------------------------------------


def test_a_task_of_lm_evals_is_fetched_once_and_asked_offline(bench: Bench) -> None:
    run = bench.run("arc_easy")
    assert run.result.exit_code == ExitCode.DONE, run.stderr
    counted = [json.loads(line) for line in run.stdout.splitlines()]
    assert [(line["done"], line["total"], line["unit"]) for line in counted] == [(0, 1, "checks"), (1, 1, "checks")]
    assert run.result.facts == {
        "datasets": [
            {"path": "allenai/ai2_arc", "name": "ARC-Easy", "commit": bench.hub.repos[ARC].commit, "rows": ROWS}
        ],
        "rows": sum(ROWS.values()),
    }
    asked = bench.ask("arc_easy")
    assert asked.returncode == 0, asked.stderr
    contexts = json.loads(asked.stdout)["arc_easy"]
    assert len(contexts) == ROWS["test"] and not bench.hub.requests
    assert contexts[3].endswith("Question: test 3?\nAnswer:") and contexts[3].count("Question: train") == 2


def test_nothing_but_the_sets_is_left(bench: Bench) -> None:
    run = bench.run("arc_easy")
    top = {entry.path.split("/")[0] for entry in run.result.outputs}
    assert top == {"datasets.json", "sets"}
    assert not (bench.files / ".partial").exists()


def test_the_same_data_give_the_same_bytes(bench: Bench, tmp_path: Path) -> None:
    first = bench.run("arc_easy").result.outputs
    again = Bench(bench.hub, tmp_path / "again", tmp_path / "again" / "out")
    again.folder.mkdir()
    assert again.run("arc_easy").result.outputs == first


def test_local_tasks_need_no_hub_and_leave_nothing(bench: Bench) -> None:
    write(bench.folder, "in/suite/tasks/ours.yaml", LOCAL)
    rows = [{"question": f"{i}?", "choices": ["a"], "answer": 0} for i in range(3)]
    write(bench.folder, "in/suite/tasks/ours.jsonl", "\n".join(map(json.dumps, rows)))
    run = bench.run("ours", include_path="tasks")
    assert run.result.exit_code == ExitCode.DONE, run.stderr
    assert run.result.facts == {"datasets": [], "rows": 0} and not bench.hub.requests
    folder = bench.folder / "in/suite/tasks"
    write(folder, "ours.yaml", LOCAL + "fewshot_split: test\n")
    asked = bench.ask("ours", include=folder)
    assert asked.returncode == 0, asked.stderr


def test_a_suites_own_task_may_use_a_data_set_of_the_hub(bench: Bench) -> None:
    rows = [{"question": f"{i}?", "choices": ["a", "b"], "answer": i % 2} for i in range(4)]
    bench.hub.add_repo("datasets/me/mine", {"test.jsonl": "\n".join(map(json.dumps, rows)).encode()})
    text = LOCAL.replace("json\n", "me/mine\n", 1).replace("dataset_kwargs: {data_files: {test: ours.jsonl}}\n", "")
    folder = write(bench.folder, "in/suite/tasks/ours.yaml", text + "fewshot_split: test\n").parent
    run = bench.run("ours", include_path="tasks")
    assert run.result.exit_code == ExitCode.DONE, run.stderr
    asked = bench.ask("ours", "arc_easy", include=folder)
    assert "The data set allenai/ai2_arc (ARC-Easy) was not fetched" in asked.stderr
    assert len(json.loads(bench.ask("ours", include=folder).stdout)["ours"]) == 4


def test_python_that_loads_a_data_set_itself_is_recorded_too(bench: Bench) -> None:
    files = "dataset_path: json\ndataset_kwargs: {data_files: {test: ours.jsonl}}"
    text = LOCAL.replace(files, "custom_dataset: !function u.get") + "fewshot_split: test\n"
    folder = write(bench.folder, "in/suite/tasks/ours.yaml", text).parent
    call = "load_dataset('me/mine', trust_remote_code=True)"
    write(folder, "u.py", f"from datasets import load_dataset\ndef get(**_):\n    return {call}\n")
    rows = [{"question": f"{i}?", "choices": ["a", "b"], "answer": 0} for i in range(4)]
    bench.hub.add_repo("datasets/me/mine", {"test.jsonl": "\n".join(map(json.dumps, rows)).encode()})
    run = bench.run("ours", include_path="tasks")
    assert run.result.exit_code == ExitCode.DONE, run.error
    asked = bench.ask("ours", include=folder)
    assert asked.returncode == 0, asked.stderr
    assert "was not fetched" in bench.ask("ours", include=folder, datasets=False).stderr


def test_a_private_data_set_comes_with_the_token_and_leaves_no_trace_of_it(bench: Bench) -> None:
    bench.hub.add_repo(ARC, arc_files(), private=True)
    assert bench.run("arc_easy").result.exit_code == ExitCode.NETWORK
    run = bench.run("arc_easy", token=bench.hub.token)
    assert run.result.exit_code == ExitCode.DONE, run.stderr
    token = bench.hub.token
    assert token not in run.stdout + run.stderr + run.result.model_dump_json()
    kept = [path for path in bench.out.rglob("*") if path.is_file() and token.encode() in path.read_bytes()]
    assert kept == []


def test_no_token_but_the_one_handed_over_is_used(bench: Bench) -> None:
    bench.environment = {"HF_TOKEN": bench.hub.token}
    assert bench.run("arc_easy").result.exit_code == ExitCode.DONE
    assert not any(request.authorized for request in bench.hub.requests)


# ---- What goes wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("token", [None, "hf_stranger_0123456789"], ids=["nobody", "a-stranger"])
def test_a_gated_data_set_says_so(bench: Bench, token: str | None) -> None:
    bench.hub.add_repo(ARC, arc_files(), gated=True)
    run = bench.run("arc_easy", token=token)
    assert run.result.exit_code == ExitCode.NETWORK
    assert "The data set allenai/ai2_arc is gated" in run.error
    assert f"{bench.hub.endpoint}/datasets/allenai/ai2_arc" in run.error


def _missing(bench: Bench) -> None:
    bench.hub.repos.clear()


def _wrong_token(bench: Bench) -> None:
    message = "Invalid credentials in Authorization header"
    bench.hub.fail("/api/datasets/allenai/ai2_arc", status=401, error_message=message)


def _server_error(bench: Bench) -> None:
    bench.hub.fail("/api/datasets/allenai/ai2_arc", times=None, status=503)


def _script(bench: Bench) -> None:
    bench.hub.add_repo(ARC, {"ai2_arc.py": b"print('hello')"})


def _empty(bench: Bench) -> None:
    bench.hub.add_repo(ARC, {"README.md": b"# Nothing yet\n"})


def _renamed_config(bench: Bench) -> None:
    bench.hub.add_repo(ARC, {**arc_files(), "README.md": CARD.replace("ARC-Easy\n", "Easy\n").encode()})


def _damaged(bench: Bench) -> None:
    bench.hub.add_repo(ARC, {**arc_files(), "ARC-Easy/test-00000-of-00001.parquet": b"PAR1 not really"})


@pytest.mark.parametrize(
    ("spoil", "code", "said"),
    [
        (_missing, ExitCode.NETWORK, "The Hub finds no data set allenai/ai2_arc"),
        (_wrong_token, ExitCode.NETWORK, "The Hub does not accept the token"),
        (_server_error, ExitCode.NETWORK, "answers 503 to a request for the data set allenai/ai2_arc"),
        (_script, ExitCode.BAD_REQUEST, "allenai/ai2_arc is a Python script"),
        (_empty, ExitCode.BAD_REQUEST, "allenai/ai2_arc"),
        (_renamed_config, ExitCode.BAD_REQUEST, "ARC-Easy"),
        (_damaged, ExitCode.BAD_REQUEST, "allenai/ai2_arc cannot be read"),
    ],
)
def test_what_goes_wrong_is_said_with_the_data_sets_name(
    bench: Bench, spoil: Callable[[Bench], None], code: ExitCode, said: str
) -> None:
    spoil(bench)
    run = bench.run("arc_easy")
    assert run.result.exit_code == code, run.stderr
    assert said in run.error and run.result.error is not None and run.result.error.hint


def test_a_hub_that_is_not_there_is_a_network_error(bench: Bench) -> None:
    run = bench.run("arc_easy", endpoint="http://127.0.0.1:9")
    assert run.result.exit_code == ExitCode.NETWORK, run.stderr
    assert "http://127.0.0.1:9 cannot be reached" in run.error and "HF_ENDPOINT" in run.error


def test_a_hub_that_stumbles_once_is_asked_again(bench: Bench) -> None:
    bench.hub.fail("/api/datasets/allenai/ai2_arc", times=1, status=503)
    assert bench.run("arc_easy").result.exit_code == ExitCode.DONE


def test_an_unknown_task_is_refused_before_anything_is_asked_of_the_hub(bench: Bench) -> None:
    run = bench.run("arc_easy", "arc_eazy")
    assert run.result.exit_code == ExitCode.BAD_REQUEST and "'arc_easy'" in run.error and not bench.hub.requests


def test_a_run_that_failed_goes_on_with_what_it_has(bench: Bench) -> None:
    card = CARD.replace("---\n", "", 1)
    both = "---\n" + card.replace("---\n", "") + card.replace("configs:\n", "").replace("ARC-Easy", "ARC-Challenge")
    files = dict(arc_files())
    challenge = {name.replace("Easy", "Challenge"): data for name, data in files.items() if name != "README.md"}
    bench.hub.add_repo(ARC, {**files, **challenge, "README.md": both.encode()})
    bench.hub.fail("ARC-Challenge/test-00000-of-00001.parquet", times=None, status=403)
    failed = bench.run("arc_easy", "arc_challenge")
    assert failed.result.exit_code == ExitCode.NETWORK, failed.stderr
    bench.hub.heal()
    run = bench.run("arc_easy", "arc_challenge")
    assert run.result.exit_code == ExitCode.DONE, run.stderr
    assert not [request.path for request in bench.hub.bodies(".parquet") if "ARC-Easy" in request.path]
    assert bench.ask("arc_easy", "arc_challenge").returncode == 0


def test_nltk_data_that_cannot_be_had_are_missed_at_once(bench: Bench) -> None:
    folder = write(bench.folder, "in/suite/tasks/ours.yaml", LOCAL + "process_docs: !function u.f\n").parent
    write(folder, "ours.jsonl", json.dumps({"question": "?", "choices": ["a"], "answer": 0}))
    write(folder, "u.py", "import nltk\nnltk.download('punkt_tab')\ndef f(docs):\n    return docs\n")
    bench.environment = {"https_proxy": "http://127.0.0.1:9", "no_proxy": "127.0.0.1"}
    run = bench.run("ours", include_path="tasks")
    assert run.result.exit_code == ExitCode.NETWORK, run.stderr
    assert "NLTK's data 'punkt_tab' could not be downloaded" in run.error


def test_a_full_disk_is_a_matter_of_resources(bench: Bench, tmp_path: Path) -> None:
    bench.out = tmp_path / "small"
    bench.out.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(bench.out)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip(f"a tmpfs cannot be mounted: {mounted.stderr.decode().strip()}")
    big = [row | {"question": row["question"] * 2000} for row in arc_rows("test", 200)]
    try:
        bench.hub.add_repo(ARC, {**arc_files(), "ARC-Easy/test-00000-of-00001.parquet": parquet(big)})
        run = bench.run("arc_easy")
        assert run.result.exit_code == ExitCode.RESOURCES, run.stderr
        assert "The disk is full" in run.error
    finally:
        subprocess.run(["umount", str(bench.out)], check=False)
