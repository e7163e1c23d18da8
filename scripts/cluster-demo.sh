#!/usr/bin/env bash
# The demo on a Slurm of two nodes: network namespaces of this machine, brought up for it and taken down again.
#
# Usage:  sudo make cluster-demo
# Exit codes:  the demo's; 1: the cluster could not be brought up
set -euo pipefail
cd "$(dirname "$0")/.."

was_up=1
scripts/cluster-debian.sh status >/dev/null 2>&1 || was_up=0
exported=$(scripts/cluster-debian.sh up)
eval "$exported"
[[ $was_up == 1 ]] || trap 'scripts/cluster-debian.sh down' EXIT
ENGINE=slurm .venv/bin/python -m quantyard demo
