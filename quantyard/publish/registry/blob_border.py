"""Which answers of a registry are read as they come, whatever address its storage has."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from quantyard.network.bounded_http import HttpBorder

if TYPE_CHECKING:
    import httpx2

IS_BLOB: Final = "quantyard.blob"  # the extension of a request for a blob


class BlobBorder(HttpBorder):
    """A blob's body is read as it comes; every other answer of a registry at once."""

    def is_file(self, request: httpx2.Request) -> bool:
        """Whether the request asks for a blob."""
        return IS_BLOB in request.extensions
