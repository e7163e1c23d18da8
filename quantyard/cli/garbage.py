"""The command `gc`."""

from __future__ import annotations

import argparse

from quantyard.cli.output import print_json, print_line
from quantyard.cli.request import command_request
from quantyard.formatting.numbers import format_bytes


def garbage_command(args: argparse.Namespace) -> None:
    from quantyard.workflows.shared_store import workflow_store_garbage

    request = command_request(args)
    url, found = workflow_store_garbage(request)
    assert request.garbage is not None, "the command has these settings"
    if request.json:
        from quantyard.cli.json_outputs.looking import garbage_output

        print_json(garbage_output(url, found, removed=not request.garbage.dry_run))
        return
    verb = "would be removed" if request.garbage.dry_run else "removed"
    print_line(
        f"{url}: {len(found.attempts)} attempts, {len(found.contents)} contents ({format_bytes(found.contents_bytes)}) "
        f"and {found.others} other objects {verb}"
    )
