#!/usr/bin/env bash
# Provide wheels of the packages that have none on PyPI (locks/sdists.txt; llama-cpp-python is the one that takes long),
# once, and print the folder that holds them.
#
# The folder's name is a hash of what decides its content, so every checkout of one user shares it. Wheels that were
# compiled before are taken first. Else upstream's own wheel of llama-cpp-python is downloaded, if its hash is recorded
# (llama_wheel.py) and it ran on this CPU so far. Else it is compiled: on Linux with a Docker daemon in a container of
# WHEELS_BASE_IMAGE (versions.env), whose C library is old enough for the eval image, which installs the same files, and
# for most hosts; without one, and on macOS, here. On x86_64 it runs on every CPU of x86-64-v3; where the CPU has
# AVX-512, the dynamic linker takes the kernels that were compiled for it.
#
# Usage:  scripts/wheels.sh             download or compile what is missing (compiling: 5 to 15 minutes); print the folder
#         scripts/wheels.sh --plan      do nothing; say which of the two it will be, and why: `WORD: a sentence`, where
#                                       WORD is kept, prebuilt, compile, or for what will fail: refused, missing
#         scripts/wheels.sh --refuse FOLDER   FOLDER's prebuilt wheel does not run on this CPU: never take it here again
#         scripts/wheels.sh --pure      the packages of locks/pure-sdists.txt alone, in seconds; print their folder
#         scripts/wheels.sh --cached    compile nothing; print the container's folder if it is there, else nothing
#         LLAMA_WHEEL=compile|cu124|…   never upstream's wheel, or only this one; see llama_wheel.py
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
        "") provide ;;
        --pure) pure ;;
        --plan) plan ;;
        --refuse) cpu >>"$2/refused" ;;
        --cached) if is_complete "$(container_folder)"; then container_folder; fi ;;
        *) say "Unknown argument '$1'. Usage: scripts/wheels.sh [--plan|--pure|--refuse FOLDER|--cached]"; exit 2 ;;
    esac
}

# One at a time; the lock ends with this process.
take_turn() {
    mkdir -p "$ROOT"
    exec 8<"$ROOT"
    "${PYTHON:-python3}" -c 'import fcntl; fcntl.flock(8, fcntl.LOCK_EX)'
}

# A folder that was not finished never has the final name, here and below.
pure() {
    local folder
    folder=$ROOT/pure-$(cat locks/{pure-sdists,build}.txt docker/{pure,compile}-wheels.sh | hash)
    take_turn
    if ! is_complete "$folder"; then
        need_pip
        rm -rf "$folder.new"
        docker/pure-wheels.sh "$folder.new" >&2 || die "The packages of locks/pure-sdists.txt could not be built, as said above."
        mv "$folder.new" "$folder"
    fi
    echo "$folder"
}

provide() {
    local why
    take_turn
    kept && return
    need_pip
    if why=$(why_not_prebuilt); then
        if prebuilt "$(prebuilt_folder)"; then prebuilt_folder; return; fi
    fi
    ! only_prebuilt || die "LLAMA_WHEEL=$LLAMA_WHEEL cannot be had: $why. $(instead)"
    [[ $(choice) == compile ]] || say "Upstream's prebuilt wheel is not taken: $why."
    if suits_the_container; then
        if in_container "$(container_folder)"; then container_folder; return; fi
        say "The container could not compile them, as said above; compiling on this machine instead."
    fi
    on_host "$(host_folder)"
    host_folder
}

# The folder that an earlier call filled, if there is one.
kept() {
    local folder
    while IFS= read -r folder; do
        if is_complete "$folder" && ! is_refused "$folder"; then echo "$folder"; return; fi
    done < <(folders)
    return 1
}

# Where to look, in this order.
folders() {
    if [[ $(choice) == custom ]]; then host_folder; return; fi
    if ! only_prebuilt; then
        if libc_suits; then container_folder; fi
        host_folder
    fi
    [[ $(choice) == compile ]] || prebuilt_folder
}

choice() { if [[ -n ${CMAKE_ARGS-} ]]; then echo custom; else echo "${LLAMA_WHEEL:-auto}"; fi; }
only_prebuilt() { [[ $(choice) != custom && $(choice) != compile && $(choice) != auto ]]; }
instead() {
    local backend=""
    case $LLAMA_WHEEL in cu*) backend=CUDA ;; vulkan) backend=VULKAN ;; esac
    if [[ -z $backend ]]; then echo "Type: LLAMA_WHEEL=auto"; return; fi
    echo "With the toolkit of that GPU, compile it: CMAKE_ARGS=\"-DGGML_$backend=on \$(scripts/cmake-args.sh)\" scripts/setup-local.sh"
}

# What will happen, in one line; provide() does the same in the same order.
plan() {
    local folder why how="is compiled, once (5 to 15 minutes)"
    if folder=$(kept); then echo "kept: nothing is compiled: it is in $folder"; return; fi
    if why=$(why_not_prebuilt) && why=$("${PYTHON:-python3}" scripts/llama_wheel.py plan); then
        echo "prebuilt: nothing is compiled: upstream's wheel is downloaded, and its hash compared: $why"
    elif only_prebuilt; then
        echo "refused: LLAMA_WHEEL=$LLAMA_WHEEL cannot be had: $why"
    elif suits_the_container; then
        echo "compile: $how, in a container: $why"
    elif has_compiler; then
        echo "compile: $how, on this machine: $why"
    else
        echo "missing: it must be compiled ($why), and there is no C++ compiler"
    fi
}

