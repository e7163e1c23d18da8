"""Runs rows through build, verify, twin, eval and serve, and writes what works into results.json.

    .venv/bin/python -m tests.architectures.sweep [--missing] [--engine local] [--bpe FOLDER] [--jobs N] [NAME …]

Names: rows of rows.py, `NAME:written` for the form that transformers 5 writes; without any, every row as the Hub has it
and every `:written` of WRITTEN. A row takes a minute of one core. `make reference` then writes the docs' table.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from quantyard.paths import REPO_DIR
from tests.architectures.rows import FOLDER, ROWS, Row
from tests.architectures.tiny import Form, Kitchen, NotMade

RESULTS: Final = FOLDER / "results.json"
QUANT: Final = "Q8_0"
STAGES: Final = ("build", "verify", "twin", "eval", "serve")
# The rows that are run as transformers 5 writes their config.json too: one of each kind of field that it renames.
WRITTEN: Final = (
    "pythia", "llama-3.1", "gemma-3-1b", "qwen3-moe", "gpt2", "mistral-v0.1", "phi-4-mini", "deepseek-v2-lite",
    "gpt-oss", "falcon-40b", "t5", "olmo-2",
)  # fmt: skip
# No question can be asked of random weights (the self-check of an evaluation refuses them): what quantizing costs can.
_SUITE: Final = "name: sweep\ntasks: []\nneeds_network: false\ndivergence:\n  n_chunks: 2\nspeed: null\n"
_SERVED: Final = (
    "health", "models", "completion", "streaming", "max-tokens", "usage", "vectors", "vector-order", "ranking",
)  # fmt: skip  # of these, what the model is for decides which it is asked
_SERVE: Final = """
import json, os, sys
from pathlib import Path
from server.api_checks.table import api_checks_of
from server.api_checks.launch import Launch, ServedModel, Wire
from server.api_checks.session import ApiSession
from server.contract import run_contract_check
from quantyard.formats.gguf import read_gguf_model
from quantyard.formats.purpose import gguf_purpose
from quantyard.protocol.runner import StageFailure
model, folder, *names = sys.argv[1:]
purpose = gguf_purpose(read_gguf_model(Path(model)))
try:
    with ServedModel(Launch(Path(model), Path(folder), os.environ, threads=1, n_ctx=512, parallel=1)) as served:
        session = ApiSession(Wire(served.address, served.key), has_chat_template=False, purpose=purpose)
        done = [run_contract_check(session, check)[0] for check in api_checks_of(purpose) if check.name in names]
    wrong = [f"{record.name}: {record.finding}" for record in done if record.status == "failed"]
except StageFailure as failure:
    wrong = [failure.error.message]
