"""The command `gc`."""

from __future__ import annotations

import argparse

from quantyard.cli.output import print_json, print_line
from quantyard.cli.request import command_request
from quantyard.formatting.numbers import format_bytes


def garbage_command(args: argparse.Namespace) -> None:
    from quantyard.workflows.shared_store import workflow_store_garbage

    request = command_request(args)
    found = workflow_store_garbage(request)
    assert request.garbage is not None, "the command has these settings"
    if request.json:
        from quantyard.cli.json_outputs.looking import garbage_output

        print_json(garbage_output(found, removed=not request.garbage.dry_run))
        return
    verb = "would be removed" if request.garbage.dry_run else "removed"
    if shared := found.shared:
        print_line(
            f"{found.url}: {len(shared.attempts)} attempts, {len(shared.differing)} results with other bytes, "
            f"{len(shared.contents)} contents ({format_bytes(shared.contents_bytes)}) "
            f"and {shared.others} other objects {verb}"
        )
    size = format_bytes(sum(each.size_bytes for each in found.kept_aside))
    print_line(f"{request.artifacts}: {len(found.kept_aside)} results with other bytes ({size}) {verb}")