# Succeeds, and says nothing, where nothing that is known here speaks against upstream's wheel.
why_not_prebuilt() {
    case $(choice) in
        custom) echo "CMAKE_ARGS is set" ;;
        compile) echo "LLAMA_WHEEL=compile asks for it" ;;
        *) is_refused "$(prebuilt_folder)" || return 0; echo "upstream's wheel does not run on this CPU" ;;
    esac
    return 1
}

is_complete() { [[ -f $1/compiled.txt ]]; }
is_refused() { [[ -f $1/refused ]] && grep -qxF -- "$(cpu)" "$1/refused"; }
has_compiler() { command -v "${CXX:-c++}" >/dev/null || command -v g++ >/dev/null || command -v clang++ >/dev/null; }

# What an illegal instruction depends on; several machines may share a home.
cpu() {
    { sed -n '/^\(flags\|Features\)/{p;q;}' /proc/cpuinfo 2>/dev/null || true; sysctl -n machdep.cpu.brand_string 2>/dev/null || true; uname -m; } | hash
}

suits_the_container() {
    [[ -z ${CMAKE_ARGS-} ]] && libc_suits && docker buildx version >/dev/null 2>&1 && docker version >/dev/null 2>&1
}

# Whether what the container compiles runs here.
libc_suits() {
    local libc
    [[ $(uname -s) == Linux ]] && libc=$(getconf GNU_LIBC_VERSION 2>/dev/null) || return 1
    [[ $(printf '%s\n' "$(pin WHEELS_GLIBC)" "${libc#glibc }" | sort -V | head -n 1) == "$(pin WHEELS_GLIBC)" ]]
}

container_folder() {
    echo "$ROOT/$({ inputs; grep '^WHEELS_' versions.env; } | hash)"
}

host_folder() {
    echo "$ROOT/$({ inputs; echo "${CMAKE_ARGS-}"; uname -s; cat /etc/os-release 2>/dev/null || uname -r; "${CXX:-c++}" --version 2>/dev/null || true; } | hash)"
}

prebuilt_folder() {
    echo "$ROOT/prebuilt-$({ inputs; cat locks/llama-wheels.sha256; choice; uname -s; } | hash)"
}

inputs() {
    cat locks/sdists.txt locks/build.txt docker/llama-cpp.cmake docker/compile-wheels.sh
    uname -m
}

hash() { # macOS has no sha256sum
    if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -c 1-16
}

# Debian's own Python has no pip where python3-pip is not installed; one that has lies in a folder that ends with this.
need_pip() {
    TEMPORARY=$(mktemp -d)
    trap 'rm -rf "$TEMPORARY"' EXIT
    PYTHON=${PYTHON:-python3}
    if ! "$PYTHON" -m pip --version >/dev/null 2>&1; then
        "$PYTHON" -m venv "$TEMPORARY/venv" >&2 || die "$PYTHON has no pip. On Debian or Ubuntu type: sudo apt-get install python3-venv"
        PYTHON=$TEMPORARY/venv/bin/python
    fi
    export PYTHON
}

# Upstream's wheel, and the small packages built beside it by the same script, from a shorter list: none has a line of C.
# Sets `why` where it fails.
prebuilt() {
    local entry list=$TEMPORARY/list
    rm -rf "$1.new"
    mkdir -p "$1.new"
    entry=$("$PYTHON" scripts/llama_wheel.py fetch "$1.new") || { why=$entry; return 1; }
    mkdir -p "$list/locks"
    cp -r docker "$list/"
    cp locks/build.txt "$list/locks/"
    awk '/^[A-Za-z]/ { wanted = !/^llama-cpp-python==/ } wanted' locks/sdists.txt >"$list/locks/sdists.txt"
    {
        docker/compile-wheels.sh --sources "$1.new" && "$list/docker/compile-wheels.sh" "$1.new"
    } >"$ROOT/log" 2>&1 || { tail -n 20 "$ROOT/log" >&2; why="the small packages beside it could not be built"; return 1; }
    echo "$entry" >>"$1.new/compiled.txt"
    mv "$1.new" "$1"
}

in_container() {
    say "Compiling llama-cpp-python in a container: 5 to 15 minutes, once."
    scripts/base-images.sh --if-unreachable wheels >&2 || return 1
    rm -rf "$1.new"
    (
        set -a
        # shellcheck source=versions.env
        . ./versions.env
        COMPILED="" WHEELS="" docker buildx bake --progress plain --file docker/docker-bake.hcl \
            --set "compiled-wheels.output=type=local,dest=$1.new" compiled-wheels 2>&1 | progress
    ) || { tail -n 40 "$ROOT/log" >&2; return 1; }
    is_complete "$1.new" && mv "$1.new" "$1"
}

on_host() {
    has_compiler ||
        die "No C++ compiler, and llama-cpp-python must be compiled. Debian or Ubuntu: sudo apt-get install build-essential; macOS: xcode-select --install"
    say "Compiling llama-cpp-python on this machine: 5 to 15 minutes, once."
    rm -rf "$1.new"
    # pip hides what it calls unless it is told twice to talk.
    PIP_VERBOSE=2 docker/compile-wheels.sh "$1.new" 2>&1 | progress ||
        { tail -n 40 "$ROOT/log" >&2; die "The packages of locks/sdists.txt could not be compiled, as said above."; }
    mv "$1.new" "$1"
}

progress() { "$PYTHON" scripts/compile_progress.py "$ROOT/log"; }

main "$@"
