#!/usr/bin/env python3
"""What a search of tensor types gains on the demo model, and what our three recipes cost: all on text none has read.

How to run:

    make demo                                 # once: it makes the model
    .venv/bin/python scripts/bench_tune.py    # a quarter of an hour on 2 cores, 4 GB of disk

    --target X     the stock quant whose size is the budget (default: Q4_K_M)
    --model DIR    another model than the demo's
    --parts N      parts of the depth (default: 2)     --chunks N   of the search's text (default: 4)
    --types A,B    tensor types of the second search (default: Q4_K,Q6_K, of which Q4_K_M is made; "": no second)
    --no-recipes   the search alone                    --json       one object on stdout

What is measured, and the limit:

    tuned       mean KL divergence of the tuned file less that of the stock quant of at most its size budget, as a share
                of the stock file's, on Quantyard's prose: its 95 % interval must be below zero. The file must not be
                larger than the budget.
    placed      the same of a second search, which has no other types to choose from than the stock quant is made of. A
                model that was quantized once has one type that keeps its weights as they are (the demo's has: Q4_1),
                and the search only has to find that type; this shows what the placement of types gains. No limit.
                scripts/off_grid.py makes a copy of such a model that does not favour a type.
    recipes     the same numbers of each of our recipes beside its base; no limit, they are not made for this model.

ARTIFACTS and ENGINE count as everywhere; what is there already is not made again.

Exit codes:  0 the limit holds · 1 it does not · 2 it cannot be measured
"""

# ruff: noqa: T201 (a script for people prints)
from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any, NoReturn

REPO_DIR = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(REPO_DIR))

from quantyard.metrics.intervals import Z  # noqa: E402 (the path above comes first)
from quantyard.quants.recipe_files import shipped_recipes  # noqa: E402

DEMO = REPO_DIR / "artifacts" / "demo" / "SmolLM2-135M-Instruct"


def main() -> None:
    """Run, print, and exit with the code."""
    args = _parser().parse_args()
    if not args.model.is_dir():
        _stop(f"{args.model} is not there. Type: make demo")
    asked = [f"--model={args.model}", f"--target-size={args.target}", f"--depth-parts={args.parts}"]
    asked += [f"--chunks={args.chunks}"]
    found = {"tuned": _quantyard("tune", *asked)}
    if args.types:
        found["placed"] = _quantyard("tune", *asked, f"--types={args.types}")
    if not args.no_recipes:
        found["recipes"] = _recipes(args.model)
    print(json.dumps(found, indent=2) if args.json else _text(found))
    sys.exit(0 if found["tuned"]["verdict"] == "better" else 1)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="Q4_K_M")
    parser.add_argument("--model", type=Path, default=DEMO)
    parser.add_argument("--parts", type=int, default=2)
    parser.add_argument("--chunks", type=int, default=4)
    parser.add_argument("--types", default="Q4_K,Q6_K")
    parser.add_argument("--no-recipes", action="store_true")
    parser.add_argument("--json", action="store_true")
    return parser


def _quantyard(*argv: str) -> dict[str, Any]:
    run = subprocess.run(
        [sys.executable, "-m", "quantyard", *argv, "--json"], cwd=REPO_DIR, env=os.environ, stdout=subprocess.PIPE,
        text=True, check=False,
    )
    if run.returncode != 0:
        _stop(f"{argv[0]} ended with exit code {run.returncode}.")
    said: dict[str, Any] = json.loads(run.stdout)
    return said


def _recipes(model: Path) -> dict[str, Any]:
    """Size and divergence of our recipes and their bases."""
    names = dict.fromkeys(name for recipe in shipped_recipes() for name in (recipe.base, recipe.name))
    said = _quantyard("eval", f"--model={model}", f"--quant={','.join(names)}", "--suite=smoke", "--limit=1")
    measured = (one for one in said["report"]["measurements"] if one["file"]["label"] in names)
    return {
        one["file"]["label"]: {"size_bytes": one["file"]["size_bytes"], "mean_kld": one["divergence"]["mean_kld"]}
        for one in measured
    }


def _text(found: dict[str, Any]) -> str:
    lines = []
    for name in ("tuned", "placed"):
        if one := found.get(name):
            mark = {"tuned": "ok  " if one["verdict"] == "better" else "FAIL"}.get(name, "    ")
            relative = {end: f"{100 * value:+.1f}" for end, value in one["relative"].items()}
            lines += [_file(label, file) for label, file in one["files"].items()]
            change = f"{relative['value']} % ({relative['low']} to {relative['high']} %)"
            lines.append(f"{mark} {name}: {one['verdict']}: {change}")
    return "\n".join([*lines, *(_file(label, file) for label, file in found.get("recipes", {}).items())])


def _file(label: str, file: dict[str, Any]) -> str:
    kld = file["mean_kld"]
    half = Z * kld["stderr"] if "stderr" in kld else kld["high"] - kld["value"]
    return f"{label:<16} {file['size_bytes']:>13,} bytes   mean KLD {kld['value']:.5f} ± {half:.5f}"


def _stop(message: str) -> NoReturn:
    print(message, file=sys.stderr)
    sys.exit(2)


if __name__ == "__main__":
    main()
