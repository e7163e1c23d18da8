"""The process that serves one model to the local server, on a free port of loopback.

A program that can serve a model so, `python -P -m MODULE`:

    stdin   one line of JSON, a `ModelSettings`; later its end, upon which the program must end too
    stdout  one line, "http://127.0.0.1:PORT", once the model is loaded
    stderr  its log
    HTTP    llama-server's API: the routes of `guard.ROUTES` that the model can answer, each only with the header
            "Authorization: Bearer KEY", KEY being that of the `ModelSettings`. A client that closes its connection
            no longer waits for its answer.
"""

from __future__ import annotations

import asyncio
import secrets
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Self

from pydantic import Field

from quantyard.protocol.aborts import TailWithReason, crash_reason, crash_signal, crash_words
from quantyard.protocol.base import ExitCode, Frozen
from quantyard.protocol.cache_types import DEFAULT_CACHE, CacheName

_TAIL_LINES: Final = 20
_LONGEST_LINE: Final = 1 << 20
_SLOW: Final = "unless the disk is very slow, the model's chat template loops forever"
_LOAD_S: Final = 120.0
_LOAD_BYTES_PER_S: Final = 20 << 20


class ModelSettings(Frozen):
    """What a program is told that serves one model."""

    path: Path  # absolute
    name: str  # the model's id in the API
    projector: Path | None = None  # absolute; of what reads pictures or sound for it
    context_size: int  # tokens of all requests, of which each has an equal part; 0: as the model was trained
    parallel: int  # requests answered at once
    threads: int
    n_gpu_layers: int
    cache_type: CacheName = DEFAULT_CACHE  # of the KV cache
    key: str = Field(default_factory=lambda: secrets.token_urlsafe(32))  # between the two processes only


class ModelEnded(Exception):
    """The process of a model ended by itself, or had to be ended; its text says how, and the reason of llama.cpp.

    Attributes:
        exit_code: as a shell says it, 128 + the signal that killed it.
        tail: the end of its log, as far as that was kept back.
        is_crash: whether llama.cpp crashed on the model; else it was killed, or ended itself.
    """

    def __init__(self, name: str, exit_code: int, how: str, tail: str = "") -> None:
        super().__init__(f"The server of {name} {how}.")
        self.tail = tail
        self.is_crash = bool(crash_signal(exit_code))
        self.exit_code = exit_code if exit_code >= 0 else 128 - exit_code


@dataclass
class ModelProcess:
    """A running process; `start` makes one.

    Its log is passed on to `log` until the model is loaded. After that it may hold what clients sent, so only the last
    lines from an assertion on are kept, for the case that it crashes.
    """

    settings: ModelSettings
    address: str
    n_requests: int = 0  # in progress
    _process: asyncio.subprocess.Process = field(kw_only=True)
    _log: _Log = field(kw_only=True)

    @classmethod
    async def start(cls, module: str, settings: ModelSettings, log: Callable[[str], None]) -> Self:
        """Start the program `module` and wait until it has loaded the model.

        Raises:
            ModelEnded: it could not, or not in time.
        """
        process, kept = await _spawn_model_process(module, log)
        try:
            address = await _model_process_address(process, settings)
        except TimeoutError:
            await _kill_model_process(process)
            how = f"was not ready in {model_load_timeout_s(settings.path):.0f} s: {_SLOW}"
            raise ModelEnded(settings.name, ExitCode.BAD_REQUEST, how) from None
        except BaseException:
            await _kill_model_process(process)
            raise
        if not address:
            code = await process.wait()
            await kept.finished()
            raise ModelEnded(settings.name, code, _how_model_process_ended(code, str(kept.tail)))
        kept.keep_back()
        return cls(settings, address, _process=process, _log=kept)

    async def ended(self) -> ModelEnded:
        """Wait until the process ends."""
        code = await self._process.wait()
        await self._log.finished()
        tail = str(self._log.tail)
        return ModelEnded(self.settings.name, code, _how_model_process_ended(code, tail), tail)

    async def stop(self) -> None:
        """End the process."""
        await _kill_model_process(self._process)


async def _spawn_model_process(module: str, log: Callable[[str], None]) -> tuple[asyncio.subprocess.Process, _Log]:
    pipe = asyncio.subprocess.PIPE
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-P", "-m", module, stdin=pipe, stdout=pipe, stderr=pipe, limit=_LONGEST_LINE,
        process_group=0,  # a Ctrl-C of the terminal reaches the parent only
    )  # fmt: skip
    assert process.stderr is not None
    return process, _Log(process.stderr, log)


async def _model_process_address(process: asyncio.subprocess.Process, settings: ModelSettings) -> str:
    """Tell the program its settings and wait for its address; "": it ended. Raises TimeoutError."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(settings.model_dump_json().encode() + b"\n")
    async with asyncio.timeout(model_load_timeout_s(settings.path)):
        return (await process.stdout.readline()).decode().strip()


def _how_model_process_ended(exit_code: int, tail: str) -> str:
    if exit_code == -signal.SIGKILL:
        return "was killed (SIGKILL): memory ran out, or somebody ended it"
    return crash_words(exit_code, tail) or f"ended with exit code {exit_code}"


def model_load_timeout_s(path: Path) -> float:
    """How long a model may take to load, as in server/image/entrypoint.sh. llama.cpp renders its chat template too."""
    return _LOAD_S + sum(file.stat().st_size for file in path.parent.glob("*.gguf")) / _LOAD_BYTES_PER_S


class _Log:
    """Reads the log of a process to its end."""

    def __init__(self, stream: asyncio.StreamReader, log: Callable[[str], None]) -> None:
        self.tail = TailWithReason(_TAIL_LINES)
        self._is_private = self._has_reason = False
        self._task = asyncio.create_task(self._read(stream, log))

    def keep_back(self) -> None:
        """From now on the log may hold what clients sent."""
        self.tail = TailWithReason(_TAIL_LINES)
        self._is_private = True

    async def finished(self) -> None:
        """Wait for the rest."""
        await self._task

    async def _read(self, stream: asyncio.StreamReader, log: Callable[[str], None]) -> None:
        while block := await _model_process_line(stream):
            line = printable_server_log_line(block.decode(errors="replace"))
            if not self._is_private:
                log(line)
            self._has_reason = self._has_reason or bool(crash_reason(line))
            if self._has_reason or not self._is_private:
                self.tail.append(line)


async def _model_process_line(stream: asyncio.StreamReader) -> bytes:
    """The next line; b"" at the end. What is longer than the limit comes in parts."""
    try:
        return await stream.readuntil()
    except asyncio.IncompleteReadError as error:
        return error.partial
    except asyncio.LimitOverrunError as error:
        return await stream.read(error.consumed)


def printable_server_log_line(line: str) -> str:
    """A line without control characters, such as a terminal's escape sequences."""
    return "".join(sign if sign.isprintable() else repr(sign)[1:-1] for sign in line.rstrip())


async def _kill_model_process(process: asyncio.subprocess.Process) -> None:
    """It has no state to save."""
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()
