"""`comparison.json`: files that other people made beside ours, in one evaluation. The page uses only this."""

from pathlib import Path
from typing import Annotated, Final, Literal

from pydantic import Field

from quantyard.files.atomic import write_file_atomically
from quantyard.protocol.base import FileEntry, Frozen, Sha256
from quantyard.protocol.foreign_findings import ForeignFinding
from quantyard.protocol.measurements import EvalReport
from quantyard.protocol.removals import Removal
from quantyard.version import __version__

COMPARISON_FILE: Final = "comparison.json"


class ComparedFile(Frozen):
    """One measured file.

    Attributes:
        made_by: `us`, or `others`.
        place: the repo, folder or name in Ollama's store that was typed; "" for ours.
        revision: the Hub's commit; "" elsewhere.
        parts: its file, or the parts of a split model.
        sha256: of the measured file; null for a split model, whose parts have their own.
        findings: of files of others; a refused file is not in the comparison.
        worst_error_ratio: the largest error of a tensor against the source, in errors of ggml's own rounding.
    """

    label: str
    made_by: Literal["us", "others"]
    place: str = ""
    revision: str = ""
    parts: tuple[FileEntry, ...]
    sha256: Sha256 | None
    quant: str
    size_bytes: Annotated[int, Field(ge=0)]
    findings: tuple[ForeignFinding, ...] = ()
    worst_error_ratio: float | None = None
    on_front: bool = False
    reasons: tuple[Removal, ...] = ()


class NotCompared(Frozen):
    """A file or place that could not be measured, and why; `exit_code` is what the command would end with for it."""

    label: str
    stage: str  # "" if nothing ran
    kind: str
    message: str
    hint: str
    exit_code: int


class ComparisonRecord(Frozen):
    """One comparison."""

    schema_version: Literal[1] = 1
    quantyard: str = __version__
    model: str
    commit: str
    baseline: str
    files: tuple[ComparedFile, ...]
    not_compared: tuple[NotCompared, ...] = ()
    report: EvalReport


def write_comparison(folder: Path, record: ComparisonRecord) -> Path:
    """Write the record into the folder of the comparison's report."""
    path = folder / COMPARISON_FILE
    write_file_atomically(path, f"{record.model_dump_json(indent=2)}\n".encode())
    return path
