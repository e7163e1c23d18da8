"""The proxy of compose.yaml in front of a server under test: the same nginx and files, told where the two stand.

In the image of the contract test PROXY_NGINX names the program, with whatever of it begins with /usr/lib in the folder
PROXY_ROOT, and PROXY_KEY_FILE where the proxy's link to the key leads.
"""

from __future__ import annotations

import os
import resource
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quantyard.protocol.base import ExitCode
from quantyard.protocol.runner import StageFailure

_FILES: Final = Path(__file__).parents[1] / "proxy"
# Where a stage's user is root, as with a rootless daemon, it has no right to become another, which nginx would try.
_AS_ROOT: Final = "user root;\nmaster_process off;\n"
_TEMPORARY: Final = Path("/tmp/body")  # noqa: S108  (as run.sh makes it: a tmpfs of the container)


@dataclass(frozen=True)
class ProxyFiles:
    """Where the parts of the proxy are in this image."""

    nginx: str
    root: str  # before /usr/lib
    key_file: Path

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> ProxyFiles | None:
        """None: there is no proxy here, and the server is asked directly."""
        nginx = environment.get("PROXY_NGINX")
        if not nginx:
            return None
        return cls(nginx, environment.get("PROXY_ROOT", ""), Path(environment["PROXY_KEY_FILE"]))

    def command(self, folder: Path, port: int, model_port: int) -> tuple[str, ...]:
        """What starts it, with its configuration written to `folder`.

        Raises:
            StageFailure: the configuration is not as it is expected here.
        """
        config = folder / "nginx.conf"
        text = api_proxy_config((_FILES / "nginx.conf").read_text(), self.root, port, model_port)
        config.write_text(text if os.geteuid() else _AS_ROOT + text)
        _TEMPORARY.mkdir(exist_ok=True)
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # as run.sh does: two for each connection
        return (self.nginx, "-c", str(config))


def api_proxy_config(text: str, root: str, port: int, model_port: int) -> str:
    """nginx.conf for a proxy on loopback's `port` before a server on `model_port`. Limits and routes stay as they are.

    Raises:
        StageFailure: what must be changed is not there, or not as often as it should.
    """
    changes = (
        ("load_module /usr/lib/", f"load_module {root}/usr/lib/", 1),
        ("listen 8080 ", f"listen 127.0.0.1:{port} ", 1),
        ("server model:8080 resolve ", f"server 127.0.0.1:{model_port} ", 1),
        ("resolver 127.0.0.11 valid=5s ipv6=off;", "", 1),
        ("include errors.conf;", f"include {_FILES}/errors.conf;", 2),
    )
    for old, new, n in changes:
        if text.count(old) != n:
            message = f"server/proxy/nginx.conf has {old.strip()!r} {text.count(old)} times, not {n}."
            raise StageFailure(ExitCode.BUG, "serve-proxy", message, "Change launch_proxy.py with it.")
        text = text.replace(old, new)
    return text
