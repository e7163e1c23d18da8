"""The proxies, the certificates and the Hub token of a request."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from quantyard.cli.values import proxy_setting, token_setting
from quantyard.errors import BadRequest
from quantyard.files.own_files import kind_of_path, read_named_file, typed_file_path
from quantyard.requests import BuildRequest

# Variables with which programs of this machine name a CA; the containers need it too.
_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "PIP_CERT")
_PEM = re.compile(rb"-----BEGIN [^-]+-----.+?-----END [^-]+-----", re.DOTALL)
_MAX_PEM_BYTES = 16 * 2**20  # of a bundle; that of all public authorities has a quarter of a MiB
_PROXIES = ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY", "NO_PROXY")


def configure_http_libraries(request: BuildRequest) -> None:
    """Set proxies and certificates in the environment of this process, where its libraries read them."""
    os.environ.update(request.environment.proxies or {})
    if bundle := request.environment.ca_bundle:
        os.environ.update(SSL_CERT_FILE=str(bundle), PIP_CERT=str(bundle))


def typed_proxies(values: Mapping[str, str], environment: Mapping[str, str], option: str) -> dict[str, str]:
    """The proxies of the settings and the environment, by variable.

    Args:
        option: the value of --https-proxy on the command line.

    Raises:
        BadRequest: an address is not valid, or every user of this machine sees its password.
    """
    if "@" in option:
        message = "The option --https-proxy contains a user name or password, which every user of this machine sees."
        raise BadRequest(message, "Set the variable HTTPS_PROXY instead.")
    found = {name: environment[name] for name in _variable_spellings(_PROXIES) if environment.get(name)}
    if values["HTTPS_PROXY"]:
        found["HTTPS_PROXY"] = values["HTTPS_PROXY"]
    return {name: url if name.upper() == "NO_PROXY" else proxy_setting(name, url) for name, url in found.items()}


def command_hub_token(environment: Mapping[str, str]) -> str | None:
    """The token of `hf auth login`, from huggingface_hub's constants.HF_TOKEN_PATH; None without one."""
    cache = environment.get("XDG_CACHE_HOME") or "~/.cache"
    home = environment.get("HF_HOME") or f"{cache}/huggingface"
    path = typed_file_path(environment.get("HF_TOKEN_PATH") or f"{home}/token")
    try:
        return token_setting(str(path), path.read_text())
    except (OSError, UnicodeDecodeError):
        return None


def _first_variable_set(environment: Mapping[str, str], names: Sequence[str]) -> str:
    return next((environment[name] for name in names if environment.get(name)), "")


def _variable_spellings(names: Sequence[str]) -> list[str]:
    return [*names, *(name.lower() for name in names)]


def typed_extra_ca(values: Mapping[str, str], environment: Mapping[str, str]) -> Path | None:
    """The file of EXTRA_CA, or of a variable with which other programs name one; None without.

    Raises:
        BadRequest: it is not a PEM file.
    """
    text = values["EXTRA_CA"] or _first_variable_set(environment, _CA_VARIABLES)
    if not text:
        return None
    path = typed_file_path(text).absolute()
    if kind_of_path(path) != "file" or b"-----BEGIN" not in _typed_ca_bundle_bytes(path):
        raise BadRequest(f"EXTRA_CA={text} is not a PEM file.", "Give the file with the proxy's certificate.")
    return path


def _typed_ca_bundle_bytes(path: Path) -> bytes:
    try:
        return read_named_file(path, _MAX_PEM_BYTES)
    except ValueError:
        return b""


def typed_ca_bundle(extra_ca: Path | None, artifacts: Path) -> Path | None:
    """The system's certificates and EXTRA_CA in one file: the libraries take one bundle, and it replaces theirs."""
    if extra_ca is None:
        return None
    import ssl

    import certifi  # comes with requests, which the Docker SDK needs

    system = Path(ssl.get_default_verify_paths().cafile or certifi.where())
    bundle = artifacts / ".ca-bundle.pem"
    bundle.parent.mkdir(parents=True, exist_ok=True)
    # Without duplicates: for a second request of this process, the system's bundle is that of the first.
    content = b"\n".join(dict.fromkeys(_PEM.findall(system.read_bytes() + b"\n" + extra_ca.read_bytes()))) + b"\n"
    if not (bundle.is_file() and bundle.read_bytes() == content):
        temporary = bundle.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_bytes(content)
        temporary.rename(bundle)
    return bundle
