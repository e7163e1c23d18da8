"""The command `node`: what jobs of a cluster call on a node."""

from __future__ import annotations

import argparse
import os
import socket

from quantyard.cli.output import print_line, stderr_console
from quantyard.cli.request import command_request
from quantyard.errors import BadRequest
from quantyard.formatting.numbers import format_elapsed


def node_command(args: argparse.Namespace) -> None:
    from quantyard.workflows.node import ThisNode, check_node, run_node

    request = command_request(args)
    if not request.cluster.store:
        raise BadRequest("STORE is not given.", "Name the shared store: quantyard node run NAME --store PATH|URL")
    names = os.environ
    host = names.get("SLURMD_NODENAME") or names.get("QUANTYARD_NODE_NAME") or socket.gethostname()
    job = f"slurm {names['SLURM_JOB_ID']}" if "SLURM_JOB_ID" in names else names.get("QUANTYARD_NODE_JOB", "")
    node = ThisNode(host, job, names.get("QUANTYARD_NODE_IMAGE", ""))
    if args.action == "check":
        print_line(check_node(request, args.name, node).model_dump_json())
        return
    result = run_node(request, args.name, node, lambda text: stderr_console().print_lines(text, markup=False))
    print_line(f"{result.stage}: {len(result.outputs)} files in {format_elapsed(result.duration_s)} on {host}")
