"""pip's settings, as options of uv: an index, files and certificates of a site must hold for both."""

from __future__ import annotations

import subprocess
import sys

import pytest

from quantyard.paths import REPO_DIR


@pytest.mark.parametrize(
    ("settings", "options"),
    [
        ((), []),
        (("global.index-url='https://mirror.example/simple'",), ["--default-index", "https://mirror.example/simple"]),
        (
            ("global.extra-index-url='file:///a https://b.example/simple'", "global.find-links='\\n/wheels\\n../more'"),
            ["--index", "file:///a", "--index", "https://b.example/simple",
             "--find-links", "/wheels", "--find-links", "../more"],
        ),
        ((":env:.index-url='https://b'", "global.index-url='https://a'"), ["--default-index", "https://b"]),
        (("global.cert='/a.pem'", "install.cert='/its own.pem'"), ["SSL_CERT_FILE=/its own.pem"]),
        ((":env:.no-index='1'", "global.timeout='60'", "list.format='columns'"), ["--no-index"]),
        ((":env:.no-index='0'", "global.constraint='/c.txt'"), []),
        (("global.proxy='http://proxy.example:3128'",), [""]),
        (("global.trusted-host='mirror.example'",), [""]),
    ],
    ids=["nothing", "index", "lists", "variable", "certificates", "no index", "needless", "proxy", "trusted host"],
)  # fmt: skip
def test_uv_is_told_what_pip_is_told(settings: tuple[str, ...], options: list[str]) -> None:
    argv = [sys.executable, "-S", str(REPO_DIR / "scripts/uv_options.py")]
    done = subprocess.run(argv, input="\n".join(settings), capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == [*options, "end"]
