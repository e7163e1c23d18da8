"""The request of a command line."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from quantyard.cli.request import read_request, tell_libraries
from quantyard.cli.settings_file import read_settings_file
from quantyard.requests import BuildRequest


def request_of(args: argparse.Namespace) -> BuildRequest:
    """The request; the libraries of this process are told of its proxies and certificates."""
    request = read_request(args, os.environ, read_settings_file(Path.cwd()))
    tell_libraries(request)
    return request
