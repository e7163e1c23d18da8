#!/usr/bin/env bash
# Compile the packages that have no wheels (locks/sdists.txt; llama-cpp-python is the one that takes long), once, and
# print the folder that holds them. The virtual environments and the eval image install the same files.
#
# The folder's name is a hash of what decides its content, so every checkout of one user shares it. On Linux with a
# Docker daemon they are compiled in a container of WHEELS_BASE_IMAGE (versions.env), whose C library is old enough for
# the eval image and for most hosts; else, and on macOS, here. On x86_64 they run on every CPU of x86-64-v3; where the
# CPU has AVX-512, the dynamic linker takes the kernels that were compiled for it.
#
# Usage:  scripts/wheels.sh             compile what is missing (5 to 15 minutes the first time); print the folder
#         scripts/wheels.sh --cached    compile nothing; print the container's folder if it is there, else nothing
#         CMAKE_ARGS=… scripts/wheels.sh    here, with these options of llama.cpp, e.g. "$(scripts/cmake-args.sh)"
# Exit codes:  0 printed · 1 a step failed · 2 wrong usage
set -euo pipefail
cd "$(dirname "$0")/.."

ROOT=${XDG_CACHE_HOME:-$HOME/.cache}/quantyard/wheels

say() { echo "$*" >&2; }
die() { say "$*"; exit 1; }
pin() { sed -n "s/^$1=//p" versions.env; }

main() {
    case ${1-} in
        "") compiled ;;
        --cached) if is_complete "$(container_folder)"; then container_folder; fi ;;
        *) say "Unknown argument '$1'. Usage: scripts/wheels.sh [--cached]"; exit 2 ;;
    esac
}

compiled() {
    local folder
    mkdir -p "$ROOT"
    exec 8<"$ROOT" # one at a time; the lock ends with this process
    "${PYTHON:-python3}" -c 'import fcntl; fcntl.flock(8, fcntl.LOCK_EX)'
    if suits_the_container; then
        folder=$(container_folder)
        if is_complete "$folder" || in_container "$folder"; then echo "$folder"; return; fi
        say "The container could not compile them, as said above; compiling on this machine instead."
    fi
    folder=$(host_folder)
    is_complete "$folder" || on_host "$folder"
    echo "$folder"
}

is_complete() { [[ -f $1/compiled.txt ]]; }

# A cached folder suits without a daemon.
suits_the_container() {
    local libc
    [[ -z ${CMAKE_ARGS-} && $(uname -s) == Linux ]] || return 1
    libc=$(getconf GNU_LIBC_VERSION 2>/dev/null) || return 1
    [[ $(printf '%s\n' "$(pin WHEELS_GLIBC)" "${libc#glibc }" | sort -V | head -n 1) == "$(pin WHEELS_GLIBC)" ]] || return 1
    is_complete "$(container_folder)" || docker buildx version >/dev/null 2>&1 && docker version >/dev/null 2>&1
}

container_folder() {
    echo "$ROOT/$({ inputs; grep '^WHEELS_' versions.env; } | hash)"
}

host_folder() {
    echo "$ROOT/$({ inputs; echo "${CMAKE_ARGS-}"; uname -s; cat /etc/os-release 2>/dev/null || uname -r; "${CXX:-c++}" --version 2>/dev/null || true; } | hash)"
}

inputs() {
    cat locks/sdists.txt locks/build.txt docker/llama-cpp.cmake docker/compile-wheels.sh
    uname -m
}

hash() { # macOS has no sha256sum
    if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -c 1-16
}

# A folder that was not finished never has the final name.
in_container() {
    say "Compiling llama-cpp-python in a container: 5 to 15 minutes, once."
    scripts/base-images.sh --if-unreachable wheels >&2 || return 1
    rm -rf "$1.new"
    (
        set -a
        # shellcheck source=versions.env
        . ./versions.env
        COMPILED="" WHEELS="" docker buildx bake --progress plain --file docker/docker-bake.hcl \
            --set "compiled-wheels.output=type=local,dest=$1.new" compiled-wheels >"$ROOT/log" 2>&1
    ) || { tail -n 40 "$ROOT/log" >&2; return 1; }
    is_complete "$1.new" && mv "$1.new" "$1"
}

on_host() {
    command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null ||
        die "No C++ compiler, and llama-cpp-python must be compiled. Debian or Ubuntu: sudo apt-get install build-essential; macOS: xcode-select --install"
    say "Compiling llama-cpp-python on this machine: 5 to 15 minutes, once."
    rm -rf "$1.new"
    docker/compile-wheels.sh "$1.new" >&2 || die "The packages of locks/sdists.txt could not be compiled, as said above."
    mv "$1.new" "$1"
}

main "$@"
