"""The text that sensitivities are measured on: calibration text, never the text that judges the result."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final

from quantyard.files.atomic import write_file_atomically
from quantyard.plan.calibration_inputs import OUR_TEXT, check_planned_calibration
from quantyard.protocol.base import FileEntry, files_digest
from quantyard.store.artifact import Artifact

NAME: Final = "tuning.txt"
_STRIDE: Final = 37  # neighbours in the file are of one domain; this step reaches many domains


def tuning_text(files: Sequence[Path], evaluation: Iterable[Path], artifacts: Path) -> Artifact:
    """The user's files one after the other, or documents of our calibration text from all its domains in turn.

    Raises:
        BadRequest: a file cannot be used, or shares eight words in a row with the evaluation.
    """
    check_planned_calibration(files, evaluation)
    parts = [path.read_text(encoding="utf-8").strip("\n") for path in files] or list(_our_tuning_documents())
    return _kept_tuning_text("\n\n".join(parts), artifacts)


def _our_tuning_documents() -> Iterator[str]:
    lines = OUR_TEXT.read_text(encoding="utf-8").splitlines()
    for start in range(_STRIDE):
        yield from (_tuning_document_text(json.loads(line)) for line in lines[start::_STRIDE])


def _tuning_document_text(document: dict[str, Any]) -> str:
    """A dialogue as plain lines, since the model's own template is not available here."""
    if "messages" not in document:
        return str(document["text"])
    return "\n".join(f"{message['role']}: {message['content']}" for message in document["messages"])


def _kept_tuning_text(text: str, artifacts: Path) -> Artifact:
    """The text as an input of stages, in a folder named by its digest."""
    data = text.encode()
    sha256 = hashlib.sha256(data).hexdigest()
    folder = artifacts / ".tuning" / sha256[:12]
    path = folder / NAME
    if not (path.is_file() and path.read_bytes() == data):
        folder.mkdir(parents=True, exist_ok=True)
        write_file_atomically(path, data)
    files = (FileEntry(path=NAME, size_bytes=len(data), sha256=sha256),)
    return Artifact(files_digest(files), files, folder)
