"""Every error the library raises. The command line turns each into its words and its exit code.

Each reads "fact, value, what to type next": `message` holds the first two, `hint` the last. `kind` is a stable
identifier in kebab-case for programs; the classes below and in `publish` have one each, a failed stage names its own.
`protocol/exit_codes.py` says what each exit code means.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, ClassVar

from quantyard.formatting.printable import printable_line
from quantyard.protocol.exit_codes import Answer, ExitCode

if TYPE_CHECKING:
    from quantyard.protocol.base import StageResult

_KIND = re.compile(r"(?=.{1,40}$)[a-z0-9]+(-[a-z0-9]+)*")

class QuantyardError(Exception):
    """Base of them all.

    Args:
        message: the fact and its value, one sentence.
        hint: what to type or do next.
        detail: further lines, such as the end of a tool's stderr.
    """

    kind: str = "bug"
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
    """The request is not valid: a value, a combination of values or a file cannot be used."""

    kind = "bad-request"
    exit_code = ExitCode.BAD_REQUEST


class UnknownQuant(BadRequest):
    """No quantization type has this name."""

    kind = "unknown-quant"


class BadSource(BadRequest):
    """The id, folder or file of a model cannot be used."""

    kind = "bad-source"


class NeedsPermission(BadRequest):
    """The request needs a permission that was not given, such as ALLOW_PICKLE=1."""

    kind = "needs-permission"


class ResultRefused(BadRequest):
    """What a stage answered or left is not what it may be or says to be; nothing of it was kept.

    A stage works on the model's files, so this is refused input: most likely one of them has got the better of a tool.
    """

    kind = "result-refused"

    def __init__(self, label: str, problem: str, detail: str = "") -> None:
        hint = (
            "Nothing of it was kept. Do not trust this model's files: one of them may have taken over the tool that "
            "read them. If you do trust them, the disk or Quantyard itself is at fault: please report it."
        )
        super().__init__(f"{label}: the output of the stage is refused: {problem}.", hint, detail)
        self.problem = problem


class HubError(QuantyardError):
    """The Hub refused a request."""

    kind = "hub-error"
    exit_code = ExitCode.NETWORK


class HubUnreachable(HubError):
    """The Hub does not answer, or only with server errors."""

    kind = "hub-unreachable"


class RepoNotFound(HubError):
    """The repo does not exist, or is private and the token may not read it."""

    kind = "repo-not-found"


class RepoGated(HubError):
    """The repo is gated, and its terms are not accepted."""

    kind = "repo-gated"


class RepoRenamed(HubError):
    """The repo has another name now."""

    kind = "repo-renamed"


class RepoEmpty(HubError):
    """The repo holds nothing that can be converted."""

    kind = "repo-empty"


class RevisionNotFound(HubError):
    """The repo has no such branch, tag or commit."""

    kind = "revision-not-found"


class UnsupportedModel(QuantyardError):
    """The converter of llama.cpp does not know the model's architecture."""

    kind = "architecture"
    exit_code = ExitCode.UNSUPPORTED_MODEL


class UnreadableWeights(UnsupportedModel):
    """The weights are quantized in a form that llama.cpp's converter cannot read."""

    kind = "quantized-source"


class NotScored(QuantyardError):
    """The model does not expose token log-probabilities; found out before its weights are downloaded."""

    kind = "not-scored"
    exit_code = ExitCode.UNSUPPORTED_MODEL


class OutOfResources(QuantyardError):
    """Disk or memory ran out."""

    kind = "out-of-resources"
    exit_code = ExitCode.RESOURCES


class NotEnoughDisk(OutOfResources):
    """The plan needs more disk than is free."""

    kind = "not-enough-disk"


class FileTooLarge(OutOfResources):
    """One of several files is too large for this machine; the others are not."""

    kind = "file-too-large"


class EngineError(QuantyardError):
    """Docker, an image or a local tool is missing or does not work."""

    kind = "engine"
    exit_code = Answer.ENGINE


class ImageRegistryUnreachable(QuantyardError):
    """The registry that nodes pull images from does not answer."""

    kind = "image-registry-unreachable"
    exit_code = ExitCode.NETWORK


class StoreUnreachable(QuantyardError):
    """The shared store does not answer, or its file system fails."""

    kind = "store-unreachable"
    exit_code = ExitCode.NETWORK


class StoreDamaged(QuantyardError):
    """What the shared store holds is not what its name says."""

    kind = "store-damaged"
    exit_code = Answer.VERIFY_FAILED


class GateClosed(QuantyardError):
    """The quality gate stops the files from being published; `outcome` says why."""

    kind = "gate-closed"
    exit_code = Answer.GATE_FAILED
    codes: ClassVar[dict[str, int]] = {
        "failed": Answer.GATE_FAILED, "too few questions": Answer.GATE_TOO_FEW_QUESTIONS,
        "not measured": Answer.GATE_NOT_MEASURED,
    }  # fmt: skip

    def __init__(self, outcome: str, message: str, hint: str, detail: str) -> None:
        super().__init__(message, hint, detail)
        self.outcome = outcome
        self.kind = f"gate-{outcome.replace(' ', '-')}"

    @property
    def code(self) -> int:
        """That of its outcome."""
        return self.codes[self.outcome]


class Interrupted(QuantyardError):
    """Ctrl-C or SIGTERM stopped the command; finished stages are kept."""

    kind = "interrupted"
    exit_code = ExitCode.INTERRUPTED


class StageFailed(QuantyardError):
    """A stage failed with an error of its own, which `result` holds."""

    kind = "stage-failed"

    def __init__(self, stage: str, result: StageResult) -> None:
        error = result.error
        super().__init__(
            f"{stage}: {error.message}" if error else f"{stage} ended with exit code {int(result.exit_code)}.",
            hint=printable_line(error.hint) if error else "",
            detail=error.detail if error else "",
        )
        self.stage = stage
        self.result = result
        if error and _KIND.fullmatch(error.kind):  # a stage's word is not trusted
            self.kind = error.kind

    @property
    def code(self) -> int:
        """The stage's own exit code."""
        return int(self.result.exit_code)
