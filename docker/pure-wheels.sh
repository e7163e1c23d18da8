#!/usr/bin/env bash
# Build the packages of locks/pure-sdists.txt, pure Python without a wheel on PyPI, into FOLDER, and add them with their
# hashes to its compiled.txt. Seconds; a list of its own, since any change of locks/sdists.txt compiles llama.cpp again.
# The mechanism is compile-wheels.sh: sources and build tools are checked against the locks.
#
# Usage:  docker/pure-wheels.sh FOLDER             PYTHON=… the interpreter whose pip does it
# Exit codes:  0 built · 1 a step failed
set -euo pipefail
cd "$(dirname "$0")/.."
list=$(mktemp -d)
trap 'rm -rf "$list"' EXIT

mkdir -p "$list/docker" "$list/locks" "$1"
cp docker/compile-wheels.sh "$list/docker/"
cp locks/build.txt "$list/locks/"
cp locks/pure-sdists.txt "$list/locks/sdists.txt"
CMAKE_ARGS=none "$list/docker/compile-wheels.sh" "$list/wheels"
cp "$list"/wheels/*.whl "$1/"
cat "$list/wheels/compiled.txt" >>"$1/compiled.txt"