print(json.dumps(wrong))
"""
_MAX_WORDS: Final = 800
# What random weights may do to an evaluation, by the words of its error.
_NO_EVALUATION: Final = {
    "self-check": "these random weights do not pass the self-check of an evaluation.",
    "too large for a measurement": "these random weights have a perplexity beyond all measure.",
}


@dataclass
class Result:
    """What works of one row: "ok", "no" or "-" (not reached, or not for this kind), and the reasons."""

    architecture: str
    repo: str
    build: str = "-"
    verify: str = "-"
    twin: str = "-"
    eval: str = "-"
    serve: str = "-"
    transformers: str = ""  # which one the converter ran with
    why: list[str] = field(default_factory=list)  # sentences, each of what is not "ok"

    def fail(self, stage: str, reason: str, mark: str = "no") -> None:
        """Note what does not work."""
        setattr(self, stage, mark)
        self.why.append(f"{stage}: {' '.join(reason.split())[:_MAX_WORDS]}")


class Sweep:
    """Runs rows with one engine; `run` may be called from several threads."""

    def __init__(self, folder: Path, engine: str, bpe: Path) -> None:
        self._folder, self._engine = folder, engine
        self._python = REPO_DIR / ".venv-local" / "bin" / "python"
        self._kitchen = Kitchen(folder / "models", self._python, bpe)
        self._suite = folder / "sweep.yaml"
        self._suite.write_text(_SUITE)

    def run(self, row: Row, form: Form = "hub") -> Result:
        """One row from its config.json to a server that answers."""
        found = Result(row.architecture, row.repo)
        try:
            model = self._kitchen.make(row, form)
        except NotMade as error:
            found.fail("build", f"not tried: {_named(str(error), self._folder)}", "-")
            return found
        store = self._folder / "artifacts" / f"{row.name}-{form}"
        self._measure(model, store, found)
        if found.build == "ok":
            self._serve(store, row.name, found)
        return found

    def _measure(self, model: Path, store: Path, found: Result) -> None:
        """`eval` builds, verifies, compares the twin and measures; without it `build` says how far it goes."""
        refused = self._command("eval", model, store, SUITE=str(self._suite))
        error = self._command("build", model, store) if refused else {}
        facts = _stage_facts(store)
        found.transformers = str(facts.get("convert", {}).get("transformers", "")).partition(":")[0]
        found.build = "ok" if "convert" in facts else "no"
        found.verify = "ok" if f"verify {QUANT}" in facts else "-"
        self._note_twin(facts, found)
        if error:
            stage = str(error.get("message", "")).partition(":")[0].split(" ")[0]
            found.fail("verify" if stage == "verify" else "build", str(error.get("message")))
        elif reason := next((r for words, r in _NO_EVALUATION.items() if words in str(refused.get("message"))), ""):
            found.fail("eval", f"not tried: {reason}", "-")
        elif refused:
            found.fail("eval", str(refused.get("message")))
        else:
            found.eval = "ok"

    def _note_twin(self, facts: dict[str, dict[str, Any]], found: Result) -> None:
        twin = facts.get("twin")
        if twin is None:
            return
        status = str(twin.get("status"))
        if status == "proved":
            found.twin = "ok"
        else:
            found.fail("twin", str(twin.get("finding")), {"differs": "no", "unproved": "-"}.get(status, "limited"))

    def _command(self, command: str, model: Path, store: Path, **more: str) -> dict[str, Any]:
        """Run a command; {} if it ends well, else its error."""
        env = os.environ | {
            "ENGINE": self._engine, "ARTIFACTS": str(store), "MODEL": str(model), "QUANT": QUANT, "THREADS": "1",
            "JSON": "1", "ALLOW_TWIN_MISMATCH": "1", **more,
        }  # fmt: skip
        done = subprocess.run(
            [sys.executable, "-m", "quantyard", command], env=env, cwd=REPO_DIR, capture_output=True, text=True,
            stdin=subprocess.DEVNULL, check=False,
        )
        if done.returncode == 0:
            return {}
        said = done.stdout.strip().splitlines() or [json.dumps({"message": done.stderr[-_MAX_WORDS:]})]
        try:
            value = json.loads(done.stdout if done.stdout.strip() else said[-1])
        except ValueError:
            value = {"message": said[-1]}
        return dict(value.get("error", value)) if isinstance(value, dict) else {"message": str(value)}

    def _serve(self, store: Path, name: str, found: Result) -> None:
        files = sorted(store.rglob(f"{name}-{QUANT}.gguf"))
        if not files:
            return
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [str(self._python), "-c", _SERVE, str(files[0]), folder, *_SERVED], cwd=REPO_DIR, capture_output=True,
                text=True, stdin=subprocess.DEVNULL, check=False, env=os.environ | {"PYTHONPATH": str(REPO_DIR)},
            )
        try:
            wrong = json.loads(done.stdout.splitlines()[-1])
        except (ValueError, IndexError):
            wrong = [done.stderr[-_MAX_WORDS:] or f"exit code {done.returncode}"]
        found.serve = "ok"
        if wrong:
            found.fail("serve", "; ".join(wrong))


def _named(text: str, folder: Path) -> str:
    """A reason in few words, and without the paths of this run."""
    if "contains custom code" in text:
        return "Transformers has no class for it; it comes with the model as code, which is never run."
    return re.sub(rf"{re.escape(str(folder))}\S*", "its folder", text)


def _stage_facts(store: Path) -> dict[str, dict[str, Any]]:
    """The facts of every stage that finished, by label without what it was made for."""
    found: dict[str, dict[str, Any]] = {}
    for path in store.rglob("stages/*/result.json"):
        result = json.loads(path.read_bytes())
        if result.get("exit_code", 0) == 0 and not result.get("error"):
            name = str(result.get("stage"))
            found[f"verify {QUANT}" if name == "verify" else name] = result.get("facts", {})
    return found


def read_results() -> dict[str, dict[str, Any]]:
    """results.json by row, `NAME` or `NAME:written`; {} before the first run."""
    found: dict[str, dict[str, Any]] = json.loads(RESULTS.read_bytes()) if RESULTS.is_file() else {}
    return found


def wanted_rows(names: Sequence[str]) -> list[tuple[Row, Form]]:
    """The rows of these names; all without any."""
    rows = {row.name: row for row in ROWS}
    asked = names or [*rows, *(f"{name}:written" for name in WRITTEN)]
    pairs: Iterable[tuple[str, str, str]] = (name.partition(":") for name in asked)
    return [(rows[name], "written" if form == "written" else "hub") for name, _, form in pairs]


def result_name(row: Row, form: Form) -> str:
    """The row's name in results.json."""
    return row.name if form == "hub" else f"{row.name}:written"


def main() -> None:
    """Run the rows; each result is kept as soon as it is there."""
    parser = argparse.ArgumentParser(description="Run small models of many architectures through every stage.")
    parser.add_argument("--missing", action="store_true", help="only rows without a result")
    parser.add_argument("--engine", default="local")
    parser.add_argument("--bpe", type=Path, default=REPO_DIR / "artifacts" / "demo" / "SmolLM2-135M-Instruct")
    parser.add_argument("--folder", type=Path, default=None, help="where models and stores lie; kept only if named")
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("names", nargs="*")
    args = parser.parse_args()
    lock = threading.Lock()
    with tempfile.TemporaryDirectory() as own, ThreadPoolExecutor(args.jobs) as workers:
        folder = args.folder or Path(own)
        folder.mkdir(parents=True, exist_ok=True)
        sweep = Sweep(folder, args.engine, args.bpe)

        def run(wanted: tuple[Row, Form]) -> None:
            row, form = wanted
            name = result_name(*wanted)
            result = asdict(sweep.run(row, form))
            with lock:
                found = {**read_results(), name: result}
                RESULTS.write_text(json.dumps(dict(sorted(found.items())), indent=1, ensure_ascii=False) + "\n")
                print(name, *(f"{stage}={result[stage]}" for stage in STAGES), *result["why"], flush=True)

        todo = wanted_rows(args.names)
        done = read_results() if args.missing else {}
        list(workers.map(run, [wanted for wanted in todo if result_name(*wanted) not in done]))


if __name__ == "__main__":
    main()
