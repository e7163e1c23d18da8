#!/usr/bin/env bash
# Is this machine's GPU build of llama.cpp right? Builds the pinned llama.cpp for the GPU, makes a random model of about
# 1B weights, and prints one table: what is computed with all layers on the GPU against none, each with its bound; the
# API test of the server on both; and how much faster the GPU is.
#
# Needs: an NVIDIA GPU, nvcc, CMake, a C++ compiler, Python 3.11 or later with numpy; about 6 GB of disk. No network, if
# the folder that --pack makes was carried here. On 16 cores it takes less than 9 minutes, most of them for compiling.
#
# Usage:  scripts/check-gpu.sh                 on the machine with the GPU
#         scripts/check-gpu.sh --cpu           the same with no layer on a GPU in both columns, and no nvcc: a trial run
#         scripts/check-gpu.sh --pack          where there is a network: put what the other machine lacks into gpu-check/
# Variables:  PACK=gpu-check    the folder of --pack
#             WORK=/tmp/…       what is built and measured; what is built there already is used again
#             MILLIONS=1000     weights of the random model, in millions
#             CUDA_ARCH=native  the GPU to compile for, such as 90; native asks the one that is here
# Exit codes:  0 all within the bounds · 1 something is not, or a step failed · 2 wrong usage · 45 a tool is missing
set -euo pipefail
cd "$(dirname "$0")/.."

PACK=${PACK:-gpu-check} WORK=${WORK:-${TMPDIR:-/tmp}/quantyard-gpu-check} MILLIONS=${MILLIONS:-1000}
CUDA_ARCH=${CUDA_ARCH:-native}
# To carry wheels for one more Python: add it.
PYTHONS="3.11 3.12 3.13"
# What our code imports beside numpy, at the versions of locks/bench.txt.
PACKAGES="pydantic pydantic-core annotated-types typing-extensions typing-inspection jinja2 markupsafe diskcache httpx2
    httpcore2 h11 idna certifi truststore anyio jsonschema
    jsonschema-specifications referencing rpds-py attrs pyyaml"
# Of llama.cpp's sources: what the libraries and the server are made of. 26 MB of 170.
SOURCES="CMakeLists.txt LICENSE cmake common include src vendor scripts/ui-assets.cmake ggml/CMakeLists.txt ggml/cmake
    ggml/include ggml/src gguf-py/gguf tools/mtmd tools/server tools/ui/CMakeLists.txt models/ggml-vocab-phi-3.gguf"
OTHER_BACKENDS="blas cann et hexagon hip metal musa opencl openvino rpc sycl virtgpu vulkan webgpu zdnn zendnn"

say() { echo "$*" >&2; }
die() { say "$1"; [[ -z ${2-} ]] || say "→ $2"; exit "${3:-1}"; }

main() {
    local gpu=ON
    case ${1-} in
        "") ;;
        --cpu) gpu=OFF ;;
        --pack) pack; return ;;
        *) say "Unknown argument '$1'. Usage: scripts/check-gpu.sh [--cpu|--pack]"; exit 2 ;;
    esac
    check_tools "$gpu"
    mkdir -p "$WORK"
    unpack
    build "$gpu"
    environment
    check "$gpu"
}

# ---- where there is a network ------------------------------------------------------------------------

pack() {
    local version
    rm -rf "$PACK"
    mkdir -p "$PACK/wheels" "$WORK"
    awk '/^[A-Za-z]/ { wanted = /^llama-cpp-python==/ } wanted' locks/sdists.txt >"$WORK/sdist.txt"
    version=$(sed -n 's/^llama-cpp-python==\([^ ]*\).*/\1/p' "$WORK/sdist.txt")
    say "Fetching the sources of llama-cpp-python $version …"
    fetch --no-binary llama-cpp-python --dest "$WORK" -r "$WORK/sdist.txt"
    prune "$WORK/llama_cpp_python-$version.tar.gz" "$version"
    locked >"$PACK/requirements.txt"
    local python
    for python in $PYTHONS; do
        say "Fetching wheels for Python $python …"
        fetch --only-binary :all: --python-version "$python" --platform manylinux_2_28_x86_64 \
            --platform manylinux_2_17_x86_64 --platform manylinux2014_x86_64 --dest "$PACK/wheels" -r "$PACK/requirements.txt"
    done
    say "$PACK is ready, $(du -sh "$PACK" | cut -f1). Carry the checkout with it to the machine, and type: scripts/check-gpu.sh"
}

