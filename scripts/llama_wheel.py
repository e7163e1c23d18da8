#!/usr/bin/env python3
"""Finds, fetches and records upstream's own wheels of llama-cpp-python, so that nothing need be compiled.

Only a file whose SHA-256 is in locks/llama-wheels.sha256 is taken, so whoever serves the index decides nothing but
whether there is a file. The standard library alone: it runs before any virtual environment exists.

    scripts/llama_wheel.py plan            one line: the address of the wheel that suits this machine
    scripts/llama_wheel.py fetch FOLDER    download it there, compare its hash, and print its line for pip
    scripts/llama_wheel.py record VERSION  the lines of the lock, from upstream's releases

LLAMA_WHEEL: auto (cpu on Linux, metal on macOS), or a folder of the index: cpu, cu118 … cu132, metal, vulkan.
LLAMA_WHEEL_INDEX: the index, or a mirror of it. EXTRA_CA, PIP_CERT: the CA of a proxy. HTTPS_PROXY as usual.
Exit codes:  0 found · 1 none, and stdout says why · 2 wrong usage
"""

from __future__ import annotations

import hashlib
import http.client
import json
import os
import platform
import re
import ssl
import sys
import time
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import IO
from urllib.parse import unquote, urldefrag, urljoin, urlsplit

# ruff: noqa: T201 (a script for shells prints)

REPO = Path(__file__).resolve().parents[1]
LOCK = REPO / "locks" / "llama-wheels.sha256"
INDEX = "https://abetlen.github.io/llama-cpp-python/whl"
RELEASES = "https://api.github.com/repos/abetlen/llama-cpp-python/releases/tags"
# The folders of the index whose releases are looked for; upstream's tags end in them, but for cpu.
FOLDERS = ("cpu", "metal", "cu118", "cu121", "cu122", "cu123", "cu124", "cu125", "cu130", "cu132", "vulkan")
_TIMEOUT_S = 10.0  # of each answer
_DOWNLOAD_TIMEOUT_S = 900.0  # of a whole file
_PAGE_BYTES = 8 * 2**20
_WHEEL_BYTES = 2**31
_BLOCK_BYTES = 2**18


class NoWheelError(Exception):
    """There is no wheel to take; the message says why."""


@dataclass(frozen=True)
class Wheel:
    """A line of the lock."""

    sha256: str
    folder: str  # of the index
    name: str  # of the file

    @property
    def platforms(self) -> list[str]:
        """Such as manylinux_2_17_x86_64."""
        return self.name.removesuffix(".whl").rpartition("-")[2].split(".")


