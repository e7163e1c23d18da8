"""Runs Slurm's commands, and turns what they say into our errors."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Sequence
from typing import Final

from quantyard.batch.errors import QueueSilent
from quantyard.errors import EngineError
from quantyard.formatting.numbers import format_duration

_TIMEOUT_S: Final = 60.0
_SILENT: Final = re.compile(
    r"unable to contact slurm controller|connection (refused|timed out)|socket timed out|no controllers?|"
    r"slurm_persist|zero bytes were transmitted|(communication|connect) failure|unable to establish", re.IGNORECASE
)

# What sbatch says → what to do. To add one: add a row; the first that matches counts.
_HINTS: Final = (
    (r"invalid partition", "List the partitions: sinfo; then name one: SLURM_PARTITION=name"),
    (
        r"invalid account|account.*(not permitted|invalid)",
        "List yours: sacctmgr show assoc user=$USER; then: SLURM_ACCOUNT=name",
    ),
    (
        r"invalid qos|qos.*(not permitted|invalid)",
        "List yours: sacctmgr show assoc user=$USER format=qos; then: SLURM_QOS=name",
    ),
    (r"invalid feature|invalid constraint", "List those of the nodes: sinfo -o '%N %f'; then: SLURM_CONSTRAINT=name"),
    (r"invalid generic resource|gres", "List the nodes' GPUs: sinfo -o '%N %G'; then: SLURM_GRES=gpu:1"),
    (
        r"reservation|license|unrecognized option|invalid (argument|node|time)|invalid --|--nice",
        "Correct SLURM_OPTIONS; what there is: scontrol show reservation; scontrol show licenses; sbatch --help",
    ),
    (r"time limit", "List the partitions' limits: sinfo -o '%P %l'; then: SLURM_TIME=12h"),
    (
        r"node configuration is not available|memory specification|cpu count",
        "See what the nodes have: sinfo -o '%P %c CPUs %m MB'; then set MEMORY= or SLURM_CPUS_PER_STAGE=",
    ),
    (r"authentication|munge|credential", "munged must run here with the cluster's key: munge -n | unmunge"),
)  # fmt: skip


def run_slurm_command(*argv: str, given: str | None = None, timeout_s: float = _TIMEOUT_S) -> str:
    """What a command of Slurm prints.

    Args:
        given: its stdin.

    Raises:
        QueueSilent: the controller does not answer.
        EngineError: the command is missing, or refuses.
    """
    try:
        run = subprocess.run(
            argv, input=given or "", capture_output=True, text=True, errors="replace", timeout=timeout_s, check=False,
            start_new_session=True,  # Ctrl-C is for this process, which decides what becomes of its jobs
        )  # fmt: skip
    except FileNotFoundError as error:
        hint = "Type the command on a machine from which jobs are submitted, or choose another engine: ENGINE=local"
        raise EngineError(f"Slurm's command {argv[0]} is not installed here.", hint) from error
    except subprocess.TimeoutExpired as error:
        raise _silent_controller(argv, f"it did not answer within {format_duration(timeout_s)}") from error
    if run.returncode == 0:
        return run.stdout
    said = "\n".join(line for line in run.stderr.splitlines() if line.strip())
    if _SILENT.search(said):
        raise _silent_controller(argv, said)
    raise EngineError(f"{argv[0]} refused: {_reason_of_slurm(said)}.", _slurm_hint(said), said)


def _silent_controller(argv: Sequence[str], said: str) -> QueueSilent:
    hint = "Jobs that run go on. See how it stands: scontrol ping; then type the same command again."
    return QueueSilent(f"Slurm's controller does not answer {argv[0]}.", hint, said)


def _reason_of_slurm(said: str) -> str:
    """Its last line, without the command's name."""
    lines = [line for line in said.splitlines() if not line.startswith("Try ")]
    last = lines[-1] if lines else "it gave no reason"
    return re.sub(r"^(\w+: )*(error: )?(Batch job submission failed: )?", "", last).rstrip(".")


def _slurm_hint(said: str) -> str:
    for pattern, hint in _HINTS:
        if re.search(pattern, said, re.IGNORECASE):
            return hint
    return "See what the queue takes: sinfo; and what it says of your jobs: squeue --me"
