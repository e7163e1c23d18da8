"""The program of compose.yaml's service `encoder-decoder`: reads the settings that server/image/entrypoint.sh reads.

    MODEL           a GGUF, or a folder of them: several are served by name
    MODEL_NAME      the name of a single model in the API; default: that of its file, or of MODEL_FILE if it was mounted
    HOST PORT       where to listen in the container   BIND_ADDRESS  the host's address where it is published
    API_KEY_FILE    one key per line                   API_KEY=off   no key; only on loopback
    CONTEXT_SIZE PARALLEL THREADS   defaults: as trained for each request, 4, one per physical core
    LLAMA_BIN       the folder of llama.cpp's programs, whose library is used; without it that of llama-cpp-python

It runs on the CPU. Exit codes: 0 it was told to end · 2 the model or a setting cannot be served · 3 llama.cpp cannot
"""

from __future__ import annotations

import ipaddress
import os
import signal
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, NoReturn

from quantyard.formats.gguf import GgufError, read_gguf_header
from quantyard.hardware.machine import physical_cores
from quantyard.llama.library import LlamaLibrary, llama_library_path
from server.encoder_decoder.http_server import EncoderDecoderServer
from server.encoder_decoder.model import CannotServe
from server.encoder_decoder.models import ServedModels

Listing = Mapping[Path, tuple[int, int, int]]  # inode, size, time

_PARALLEL: Final = 4
_EVERY: Final = "0.0.0.0"  # noqa: S104 (in a container, whose network is internal)
_WATCH_S: Final = 2.0
_WRITTEN_NS: Final = 10_000_000_000  # since a file was written: somebody may still be copying it
_BAD: Final = 2
_CANNOT: Final = 3


class BadSetting(Exception):
    """A setting or a model that cannot be served; the second line says what to type."""


@dataclass(frozen=True)
class ImageSettings:
    """The settings of the server."""

    models: Mapping[str, Path]  # by name
    keys: tuple[str, ...]  # none: no key is required
    host: str
    port: int
    n_ctx: int  # of one request; 0: as the model was trained
    parallel: int
    threads: int


def read_image_settings(environment: Mapping[str, str]) -> ImageSettings:
    """The settings, checked.

    Raises:
        BadSetting: one cannot be used.
    """
    if environment.get("LORA"):
        raise BadSetting("An adapter (LORA) cannot be applied to an encoder-decoder here.\nLeave LORA_FILE out.")
    parallel = _image_number(environment, "PARALLEL") or _PARALLEL
    return ImageSettings(
        models=_image_models(environment), keys=_image_api_keys(environment), host=environment.get("HOST") or _EVERY,
        port=_image_number(environment, "PORT") or 8080, n_ctx=_image_number(environment, "CONTEXT_SIZE") // parallel,
        parallel=parallel, threads=_image_number(environment, "THREADS") or physical_cores(),
    )  # fmt: skip


def _image_number(environment: Mapping[str, str], name: str) -> int:
    value = environment.get(name) or "0"
    if not value.isdecimal() or len(value) > 9:
        raise BadSetting(f"{name}={value} is not a whole number.\nGive a number, or leave it out.")
    return int(value)


def _image_models(environment: Mapping[str, str]) -> dict[str, Path]:
    where = Path(environment.get("MODEL") or "/model")
    paths = sorted(p for p in where.rglob("*.gguf") if ".imatrix" not in p.name) if where.is_dir() else [where]
    paths = [path for path in paths if "-of-" not in path.stem or "-00001-of-" in path.stem]
    if not paths:
        raise BadSetting("Nothing to serve: no model has been built yet.\nBuild one: make build MODEL=org/name")
    for path in paths:
        _check_image_model(path)
    if len(paths) > 1:
        return {path.stem: path for path in paths}
    mounted = Path(environment.get("MODEL_FILE") or "").name if not where.is_dir() else ""
    return {environment.get("MODEL_NAME") or Path(mounted or paths[0].name).stem: paths[0]}