def pinned_version() -> str:
    """That of llama-cpp-python in locks/sdists.txt."""
    found = re.search(r"^llama-cpp-python==(\S+)", (REPO / "locks" / "sdists.txt").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def read_lock(path: Path) -> list[Wheel]:
    """Its lines, in the format of sha256sum."""
    lines = path.read_text().splitlines() if path.exists() else []
    found = (re.fullmatch(r"([0-9a-f]{64})  ([\w.-]+)/([\w.-]+\.whl)", line) for line in lines)
    return [Wheel(*line.groups()) for line in found if line]


def suits(tag: str) -> bool:
    """Whether a wheel of this platform tag runs on this machine's system and architecture."""
    machine = platform.machine()
    if linux := re.fullmatch(r"manylinux_(\d+)_(\d+)_(\w+)", tag):
        name, version = platform.libc_ver()
        newest = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
        wanted = (int(linux[1]), int(linux[2]))
        return platform.system() == "Linux" and name == "glibc" and linux[3] == machine and newest >= wanted
    if mac := re.fullmatch(r"macosx_(\d+)_(\d+)_(\w+)", tag):
        newest = tuple(int(part) for part in re.findall(r"\d+", platform.mac_ver()[0])[:2])
        wanted = (int(mac[1]), int(mac[2]))
        return platform.system() == "Darwin" and mac[3] in (machine, "universal2") and newest >= wanted
    return False


def known_wheel() -> Wheel:
    """The wheel of the lock that this machine takes."""
    version, folder = pinned_version(), os.environ.get("LLAMA_WHEEL", "")
    if folder in ("", "auto"):
        folder = "metal" if platform.system() == "Darwin" else "cpu"
    mine = [wheel for wheel in read_lock(LOCK) if wheel.folder == folder and f"-{version}-" in wheel.name]
    for wheel in mine:
        if any(suits(tag) for tag in wheel.platforms):
            return wheel
    here = f"{platform.system()} {platform.machine()}"
    raise NoWheelError(f"no hash of a prebuilt wheel ({folder}, {version}) for {here} is in locks/{LOCK.name}")


class _Links(HTMLParser):
    """The addresses of a page of the index (PEP 503)."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for name, value in attrs if tag == "a" and name == "href" and value]


def address_of(wheel: Wheel) -> str:
    """Where the index says that the file lies."""
    page = f"{os.environ.get('LLAMA_WHEEL_INDEX') or INDEX}/{wheel.folder}/llama-cpp-python/"
    with open_url(page) as answer:
        try:
            text = answer.read(_PAGE_BYTES).decode("utf-8", "replace")
        except (OSError, http.client.HTTPException) as error:
            raise NoWheelError(f"{page} broke off ({reason_of(error)})") from error
        page = answer.geturl()
    links = _Links()
    links.feed(text)
    for link in links.found:
        with suppress(ValueError):  # not an address
            url = urldefrag(urljoin(page, link)).url
            parts = urlsplit(url)
            if unquote(parts.path).rpartition("/")[2] == wheel.name and parts.scheme in ("http", "https"):
                return url
    raise NoWheelError(f"{page} does not list {wheel.name}")


def open_url(url: str) -> http.client.HTTPResponse:
    """Ask for an address; `NoWheelError` says what kept it from answering."""
    if urlsplit(url).scheme not in ("http", "https"):
        raise NoWheelError(f"{url} is not an address of HTTP")
    context = ssl.create_default_context()
    for name in ("EXTRA_CA", "PIP_CERT"):
        if os.environ.get(name):
            with suppress(OSError):  # a wrong file is said by what follows: the certificate is not known
                context.load_verify_locations(os.environ[name])
    request = urllib.request.Request(url, headers={"User-Agent": "quantyard"})  # noqa: S310
    opener = urllib.request.build_opener(urllib.request.HTTPSHandler(context=context))
    try:
        answer = opener.open(request, timeout=_TIMEOUT_S)
    except urllib.error.HTTPError as error:
        raise NoWheelError(f"{url} answered {error.code}") from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise NoWheelError(f"{urlsplit(url).netloc} cannot be reached ({reason_of(error)})") from error
    assert isinstance(answer, http.client.HTTPResponse)
    return answer


def reason_of(error: Exception) -> str:
    """One line."""
    said = getattr(error, "reason", None) or error
    said = getattr(said, "strerror", None) or said
    return " ".join(str(said).split()) or type(error).__name__


def fetch(folder: Path) -> str:
    """Download the wheel of this machine into `folder`, and compare its hash; returns its entry in a list for pip."""
    wheel = known_wheel()
    url = address_of(wheel)
    with open_url(url) as answer:
        size, host = int(answer.headers.get("Content-Length") or 0), urlsplit(url).netloc
        print(f"Downloading upstream's wheel from {host} ({size / 1e6:.0f} MB): {wheel.name}", file=sys.stderr)
        path = folder / wheel.name
        try:
            with path.open("wb") as file:
                found = copy_hashed(answer, file)
        except (OSError, http.client.HTTPException) as error:
            path.unlink(missing_ok=True)
            raise NoWheelError(f"the download of {url} broke off ({reason_of(error)})") from error
    if found != wheel.sha256:
        path.unlink()
        raise NoWheelError(f"{url} is not the recorded file: its SHA-256 is {found}, not {wheel.sha256}")
    return f"llama_cpp_python=={pinned_version()} --hash=sha256:{wheel.sha256}"


def copy_hashed(answer: IO[bytes], file: IO[bytes]) -> str:
    """Copy an answer within the limits of size and time; returns its SHA-256."""
    digest, copied, end = hashlib.sha256(), 0, time.monotonic() + _DOWNLOAD_TIMEOUT_S
    while block := answer.read(_BLOCK_BYTES):
        copied += len(block)
        if copied > _WHEEL_BYTES or time.monotonic() > end:
            raise OSError("too large, or too slow")
        digest.update(block)
        file.write(block)
    return digest.hexdigest()


def recorded(version: str) -> list[str]:
    """The lines of the lock for one version, as upstream's releases state them.

    Raises:
        NoWheelError: they cannot be read.
    """
    found = [wheel for folder in FOLDERS for wheel in released(version, folder)]
    if not found:
        raise NoWheelError(f"upstream has released no wheel of {version}")
    return sorted(f"{wheel.sha256}  {wheel.folder}/{wheel.name}" for wheel in found)


def released(version: str, folder: str) -> list[Wheel]:
    """The wheels of one release, with the hashes that its host states; none where there is no such release."""
    tag = f"v{version}" + ("" if folder == "cpu" else f"-{folder}")
    try:
        with open_url(f"{os.environ.get('LLAMA_WHEEL_RELEASES') or RELEASES}/{tag}") as answer:
            assets = json.load(answer)["assets"]
    except NoWheelError as error:
        if str(error).endswith("answered 404"):
            return []
        raise
    except (ValueError, KeyError, TypeError) as error:
        raise NoWheelError(f"the release {tag} is not described as expected ({error})") from error
    found = []
    for asset in assets:
        name, digest = str(asset.get("name")), re.fullmatch(r"sha256:([0-9a-f]{64})", str(asset.get("digest")))
        if digest and re.fullmatch(r"llama_cpp_python-[\w.-]+-(manylinux|macosx)[\w.]+\.whl", name):
            found.append(Wheel(digest[1], folder, name))
    return found


def main(argv: list[str]) -> int:
    """Run one of the three."""
    try:
        if argv == ["plan"]:
            print(address_of(known_wheel()))
        elif len(argv) == 2 and argv[0] == "fetch":
            print(fetch(Path(argv[1])))
        elif len(argv) == 2 and argv[0] == "record":
            print("\n".join(recorded(argv[1])))
        else:
            print("Usage: scripts/llama_wheel.py plan | fetch FOLDER | record VERSION", file=sys.stderr)
            return 2
    except NoWheelError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
