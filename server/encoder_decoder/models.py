"""The models of a server: one, or several of a folder, which requests choose by name."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock
from typing import Any

from quantyard.llama.library import LlamaLibrary
from server.encoder_decoder.model import EncoderDecoder
from server.limits.model_names import requested_model


@dataclass
class ServedModels:
    """Loads a model when it is first asked for, and keeps it: what is not used stays on the disk (mmap)."""

    library: LlamaLibrary
    paths: Mapping[str, Path]  # by the name in the API, in the order in which they are listed
    version: str  # what serves, for /props
    n_ctx: int = 0
    parallel: int = 4
    threads: int = 1
    _loaded: dict[str, EncoderDecoder] = field(default_factory=dict)
    _loading: Lock = field(default_factory=Lock)
    _since: int = field(default_factory=lambda: int(time.time()))

    def name_of(self, asked: str) -> str:
        """The name of the model that answers.

        Raises:
            UnknownModel: the name is not served.
        """
        return requested_model(list(self.paths), {"model": asked})

    def loaded(self, asked: str) -> EncoderDecoder:
        """The model that answers.

        Raises:
            UnknownModel: see `name_of`.
            CannotServe: it cannot be loaded.
        """
        name = self.name_of(asked)
        with self._loading:
            if name not in self._loaded:
                self._loaded[name] = EncoderDecoder(
                    self.library, self.paths[name], self.n_ctx, self.parallel, self.threads
                )
            return self._loaded[name]

    def listed(self) -> list[dict[str, Any]]:
        """The models as llama-server lists them, as far as clients read it."""
        return [
            {"id": name, "object": "model", "created": self._since, "owned_by": "llamacpp"} for name in self.paths
        ]

    def props(self) -> dict[str, Any]:
        """What the server says of itself, of the first model."""
        model = self.loaded(next(iter(self.paths)))
        return {
            "server": self.version, "build_info": self.version, "total_slots": model.parallel,
            "default_generation_settings": {"n_ctx": model.n_ctx}, "chat_template": "",
        }  # fmt: skip
