"""The GitHub Actions workflow of docs/examples: its steps run in bash against the real command line."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path

import pytest

from quantyard.cli.commands import COMMANDS
from quantyard.paths import REPO_DIR
from quantyard.protocol.exit_codes import Answer
from tests.github_workflow import TEMPLATE, Job, step, steps, workflow
from tests.outputs import check_output
from tests.released import Yard

pytestmark = pytest.mark.commands
PASSES = "defaults: {max_mean_kld: 5}\n"
FAILS = "defaults: {max_mean_kld: 0.00001}\n"
UNDECIDED = "defaults: {max_mean_kld: 5}\nquants: {Q8_0: {max_mean_kld: 0.0012}}\n"
UNMEASURED = "defaults: {max_mean_kld: 5, max_accuracy_loss: {nobody_asked: 5}}\n"


def job(yard: Yard, budgets: str, **variables: str) -> Job:
    """A job in a repository of the model's, whose store is measured already."""
    folder = yard.root / "repository"
    folder.mkdir()
    (folder / "gate.yaml").write_text(budgets)
    (folder / "quantyard.toml").write_text(
        f'model = "{yard.model}"\nquant = ["Q8_0", "Q4_K_M"]\ngate = "gate.yaml"\nengine = "local"\n'
        f'artifacts = "{yard.artifacts}"\n'
    )
    return Job(folder, {"HF_ENDPOINT": yard.hub.endpoint, **variables})


@pytest.mark.parametrize(("budgets", "code", "level"), [
    (PASSES, 0, "notice"), (FAILS, Answer.GATE_FAILED, "error"), (UNDECIDED, Answer.GATE_TOO_FEW_QUESTIONS, "error"),
    (UNMEASURED, Answer.GATE_NOT_MEASURED, "error"),
], ids=["passes", "40", "41", "42"])  # fmt: skip
def test_the_job_ends_as_the_gate_does_and_has_the_page_whatever_it_says(
    yard: Yard, budgets: str, code: int, level: str
) -> None:
    running = job(yard, budgets)
    gate = running.run("Gate")
    assert gate.returncode == 0, gate.stderr
    assert gate.stdout.startswith(f"::{level} title=Quality gate ({int(code)})::")
    check_output("gate", json.loads((running.folder / "gate.json").read_text()))
    report = running.run("Report")
    assert report.returncode == 0, report.stderr
    assert {path.name for path in (running.folder / "report").iterdir()} == {"report.html", "README.md", "gate.json"}
    assert running.summary.startswith("```\n") and running.summary.endswith("```\n") and "KLD" in running.summary
    assert running.run("End as the gate does").returncode == code


@pytest.mark.parametrize(("warns", "ends"), [("41", 0), ("41 42", 0), ("40", 41), ("4", 41), ("", 41)])
def test_a_code_that_only_warns_does_not_end_the_job(yard: Yard, warns: str, ends: int) -> None:
    running = job(yard, UNDECIDED, GATE_WARNS=warns)
    said = running.run("Gate").stdout
    assert said.startswith("::warning" if ends == 0 else "::error")
    assert running.run("End as the gate does").returncode == ends


def test_a_gate_that_cannot_judge_ends_the_step_with_its_own_code_and_its_error(yard: Yard) -> None:
    running = job(yard, "defaults: {no_such_budget: 1}\n")
    gate = running.run("Gate")
    assert gate.returncode == 2 and json.loads(gate.stdout)["error"]["exit_code"] == 2


def test_the_template_asks_for_nothing_that_it_does_not_need() -> None:
    found = workflow()
    assert found["permissions"] == {"contents": "read"} and found["defaults"]["run"]["shell"] == "bash"
    assert set(found[True]) == {"workflow_dispatch", "push"}, "`on` is true in YAML 1.1"
    used = [row["uses"] for row in steps() if "uses" in row]
    assert used and all(re.fullmatch(r"actions/[a-z/-]+@[0-9a-f]{40}", name) for name in used)
    ours = (REPO_DIR / ".github" / "workflows" / "ci.yml").read_text()
    assert used[0] in ours, "the checkout is pinned as ours is"
    token = [row["name"] for row in steps() if "HF_TOKEN" in row.get("env", {})]
    assert token == ["Plan", "Measure", "Publish"]


def test_its_commands_exist_and_the_page_is_kept_whatever_the_gate_says() -> None:
    named = set(re.findall(r"\bquantyard ([a-z]+)", "\n".join(row.get("run", "") for row in steps())))
    assert named == {"plan", "eval", "gate", "report", "publish"} <= {command.name for command in COMMANDS}
    order = [row.get("name", row.get("uses", "").partition("@")[0]) for row in steps()]
    assert order.index("Report") < order.index("actions/upload-artifact") < order.index("End as the gate does")
    assert order[-1] == "Publish" and step("Publish")["if"] == "${{ inputs.publish }}"


def test_the_documents_name_the_template() -> None:
    path = TEMPLATE.relative_to(REPO_DIR / "docs").as_posix()
    assert path in (REPO_DIR / "docs" / "how-to" / "scripting.md").read_text()


@pytest.mark.parametrize(("argv", "code"), [(("quants", "FIND=nothing-like-it"), 2), (("verify", "FILE=gone"), 2)])
def test_make_ends_with_its_own_code_and_prints_the_programs(argv: tuple[str, ...], code: int) -> None:
    done = subprocess.run(
        ["make", "-o", ".ready", *argv], cwd=REPO_DIR, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 2 and f"] Error {code}" in done.stderr.splitlines()[-1]


def test_make_hides_the_gates_code_behind_its_own(yard: Yard) -> None:
    variables = {
        "MODEL": yard.model, "ARTIFACTS": str(yard.artifacts), "ENGINE": "local", "QUANT": "Q8_0,Q4_K_M",
        "GATE": str(yard.root / "gate.yaml"),
    }  # fmt: skip
    Path(variables["GATE"]).write_text(FAILS)
    done = subprocess.run(
        ["make", "-o", ".ready", "gate", *(f"{name}={value}" for name, value in variables.items())], cwd=REPO_DIR,
        capture_output=True, text=True, timeout=60, check=False,
    )
    assert done.returncode == 2 and "] Error 40" in done.stderr.splitlines()[-1]