def _check_image_model(path: Path) -> None:
    try:
        header = read_gguf_header(path)
    except (GgufError, OSError) as error:
        raise BadSetting(f"{path} cannot be read: {error}.\nBuild it again, or name another.") from error
    if not header.is_encoder_decoder:
        what = f"{path.name} is not an encoder-decoder but {header.architecture}: llama-server serves it."
        raise BadSetting(f"{what}\nType: docker compose -f compose.yaml up")


def _image_api_keys(environment: Mapping[str, str]) -> tuple[str, ...]:
    if environment.get("API_KEY") == "off":
        if not _is_loopback_listener(environment.get("BIND_ADDRESS") or "127.0.0.1"):
            raise BadSetting("API_KEY=off beyond the loopback interface would let anyone in.\nLeave API_KEY out.")
        return ()
    path = Path(environment.get("API_KEY_FILE") or "/run/keys/api-key")
    try:
        lines = [line.strip() for line in path.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise BadSetting(f"The key file {path} cannot be read: {error}.\nMount one there.") from error
    keys = tuple(line for line in lines if line and not line.startswith("#"))
    if not keys:
        raise BadSetting(f"The key file {path} is empty.\nRemove it, and a new one is made.")
    return keys


def _is_loopback_listener(address: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(address.strip("[]")).is_loopback
    return address == "localhost"


def main() -> NoReturn:
    """Serve until a signal comes."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _end_image_server)
    llama_bin = os.environ.get("LLAMA_BIN")
    library = llama_library_path(Path(llama_bin) if llama_bin else None)
    try:
        listed = _image_model_listing()
        settings = read_image_settings(os.environ)
        models = ServedModels(
            LlamaLibrary(library), settings.models, f"Quantyard's server of encoder-decoders ({Path(library).name})",
            settings.n_ctx, settings.parallel, settings.threads,
        )  # fmt: skip
        models.loaded(next(iter(settings.models)))
    except BadSetting as error:
        _die_of_image_server(_BAD, *str(error).splitlines())
    except CannotServe as error:
        _die_of_image_server(_CANNOT, str(error))
    _say_note()
    threading.Thread(target=_watch_image_model_files, args=(listed,), daemon=True).start()
    server = EncoderDecoderServer((settings.host, settings.port), models, settings.keys)
    _say_on_image_log(f"{', '.join(settings.models)} on port {settings.port}, {settings.parallel} requests at once")
    server.serve_forever()
    sys.exit(0)


def _image_model_folder() -> Path:
    return Path(os.environ.get("MODEL") or "/model")


def _say_note() -> None:
    with suppress(OSError):
        for line in (_image_model_folder() / ".note").read_text(encoding="utf-8").splitlines():
            _say_on_image_log(f"note: {line}")


def _watch_image_model_files(listed: Listing) -> None:
    """End the server when other files are in the folder than at its start, as entrypoint.sh does."""
    seen = listed
    while _image_model_folder().is_dir():
        time.sleep(_WATCH_S)
        now = _image_model_listing()
        is_being_written = any(time.time_ns() - ns < _WRITTEN_NS for _inode, _size, ns in now.values())
        if now == seen != listed and not is_being_written:
            _say_on_image_log("other files are served from now on: starting anew")
            os._exit(0)
        seen = now


def _image_model_listing() -> Listing:
    """The GGUFs of a folder, as they are now."""
    found = {}
    for path in _image_model_folder().rglob("*.gguf"):
        with suppress(OSError):
            status = path.stat()
            found[path] = (status.st_ino, status.st_size, status.st_mtime_ns)
    return found


def _end_image_server(*_: Any) -> NoReturn:
    os._exit(0)  # without waiting for answers in progress


def _die_of_image_server(code: int, fact: str, *advice: str) -> NoReturn:
    _say_on_image_log(f"error: {fact}")
    for line in advice:
        _say_on_image_log(line)
    sys.exit(code)


def _say_on_image_log(text: str) -> None:
    print(f"[serve] {text}", file=sys.stderr, flush=True)  # noqa: T201 (the program's log)


if __name__ == "__main__":
    main()
