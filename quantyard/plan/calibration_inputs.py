"""Checks the user's input for calibration before anything runs: an importance matrix, or texts to compute one from."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

from quantyard.errors import BadRequest
from quantyard.files.own_files import kind_of_path, read_named_file, typed_file_path
from quantyard.formats.gguf import GgufError, read_gguf_header
from quantyard.formats.names import path_format_fault, shown_name
from quantyard.paths import REPO_DIR
from quantyard.plan.contamination import plan_contaminating_texts, plan_contamination
from quantyard.plan.imatrix import Calibration
from quantyard.protocol.base import FileEntry, files_digest
from quantyard.protocol.runner import file_sha256
from quantyard.store.artifact import Artifact
from quantyard.store.hash_cache import HashCache

OUR_TEXT: Final = REPO_DIR / "builder" / "calibration" / "text.jsonl"
_LEAST_BYTES: Final = 2 * 512  # two chunks, at one byte per token
_MOST_BYTES: Final = 256 * 2**20  # of one file, which is read at once; usual texts have less than 1 MiB


def plan_calibration(
    imatrix: str, text_files: Sequence[Path], hashes: HashCache, evaluation: Iterable[Path], threads: int = 0
) -> Calibration | None:
    """The calibration that IMATRIX (auto, none, or a file) and CALIBRATION (text files) ask for; None: no matrix.

    Args:
        evaluation: files with which a calibration text must not share words, see `plan_contaminating_files`.

    Raises:
        BadRequest: a file cannot be used, or the two contradict each other.
    """
    if imatrix != "auto" and text_files:
        message = f"CALIBRATION gives text for a new matrix, but IMATRIX={imatrix} does not make one."
        raise BadRequest(message, "Type: IMATRIX=auto, or leave CALIBRATION out.")
    if imatrix == "none":
        return None
    if imatrix != "auto":
        return Calibration(matrix=_users_imatrix_artifact(typed_file_path(imatrix).absolute(), hashes), threads=threads)
    paths = [typed_file_path(str(path)).absolute() for path in text_files]
    check_planned_calibration(paths, evaluation)
    artifact = _calibration_text_artifact(paths, hashes) if paths else None
    names = tuple(path.relative_to(artifact.folder).as_posix() for path in paths) if artifact else ()
    return Calibration(text=artifact, text_files=names, threads=threads)


def check_matrix_exists(path: Path) -> None:
    """Refuse what is neither a file nor one of the words.

    Raises:
        BadRequest: there is no such file.
    """
    if kind_of_path(path) != "file":
        raise BadRequest(f"IMATRIX={path} is not a file.", "Type: IMATRIX=auto, IMATRIX=none, or a file that exists.")


def _users_imatrix_artifact(path: Path, hashes: HashCache) -> Artifact:
    """The matrix as an artifact. Whether it fits the model is checked by the stage `quantize`, which has the model."""
    check_matrix_exists(path)
    try:
        kind = read_gguf_header(path).metadata.get("general.type")
    except GgufError as error:
        hint = "Convert an old one: llama-imatrix --in-file old.dat -o imatrix.gguf"
        raise BadRequest(f"IMATRIX={path} is not an importance matrix in GGUF format: {error}.", hint) from error
    if kind != "imatrix":
        raise BadRequest(f"IMATRIX={path} is a GGUF, but not an importance matrix.", "Type: IMATRIX=auto to make one.")
    return _calibration_artifact(path.parent, [path], hashes)


def check_planned_calibration(paths: Sequence[Path], evaluation: Iterable[Path]) -> None:
    """Refuse an unsuitable calibration text before anything runs: the user's files, or Quantyard's text.

    Raises:
        BadRequest: a file is missing, binary, empty or tiny, or shares eight words in a row with the evaluation.
    """
    texts = {path: _read_calibration_text(path) for path in paths} or {OUR_TEXT: ""}
    if paths and sum(len(text.encode()) for text in texts.values()) < _LEAST_BYTES:
        size = sum(path.stat().st_size for path in paths)
        message = f"CALIBRATION has {size:,} bytes of text, and two chunks need {_LEAST_BYTES:,} tokens."
        hint = "Give more (50,000 words or more is best), or leave CALIBRATION out to use Quantyard's text."
        raise BadRequest(message, hint)
    strings = texts.values() if paths else plan_contaminating_texts(OUR_TEXT.read_text(encoding="utf-8").splitlines())
    if found := plan_contamination(strings, evaluation):
        named = ", ".join(str(path) for path in texts)
        message = f"The calibration text ({named}) shares words with the evaluation ({found.file}): “{found.words}”."
        raise BadRequest(message, "Remove that passage: a file calibrated on its questions would score too well.")


def _read_calibration_text(path: Path) -> str:
    try:
        data = read_named_file(path, _MOST_BYTES)
    except OSError as error:
        raise _bad_calibration_file(path, f"cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise _bad_calibration_file(path, f"cannot be used: {error}") from error
    if b"\0" in data:
        raise _bad_calibration_file(path, f"is binary: byte {data.index(0):,} is 0")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise _bad_calibration_file(path, f"is not UTF-8: byte {error.start:,} is 0x{data[error.start]:02x}") from error
    if not text.strip():
        raise _bad_calibration_file(path, "is empty")
    return text


def _bad_calibration_file(path: Path, what: str) -> BadRequest:
    hint = "Give UTF-8 text, or leave CALIBRATION out to use Quantyard's text."
    return BadRequest(f"CALIBRATION={path} {what}.", hint)


def _calibration_text_artifact(paths: Sequence[Path], hashes: HashCache) -> Artifact:
    folder = Path(os.path.commonpath([path.parent for path in paths]))
    return _calibration_artifact(folder, paths, hashes)


def _calibration_artifact(folder: Path, paths: Sequence[Path], hashes: HashCache) -> Artifact:
    for path in paths:
        if fault := path_format_fault(path.relative_to(folder).as_posix()):
            raise BadRequest(f"{shown_name(str(path))} cannot be given to a stage: {fault}.", "Rename it.")
    files = tuple(
        FileEntry(
            path=path.relative_to(folder).as_posix(), size_bytes=path.stat().st_size,
            sha256=hashes.sha256(path, file_sha256),
        )
        for path in dict.fromkeys(paths)
    )
    return Artifact(files_digest(files), files, folder, whole_folder=False)
