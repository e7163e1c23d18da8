"""The request of a command line."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from quantyard.cli.request import read_request
from quantyard.cli.settings_file import read_settings_file
from quantyard.requests import BuildRequest


def request_of(args: argparse.Namespace) -> BuildRequest:
    """The request; and what libraries of this process read for themselves is put where they look."""
    request = read_request(args, os.environ, read_settings_file(Path.cwd()))
    os.environ.update(request.environment.proxies or {})
    if bundle := request.environment.ca_bundle:
        os.environ.update(SSL_CERT_FILE=str(bundle), PIP_CERT=str(bundle))
    return request
