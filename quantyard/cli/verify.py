"""The command that checks what was published."""

from __future__ import annotations

import argparse
import sys

from quantyard.cli.output import data, print_json
from quantyard.cli.render import release as say
from quantyard.cli.request import request_of
from quantyard.cli.terminal_reporter import TerminalReporter
from quantyard.protocol.exit_codes import Answer
from quantyard.workflows import verify as workflow


def verify(args: argparse.Namespace) -> None:
    """Check a file, a folder or a repo against its manifest."""
    request = request_of(args)
    found = workflow.verify(request, TerminalReporter())
    if request.json:
        print_json({"checks": [check.__dict__ for check in found.checks], "state": found.state})
    else:
        data().print(say.checks_text(found.checks), soft_wrap=True)
    if found.state != "ok":
        sys.exit(Answer.VERIFY_FAILED)
