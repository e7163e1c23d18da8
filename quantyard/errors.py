"""Every error the library raises. The command line turns each into its words and its exit code.

    QuantyardError                    exit code
    ├── BadRequest                    2   the user asked for something that cannot be
    │   ├── UnknownQuant
    │   ├── BadSource                     a model id, folder or file that cannot be one
    │   ├── NeedsPermission               allowed only when asked for (pickle, requantizing)
    │   └── ResultRefused                 what a stage left is not what it was asked for, or not what it says
    ├── NotScored                     3   a model that gives no probabilities of text, so that nothing can be measured
    ├── HubError                      4   the network or the Hub
    │   ├── HubUnreachable
    │   ├── RepoNotFound                  missing, or private without a token that may read it
    │   ├── RepoGated
    │   ├── RepoRenamed
    │   ├── RepoEmpty
    │   └── RevisionNotFound
    ├── OutOfResources                5   disk or memory
    │   └── NotEnoughDisk                 found out before a byte is downloaded
    ├── GateClosed                    40 a budget is exceeded, 41 too few questions to tell, 42 not measured
    ├── EngineError                   1   Docker or the local tools are not as they must be
    ├── StageFailed                   as the stage ended: 2, 3 (llama.cpp does not support the model), 4, 5 or 70
    └── Interrupted                   130

Each reads "fact, value, what to type next": `message` holds the first two, `hint` the last.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from quantyard.formatting.printable import one_line
from quantyard.protocol.exit_codes import ExitCode

if TYPE_CHECKING:
    from quantyard.protocol.base import StageResult

ENGINE_EXIT_CODE = 1


class QuantyardError(Exception):
    """Base of them all.

    Args:
        message: the fact and its value, one sentence.
        hint: what to type or do next.
        detail: further lines, such as the end of a tool's stderr.
    """

    exit_code: ClassVar[int] = ExitCode.BUG

    def __init__(self, message: str, hint: str = "", detail: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.detail = detail

    @property
    def code(self) -> int:
        """The exit code this error ends the command with."""
        return self.exit_code


class BadRequest(QuantyardError):
    """The user asked for something that cannot be."""

    exit_code = ExitCode.BAD_REQUEST


class UnknownQuant(BadRequest):
    """No quantization type has this name."""


class BadSource(BadRequest):
    """A model id, folder or file that cannot be one."""


class NeedsPermission(BadRequest):
    """Possible, but only when asked for by name."""


class ResultRefused(BadRequest):
    """A stage's answer, or a file that it left, is not what it may be. Nothing of it was kept.

    A stage works on the model's files, so this is refused input: most likely one of them has got the better of a tool.
    """

    def __init__(self, label: str, problem: str, detail: str = "") -> None:
        hint = (
            "Nothing of it was kept. Do not trust this model's files: one of them may have taken over the tool that "
            "read them. If you do trust them, the disk or Quantyard itself is at fault: please report it."
        )
        super().__init__(f"{label}: what the stage left is refused: {problem}.", hint, detail)
        self.problem = problem


class HubError(QuantyardError):
    """The network or the Hub said no."""

    exit_code = ExitCode.NETWORK


class HubUnreachable(HubError):
    """No answer, or only server errors."""


class RepoNotFound(HubError):
    """The repo does not exist, or is private and the token may not read it."""


class RepoGated(HubError):
    """The repo's owner wants its terms accepted first."""


class RepoRenamed(HubError):
    """The repo has another name now."""


class RepoEmpty(HubError):
    """The repo holds nothing that could be converted."""


class RevisionNotFound(HubError):
    """The repo has no such branch, tag or commit."""


class NotScored(QuantyardError):
    """The model gives no probabilities of text: found out before its weights are downloaded."""

    exit_code = ExitCode.UNSUPPORTED_MODEL


class OutOfResources(QuantyardError):
    """Disk or memory ran out."""

    exit_code = ExitCode.RESOURCES


class NotEnoughDisk(OutOfResources):
    """The plan needs more disk than is free."""


class EngineError(QuantyardError):
    """Docker, an image or a local tool is not as it must be."""

    exit_code = ENGINE_EXIT_CODE


class GateClosed(QuantyardError):
    """The gate lets nothing be published; `outcome` says why."""

    codes: ClassVar[dict[str, int]] = {"failed": 40, "too few questions": 41, "not measured": 42}

    def __init__(self, outcome: str, message: str, hint: str, detail: str) -> None:
        super().__init__(message, hint, detail)
        self.outcome = outcome

    @property
    def code(self) -> int:
        """40, 41 or 42."""
        return self.codes[self.outcome]


class Interrupted(QuantyardError):
    """Ctrl-C or SIGTERM; finished stages stay finished."""

    exit_code = ExitCode.INTERRUPTED


class StageFailed(QuantyardError):
    """A stage ended with an error of its own; `result` holds what it said."""

    def __init__(self, stage: str, result: StageResult) -> None:
        error = result.error
        super().__init__(
            f"{stage}: {error.message}" if error else f"{stage} ended with exit code {int(result.exit_code)}.",
            hint=one_line(error.hint) if error else "",
            detail=error.detail if error else "",
        )
        self.stage = stage
        self.result = result

    @property
    def code(self) -> int:
        """The stage's own exit code."""
        return int(self.result.exit_code)
