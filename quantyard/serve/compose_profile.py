"""The profile of compose.yaml that serves the last build: an encoder-decoder has a service of its own.

Compose reads `.env`. While the last build is an encoder-decoder, two lines at its end name that profile; the next build
takes them out again. What else is in the file stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Final

from quantyard.files.atomic import write_file_atomically
from quantyard.formats.gguf import GgufError, read_gguf_header

ENCODER_DECODER: Final = "encoder-decoder"
_NOTE: Final = "# The last build is an encoder-decoder, which llama-server cannot run. Another build removes them."
_VARIABLE: Final = "COMPOSE_PROFILES="
_OF_LLAMA_SERVER: Final = ("cpu", "cuda")


def is_encoder_decoder(files: Sequence[Path]) -> bool:
    """Whether these are files of an encoder-decoder."""
    with suppress(GgufError, OSError):
        return any(read_gguf_header(path).is_encoder_decoder for path in files[:1])
    return False


def choose_compose_profile(repo_dir: Path, artifacts: Path, files: Sequence[Path]) -> None:
    """Let a plain `docker compose up` start the server that these files need, if they are what it serves."""
    env = repo_dir / ".env"
    if artifacts.resolve() != (repo_dir / "artifacts").resolve() or not env.is_file():
        return
    told = env.read_text()
    own = _without_choice(told)
    wanted = own + _choice(own) if is_encoder_decoder(files) else own
    if wanted != told:
        write_file_atomically(env, wanted.encode())


def compose_environment(environment: Mapping[str, str], files: Sequence[Path]) -> Mapping[str, str]:
    """The environment in which compose serves these files, if they need another profile than it would start."""
    told = environment.get("COMPOSE_PROFILES", "")
    if not is_encoder_decoder(files):
        return environment
    return {**environment, "COMPOSE_PROFILES": compose_profiles(told)}


def compose_profiles(profiles: str) -> str:
    """These profiles, with that of encoder-decoders in place of llama-server's."""
    names = [name for name in profiles.split(",") if name and name not in _OF_LLAMA_SERVER]
    return ",".join([ENCODER_DECODER, *(name for name in names if name != ENCODER_DECODER)])


def _choice(own: str) -> str:
    told = [line.removeprefix(_VARIABLE) for line in own.splitlines() if line.startswith(_VARIABLE)]
    return f"{_NOTE}\n{_VARIABLE}{compose_profiles(told[-1] if told else '')}\n"


def _without_choice(text: str) -> str:
    before, found, after = text.partition(f"{_NOTE}\n")
    return before + after.partition("\n")[2] if found else text
