"""The exit codes of stages and of the command line. Imports no module of ours, so that the command line starts fast."""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum
from typing import Final


class ExitCode(IntEnum):
    """Exit codes of stages. The command line uses them too, and those of `Answer`."""

    DONE = 0
    BAD_REQUEST = 2
    UNSUPPORTED_MODEL = 3
    NETWORK = 4
    RESOURCES = 5  # out of disk or memory
    BUG = 70
    INTERRUPTED = 130


class Answer(IntEnum):
    """Exit codes of the command line only: its engine is not usable, or its answer is negative."""

    ENGINE = 6
    GATE_FAILED = 40
    GATE_TOO_FEW_QUESTIONS = 41
    GATE_NOT_MEASURED = 42
    API_TEST_FAILED = 43
    VERIFY_FAILED = 44
    DOCTOR_FAILED = 45
    BUMP_WORSE = 46
    OUTPUT_CLOSED = 141


@dataclass(frozen=True)
class ExitCodeRow:
    """One exit code of the command line."""

    code: ExitCode | Answer
    meaning: str
    what_to_do: str

    @property
    def name(self) -> str:
        """The name in kebab-case."""
        return self.code.name.lower().replace("_", "-")


# To add an exit code: add it to an enumeration above and a row here. `quantyard --help` and the reference are generated
# from the rows. Code 1 is left to Python and the shell: the program itself could not start.
EXIT_CODES: Final = (
    ExitCodeRow(ExitCode.DONE, "Success.", ""),
    ExitCodeRow(
        ExitCode.BAD_REQUEST, "The request or its input is not valid, or the output of a stage was refused.",
        "Follow the hint below the error.",
    ),
    ExitCodeRow(
        ExitCode.UNSUPPORTED_MODEL, "llama.cpp cannot convert, load or score this model.",
        "Choose another model or another version of llama.cpp.",
    ),
    ExitCodeRow(
        ExitCode.NETWORK, "The network, the Hub or a registry failed, or refused a request.",
        "Check the network and the token; then run the command again: what has arrived is kept.",
    ),
    ExitCodeRow(
        ExitCode.RESOURCES, "Disk or memory ran out, or would run out.",
        "Free some space or memory; then run the command again: finished stages are kept.",
    ),
    ExitCodeRow(
        Answer.ENGINE, "Docker, an image or a local tool is missing or does not work.", "Run: make doctor",
    ),
    ExitCodeRow(
        Answer.GATE_FAILED, "A file exceeds a budget of the quality gate.",
        "Choose a larger quant, or change the budgets: GATE=gate.yaml",
    ),
    ExitCodeRow(
        Answer.GATE_TOO_FEW_QUESTIONS, "The gate cannot decide: too few questions were asked.",
        "Measure with a larger suite: SUITE=standard",
    ),
    ExitCodeRow(
        Answer.GATE_NOT_MEASURED, "The gate needs a number that was not measured.",
        "Measure it: make eval, with a suite that includes it.",
    ),
    ExitCodeRow(
        Answer.API_TEST_FAILED, "A served file fails the API test.",
        "See the checks that are marked FAIL.",
    ),
    ExitCodeRow(
        Answer.VERIFY_FAILED, "A file does not match its manifest, or nothing could be checked.",
        "Download it again; do not use a file that failed.",
    ),
    ExitCodeRow(
        Answer.DOCTOR_FAILED, "Something that builds need is missing on this machine.",
        "Follow the remedy of each finding.",
    ),
    ExitCodeRow(
        Answer.BUMP_WORSE, "With another llama.cpp a file is worse, or cannot be made.",
        "See which one, and stay with the recorded llama.cpp.",
    ),
    ExitCodeRow(
        ExitCode.BUG, "A bug of Quantyard; a traceback is shown.", "Report it with the traceback.",
    ),
    ExitCodeRow(
        ExitCode.INTERRUPTED, "Ctrl-C or SIGTERM stopped the command.",
        "Run it again to continue: finished stages are kept.",
    ),
    ExitCodeRow(Answer.OUTPUT_CLOSED, "The reader of the output closed it (SIGPIPE).", ""),
)  # fmt: skip
