"""The files that `docker compose up` serves: the folder `served` of the store holds hard links to built files, which a
container sees as plain files. A build fills the folder if it is empty; afterwards `serve` alone changes it, so that no
build takes a file away from a running server. The server's API key is in `keys/api-key`.
"""

from __future__ import annotations

import os
import re
import secrets
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from quantyard.errors import BadRequest
from quantyard.formats.gguf import GgufError, read_gguf_header

FOLDER = "served"
_NOTE = ".note"  # which server/image/entrypoint.sh and server/encoder_decoder/image.py print when they start
_KEY_BYTES = 24
_PART = re.compile(r"-\d{5}-of-\d{5}\.gguf$")


def are_served_files(root: Path, files: Sequence[Path]) -> bool:
    """Whether these very files are in the folder that is served, beside others or not."""
    placed = [(path, root / FOLDER / path.name) for path in files]
    return all(target.is_file() and target.samefile(path) for path, target in placed)


def is_nothing_served(root: Path) -> bool:
    """Whether the folder that is served holds no GGUF."""
    return next((root / FOLDER).glob("*.gguf"), None) is None


def unserved_files(root: Path, files: Sequence[Path]) -> list[Path]:
    """Those of these files that are not served; a file of an earlier build may be served under the same name."""
    return [path for path in files if not are_served_files(root, [path])]


def note_unserved(root: Path, text: str) -> None:
    """Have `docker compose up` say this in its log, until `serve` is used; "": nothing."""
    note = root / FOLDER / _NOTE
    if text:
        note.write_text(f"{text}\n", encoding="utf-8")
    else:
        note.unlink(missing_ok=True)


def served_note(root: Path) -> str:
    """What `docker compose up` says in its log; "": nothing."""
    note = root / FOLDER / _NOTE
    return note.read_text(encoding="utf-8").strip() if note.is_file() else ""


def put_served_files(root: Path, files: Sequence[Path]) -> bool:
    """Serve these GGUFs and no others. Returns False, and changes nothing, if they cannot be linked there.

    A source on another disk, or in several parts, can be served with MODEL_FILE only.
    """
    folder = root / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    if any(_PART.search(path.name) for path in files) or not all(_can_link_served_file(path, folder) for path in files):
        for temporary in folder.glob(".*.gguf.tmp"):
            temporary.unlink()
        return False
    for path in files:
        _link_served_file(path, folder)
    for stale in set(folder.glob("*.gguf")) - {folder / path.name for path in files}:
        stale.unlink()
    return True


def served_files(root: Path, model_file: Path | None) -> list[Path]:
    """The GGUFs to serve: MODEL_FILE, the files in it, or those of the folder `served`.

    Raises:
        BadRequest: there is no file to serve, or MODEL_FILE is a part of a model.
    """
    where = model_file or root / FOLDER
    if is_part_of_several(where):
        message = f"MODEL_FILE={model_file} is one part of a model, which needs them all."
        raise BadRequest(message, f"Give the folder that holds them: MODEL_FILE={where.parent}")
    found = sorted(path for path in where.glob("*.gguf") if _is_served_model(path)) if where.is_dir() else [where]
    if not found or not all(path.is_file() for path in found):
        what = f"MODEL_FILE={model_file} is not a GGUF" if model_file else "Nothing is built yet"
        raise BadRequest(f"{what}.", "Build a model: make build MODEL=org/name QUANT=Q4_K_M, or try: make demo")
    return found


def is_part_of_several(path: Path) -> bool:
    """Whether a GGUF does not hold the whole model."""
    return bool(_PART.search(path.name)) and not path.name.endswith("-00001-of-00001.gguf")


def served_projector(root: Path, model_file: Path | None, given: Path | None) -> Path | None:
    """What reads pictures or sound for the files to serve: the one given, else the one beside them; None without one.

    Raises:
        BadRequest: the given file is not a projector.
    """
    if given is not None:
        if not _is_served_projector(given):
            raise BadRequest(f"MMPROJ_FILE={given} is not a projector (mmproj).", "Leave it out to serve text alone.")
        return given
    where = model_file or root / FOLDER
    found = sorted(where.glob("*.gguf")) if where.is_dir() else []
    return next((path for path in found if _is_served_projector(path)), None)


def fits_projector(model: Path, projector: Path | None) -> bool:
    """Whether the vectors that a projector makes are as wide as those that the model reads."""
    try:
        return projector is not None and (
            read_gguf_header(projector).projection_dim == read_gguf_header(model).embedding_length
        )
    except (GgufError, OSError):  # llama.cpp says what is wrong
        return False


def served_model_name(path: Path) -> str:
    """The id of a served GGUF in the API; that of one in several parts does not name the part."""
    return _PART.sub("", path.name).removesuffix(".gguf")


def served_api_key(root: Path) -> str:
    """The key in `keys/api-key`, created if missing; only its owner can read it.

    Raises:
        BadRequest: the file cannot be read, or is empty.
    """
    path = root / "keys" / "api-key"
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(FileExistsError):
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"qy-{secrets.token_hex(_KEY_BYTES)}\n")
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except OSError as error:
        raise BadRequest(f"The key file {path} cannot be read: {error.strerror}.", f"Type: ls -l {path}") from error
    keys = [line for line in lines if line and not line.startswith("#")]
    if not keys:
        raise BadRequest(f"The key file {path} is empty.", f"Remove it, and the next start creates a key: rm {path}")
    return keys[0]


def _is_served_model(path: Path) -> bool:
    """Not a matrix, nor a projector, nor a later part of a model: llama.cpp finds those beside the first."""
    if _is_served_projector(path):
        return False
    return ".imatrix" not in path.name and ("-00001-of-" in path.name or not _PART.search(path.name))


def _is_served_projector(path: Path) -> bool:
    try:
        return bool(read_gguf_header(path).media)
    except (GgufError, OSError):
        return False


def _can_link_served_file(path: Path, folder: Path) -> bool:
    """Whether a link of this file can be made in the folder; it is left there under a temporary name."""
    temporary = folder / f".{path.name}.tmp"
    temporary.unlink(missing_ok=True)
    try:
        os.link(path.resolve(), temporary)
    except OSError:
        return False
    return True


def _link_served_file(path: Path, folder: Path) -> None:
    target, temporary = folder / path.name, folder / f".{path.name}.tmp"
    if target.exists() and target.samefile(path):
        temporary.unlink()
    else:
        temporary.rename(target)
