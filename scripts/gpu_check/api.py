#!/usr/bin/env python3
"""Runs the API test on llama-server with a model's layers on the GPU, or without one: what llama-server alone promises.

Usage:  api.py MODEL.gguf LLAMA_BIN OUT.json [--layers 999]
"""

# ruff: noqa: T201  (it is a script)
from __future__ import annotations

import argparse
import os
import sys
import tempfile
from pathlib import Path
from typing import Final

from server.api_checks.launch import Launch, ServedModel
from server.contract import run_contract_checks

# Kept by the proxy in front of a server, or by the server's own limits, and not by llama-server alone: it waits 300 s
# for slow clients, and a hostile grammar ends it.
OF_THE_PROXY: Final = frozenset({
    "slow-clients", "large-body", "closed-routes", "hostile-grammars", "hostile-schemas", "large-tokenize",
})  # fmt: skip


def serving_program(llama_bin: Path, folder: Path, layers: int) -> Path:
    """A folder with a `llama-server` that adds the layers on the GPU to what it is started with."""
    program = folder / "bin" / "llama-server"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec "{llama_bin}/llama-server" --n-gpu-layers {layers} "$@"\n')
    program.chmod(0o755)
    return program.parent


def main() -> None:
    """Parse the arguments, serve, and check."""
    parser = argparse.ArgumentParser(description="Runs the API test on llama-server.")
    parser.add_argument("model", type=Path)
    parser.add_argument("llama_bin", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--layers", type=int, default=999)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="quantyard-gpu-") as name:
        folder = Path(name)
        bin_folder = serving_program(args.llama_bin.absolute(), folder, args.layers)
        environment = {**os.environ, "LLAMA_BIN": str(bin_folder)}
        with ServedModel(Launch(args.model.absolute(), folder, environment)) as served:
            report = run_contract_checks(
                served.address, served.key,
                lambda done, total, check: print(f"\r{done} of {total} checks  {check:<40}", end="", file=sys.stderr),
                without=OF_THE_PROXY,
            )
    print(file=sys.stderr)
    args.out.write_text(report.model_dump_json(indent=2) + "\n")


if __name__ == "__main__":
    main()
