"""The proxy of compose.yaml in front of a server under test: the same nginx and files, with other addresses.

In the image of the contract test, PROXY_NGINX is the program, PROXY_ROOT the folder that holds its /usr/lib, and
PROXY_KEY_FILE the target of the proxy's link to the key.
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
# As root (with a rootless daemon), nginx would try to switch to another user, which it has no right to.
_AS_ROOT: Final = "user root;\nmaster_process off;\n"
_TEMPORARY: Final = Path("/tmp/body")  # noqa: S108  (as run.sh makes it: a tmpfs of the container)


@dataclass(frozen=True)
class ProxyFiles:
    """Where the parts of the proxy are in this image."""

    nginx: str
    root: str  # prefix of /usr/lib
    key_file: Path

    @classmethod
    def of(cls, environment: Mapping[str, str]) -> ProxyFiles | None:
        """The proxy named by the environment; None: there is none, and requests go to the server directly."""
        nginx = environment.get("PROXY_NGINX")
        if not nginx:
            return None
        return cls(nginx, environment.get("PROXY_ROOT", ""), Path(environment["PROXY_KEY_FILE"]))

    def command(self, folder: Path, port: int, model_port: int) -> tuple[str, ...]:
        """Write the configuration to `folder`; returns the command that starts the proxy.

        Raises:
            StageFailure: nginx.conf does not have the lines that must be changed.
        """
        config = folder / "nginx.conf"
        text = api_proxy_config((_FILES / "nginx.conf").read_text(), self.root, port, model_port)
        config.write_text(text if os.geteuid() else _AS_ROOT + text)
        _TEMPORARY.mkdir(exist_ok=True)
        _soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # as in run.sh: a connection takes two files
        return (self.nginx, "-c", str(config))


def api_proxy_config(text: str, root: str, port: int, model_port: int) -> str:
    """nginx.conf for a proxy on loopback `port` in front of a server on `model_port`; limits and routes are unchanged.

    Raises:
        StageFailure: a line to change does not occur as often as expected.
    """
    changes = (
        ("load_module /usr/lib/", f"load_module {root}/usr/lib/", 1),
        ("listen 8080 ", f"listen 127.0.0.1:{port} ", 1),
        ("server model:8080 resolve ", f"server 127.0.0.1:{model_port} ", 2),
        ("resolver 127.0.0.11 valid=1s ipv6=off;", "", 1),
        ("include errors.conf;", f"include {_FILES}/errors.conf;", 2),
    )
    for old, new, n in changes:
        if text.count(old) != n:
            message = f"server/proxy/nginx.conf has {old.strip()!r} {text.count(old)} times, not {n}."
            raise StageFailure(ExitCode.BUG, "serve-proxy", message, "Change launch_proxy.py with it.")
        text = text.replace(old, new)
    return text
