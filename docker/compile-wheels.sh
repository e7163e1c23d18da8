#!/usr/bin/env bash
# Compile the packages of locks/sdists.txt into wheels, and list these with their hashes in compiled.txt beside them.
# It runs in the eval image's build and, by scripts/wheels.sh, on machines without Docker. Sources and build tools are
# checked against the locks; nothing else is downloaded. The sources are left beside the wheels: llama-cpp-python's
# carries llama.cpp's converter.
#
# Usage:  docker/compile-wheels.sh FOLDER          PYTHON=… the interpreter whose pip does it
#         docker/compile-wheels.sh --sources FOLDER      only download the sources
#         CMAKE_ARGS=… docker/compile-wheels.sh FOLDER   llama.cpp's options, in place of llama-cpp.cmake's
# Exit codes:  0 compiled · 1 a step failed
set -euo pipefail
cd "$(dirname "$0")/.."
only_sources=""
if [[ $1 == --sources ]]; then only_sources=1; shift; fi
out=$1 python=${PYTHON:-python3}
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# Elsewhere (Metal on macOS) ggml's own choices stand.
if [[ -z ${CMAKE_ARGS-} && $(uname -s) == Linux ]]; then
    CMAKE_ARGS="-DLLAVA_BUILD=OFF -DCMAKE_PROJECT_llama.cpp_INCLUDE=$PWD/docker/llama-cpp.cmake" # LLAVA: images and sound
    export CMAKE_ARGS
fi
pip=("$python" -m pip --disable-pip-version-check)
"${pip[@]}" install -qq --root-user-action ignore --no-warn-conflicts --require-hashes --only-binary :all: \
    --target "$work/tools" -r locks/build.txt
export PYTHONPATH=$work/tools PATH=$work/tools/bin:$PATH
mkdir -p "$out"
# Even a download asks the package's build backend for its metadata: hence the tools.
"${pip[@]}" download -qq --no-deps --no-build-isolation --no-binary :all: --require-hashes --dest "$out" -r locks/sdists.txt
[[ -z $only_sources ]] || exit 0
"${pip[@]}" wheel -q --no-cache-dir --no-deps --no-build-isolation --no-index --find-links "$out" \
    --no-binary :all: --require-hashes --wheel-dir "$work/wheels" -r locks/sdists.txt
for wheel in "$work"/wheels/*.whl; do
    IFS=- read -r name version _ <<<"${wheel##*/}"
    hash=$("${pip[@]}" hash "$wheel")
    echo "$name==$version ${hash##*$'\n'}"
done >"$work/wheels/compiled.txt"
cp "$work"/wheels/* "$out/"
