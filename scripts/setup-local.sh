#!/usr/bin/env bash
# Set up .venv-local, with which ENGINE=local runs the stages without containers; or .venv-bench, in which
# measuring is compared with other ways to measure.
#
# The group `local` of pyproject.toml (llama-cpp-python is compiled for this host: 5 to 15 minutes the first time,
# then kept in pip's cache), and llama.cpp's converter out of llama-cpp-python's own source distribution, so that
# both are the same llama.cpp. For .venv-bench the group `bench`, and no converter. Mechanism, stamp and lock:
# setup-venv.sh.
#
# torch: on Linux x86_64 the default index gives a CUDA build of several GB. To have the small one, set
# PIP_EXTRA_INDEX_URL to PyTorch's CPU index first.
#
# Usage:  scripts/setup-local.sh [local [VENV]|bench]   VENV: .venv-local by default; PYTHON=python3.12 to choose
#                                                    the interpreter
#         CMAKE_ARGS=… scripts/setup-local.sh        in place of what cmake-args.sh says
#         LLAMA_CPP_SDIST=FILE scripts/setup-local.sh   the source distribution, where it cannot be downloaded
# Exit codes:  0 ready · 1 a step failed · 2 wrong usage
set -euo pipefail

# shellcheck source=scripts/setup-venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup-venv.sh"

before_install() {
    command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null ||
        die "No C++ compiler, and llama-cpp-python must be compiled. Debian or Ubuntu: sudo apt-get install build-essential; macOS: xcode-select --install; $again"
    CMAKE_ARGS=${CMAKE_ARGS-$(scripts/cmake-args.sh)}
    export CMAKE_ARGS
    say "llama-cpp-python is compiled for this host: 5 to 15 minutes the first time, then pip's cache has it."
}

# A first run of everything: a build for another CPU dies here and not in a stage.
after_install() {
    if [[ $group == local ]]; then install_converter; fi
    "$venv/bin/python" -c 'import llama_cpp; llama_cpp.llama_backend_init()' 2>/dev/null ||
        die "llama-cpp-python does not load; was it compiled for another CPU? Type: $venv/bin/python -m pip cache remove llama_cpp_python; rm -rf $venv; $again"
}

install_converter() {
    local version share=$venv/share/llama.cpp
    version=$(sed -n 's/^ *"llama-cpp-python==\([^"]*\)".*/\1/p' pyproject.toml)
    say "Unpacking the converter of llama-cpp-python $version …"
    rm -rf "$share" "$share.new" "$venv/.download"
    mkdir -p "$share.new"
    unpack_converter "$version" "$share.new"
    mv "$share.new" "$share" # a half-unpacked converter never has the final name
    env -i HOME="$HOME" PATH="$PATH" "$venv/bin/python" "$share/convert_hf_to_gguf.py" --help >/dev/null ||
        die "The converter does not start, as said above. Type: rm -rf $venv; $0"
}

# unpack_converter VERSION FOLDER
unpack_converter() {
    local top=llama_cpp_python-$1/vendor/llama.cpp sdist=${LLAMA_CPP_SDIST-}
    if [[ -z $sdist ]]; then
        sdist=$venv/.download/llama_cpp_python-$1.tar.gz
        "$venv/bin/python" -m pip download -qq --disable-pip-version-check --no-deps --no-binary llama-cpp-python \
            --dest "$venv/.download" "llama-cpp-python==$1" >&2 ||
            die "The source of llama-cpp-python $1 could not be downloaded, as said above. Check the network, $again"
    fi
    tar -xzf "$sdist" --no-same-owner --strip-components=3 -C "$2" \
        "$top/convert_hf_to_gguf.py" "$top/convert_lora_to_gguf.py" "$top/conversion" "$top/gguf-py" "$top/LICENSE" ||
        die "$sdist does not hold the converter of llama-cpp-python $1. Remove it, $again"
    rm -rf "$venv/.download"
}

case ${1-} in
    "" | local) ensure_venv "${2:-.venv-local}" local ;;
    bench) ensure_venv .venv-bench bench ;;
    *) say "Unknown argument '$*'. Usage: scripts/setup-local.sh [local [VENV]|bench]"; exit 2 ;;
esac