fetch() {
    python3 -m pip download -q --disable-pip-version-check --no-deps --require-hashes "$@" ||
        die "This cannot be fetched." "Check the network and its proxy: HTTPS_PROXY, PIP_CERT, PIP_INDEX_URL"
}

# The packages as locked, with their hashes
locked() {
    awk -v wanted=" $(echo $PACKAGES) " '
        /^[A-Za-z]/ { keep = index(wanted, " " substr($1, 1, index($1, "==") - 1) " ") } keep' locks/bench.txt
}

# prune SDIST VERSION: what is built of it, into $PACK/llama.cpp.tar.gz, and the Python package beside it
prune() {
    local top=$WORK/llama_cpp_python-$2 keep=$WORK/llama.cpp backend
    rm -rf "$top" "$keep"
    tar xzf "$1" -C "$WORK"
    mkdir -p "$keep"
    (cd "$top/vendor/llama.cpp" && tar cf - $SOURCES tools/ui/*.in tools/ui/*.cmake) | tar xf - -C "$keep"
    for backend in $OTHER_BACKENDS; do rm -rf "$keep/ggml/src/ggml-$backend"; done
    rm -rf "$keep"/tools/server/{bench,tests} "$keep"/tools/mtmd/{tests,legacy-models} "$keep"/tools/server/*.md
    printf 'find_package(Threads REQUIRED)\nllama_add_compile_flags()\n%s\n' \
        "add_subdirectory(mtmd)
add_subdirectory(ui)
add_subdirectory(server)" >"$keep/tools/CMakeLists.txt"
    tar czf "$PACK/llama.cpp.tar.gz" -C "$WORK" llama.cpp
    tar czf "$PACK/llama_cpp.tar.gz" -C "$top" --exclude=lib llama_cpp
    say "The sources have $(du -sh "$keep" | cut -f1) of $(du -sh "$top" | cut -f1)."
    rm -rf "$top" "$keep" "$1"
}

# ---- on the machine with the GPU ---------------------------------------------------------------------

# check_tools ON|OFF
check_tools() {
    local tools="cmake c++ python3" tool
    [[ $1 == OFF ]] || tools+=" nvcc nvidia-smi"
    for tool in $tools; do
        command -v "$tool" >/dev/null || die "$tool is missing." "Install it, or try the check without a GPU: scripts/check-gpu.sh --cpu" 45
    done
    [[ -f $PACK/llama.cpp.tar.gz ]] || die "$PACK has no sources." "Where there is a network: scripts/check-gpu.sh --pack" 45
    python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' || die "python3 is older than 3.11." "Install a newer one." 45
    python3 -c 'import numpy' 2>/dev/null || die "python3 has no numpy." "Install it: python3 -m pip install numpy" 45
}

unpack() {
    [[ -d $WORK/llama.cpp ]] || tar xzf "$PACK/llama.cpp.tar.gz" -C "$WORK"
    [[ -d $WORK/python/llama_cpp ]] || { mkdir -p "$WORK/python"; tar xzf "$PACK/llama_cpp.tar.gz" -C "$WORK/python"; }
}

# build ON|OFF: libraries and server, with CUDA or without
build() {
    local args=(-DCMAKE_BUILD_TYPE=Release -DBUILD_SHARED_LIBS=ON -DLLAMA_BUILD_TESTS=OFF -DLLAMA_BUILD_EXAMPLES=OFF
        -DLLAMA_BUILD_APP=OFF -DLLAMA_BUILD_TOOLS=ON -DLLAMA_BUILD_SERVER=ON -DLLAMA_BUILD_UI=OFF
        -DLLAMA_USE_PREBUILT_UI=OFF -DLLAMA_OPENSSL=OFF)
    [[ $1 == OFF ]] || args+=(-DGGML_CUDA=ON "-DCMAKE_CUDA_ARCHITECTURES=$CUDA_ARCH")
    BUILD=$WORK/build-$1
    say "Compiling llama.cpp ($(nproc) at once; the log is $BUILD.log) …"
    local began=$SECONDS
    # shellcheck disable=SC2046  # each option is a word
    { cmake -S "$WORK/llama.cpp" -B "$BUILD" "${args[@]}" $(scripts/cmake-args.sh) &&
        cmake --build "$BUILD" --target llama-server --parallel "$(nproc)"; } >"$BUILD.log" 2>&1 ||
        { tail -20 "$BUILD.log" >&2; die "llama.cpp does not compile." "The whole log: $BUILD.log"; }
    say "Compiled in $((SECONDS - began)) s."
}

environment() {
    [[ -x $WORK/venv/bin/python ]] || python3 -m venv --system-site-packages "$WORK/venv"
    "$WORK/venv/bin/python" -m pip install -q --disable-pip-version-check --no-index --no-deps --require-hashes \
        --find-links "$PACK/wheels" -r "$PACK/requirements.txt" ||
        die "The wheels in $PACK do not fit this Python." "Pack them for it: PYTHONS in scripts/check-gpu.sh"
    PYTHON=$WORK/venv/bin/python
    export PYTHONPATH=$PWD:$WORK/python:$WORK/llama.cpp/gguf-py LLAMA_CPP_LIB_PATH=$BUILD/bin LD_LIBRARY_PATH=$BUILD/bin:${LD_LIBRARY_PATH-}
}

# check ON|OFF: everything on both, then the table
check() {
    local model=$WORK/model-$MILLIONS found=$WORK/found-$1 file layers=-1
    [[ $1 == ON ]] || layers=0
    if [[ ! -f $model/random-Q4_K_M.gguf ]]; then
        say "Making a random model of about $MILLIONS million weights …"
        quietly "$PYTHON" scripts/gpu_check/random_model.py "$WORK/llama.cpp/models/ggml-vocab-phi-3.gguf" "$model" --millions "$MILLIONS"
    fi
    mkdir -p "$found"
    for file in F16 Q4_K_M; do
        say "Measuring $file …"
        CUDA_VISIBLE_DEVICES='' quietly "$PYTHON" scripts/gpu_check/measure.py "$model/random-$file.gguf" "$found/$file-cpu.npz" --layers 0
        quietly "$PYTHON" scripts/gpu_check/measure.py "$model/random-$file.gguf" "$found/$file-gpu.npz" --layers "$layers"
    done
    say "Testing the server's API …"
    CUDA_VISIBLE_DEVICES='' "$PYTHON" scripts/gpu_check/api.py "$model/random-Q4_K_M.gguf" "$BUILD/bin" "$found/api-cpu.json" --layers 0
    "$PYTHON" scripts/gpu_check/api.py "$model/random-Q4_K_M.gguf" "$BUILD/bin" "$found/api-gpu.json" --layers $((layers ? 999 : 0))
    [[ $1 == OFF ]] || nvidia-smi --query-gpu=name,driver_version --format=csv,noheader
    "$PYTHON" scripts/gpu_check/compare.py "$found"
}

# quietly COMMAND…: llama.cpp's log only where it fails
quietly() {
    "$@" >"$WORK/last.log" 2>&1 || { tail -20 "$WORK/last.log" >&2; die "This failed: $*"; }
}

main "$@"
