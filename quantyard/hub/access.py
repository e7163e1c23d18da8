"""How the Hub is reached, apart from the client: a build from a folder needs no more."""

from __future__ import annotations

from typing import Final

from quantyard.records import dataclass

CONFIG_LIMIT_BYTES: Final = 4 * 1024 * 1024  # of a config.json


@dataclass(frozen=True)
class HubAccess:
    """The Hub's endpoint (None: huggingface.co) and the token (None: anonymous)."""

    endpoint: str | None = None
    token: str | None = None

    def __post_init__(self) -> None:
        """Without the line end that a token from a file brings along: no HTTP header may hold one."""
        object.__setattr__(self, "token", (self.token or "").strip() or None)

    def __repr__(self) -> str:
        """Hides the token from logs and tracebacks."""
        return f"HubAccess(endpoint={self.endpoint!r}, token={'set' if self.token else None})"
