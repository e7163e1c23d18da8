#!/usr/bin/env bash
# Set up .venv-local, with which ENGINE=local runs the stages without containers; or .venv-bench, in which
# measuring is compared with other ways to measure.
#
# locks/local.txt, the wheels that scripts/wheels.sh downloads or compiles (then 5 to 15 minutes; they are kept for every
# checkout), and llama.cpp's converter out of llama-cpp-python's own source distribution, so that both are the same
# llama.cpp. For .venv-bench locks/bench.txt, and no converter. Mechanism, stamp and lock: setup-venv.sh.
#
# torch: on Linux PyPI gives a CUDA build of several GB. Where pip finds the CPU build whose hash is in
# locks/torch-cpu.txt (PyTorch's CPU index in PIP_EXTRA_INDEX_URL, or a folder in PIP_FIND_LINKS), it is taken.
#
# Usage:  scripts/setup-local.sh [local [VENV]|bench]   VENV: .venv-local by default; PYTHON=python3.12 to choose
#                                                    the interpreter
#         LLAMA_WHEEL=compile scripts/setup-local.sh    never upstream's wheel of llama.cpp; cu124: that one
#         CMAKE_ARGS=… scripts/setup-local.sh        llama.cpp compiled here with these options
# Exit codes:  0 ready · 1 a step failed · 2 wrong usage
set -euo pipefail

# shellcheck source=scripts/setup-venv.sh
source "$(dirname "${BASH_SOURCE[0]}")/setup-venv.sh"

# Before anything of the environment is touched: this is what may take long or fail.
before_install() {
    was=$(sed -n 's/^wheels //p' "$venv/.ready" 2>/dev/null) || true
    wheels=$(scripts/wheels.sh) || die "llama-cpp-python cannot be had, as said above. To go on, $again"
    pure=$(scripts/wheels.sh --pure) || die "To go on, $again"
}

more_inputs() {
    cat locks/{sdists,pure-sdists,torch,torch-cpu,build,converter}.txt docker/llama-cpp.cmake
    cat docker/{compile,pure}-wheels.sh scripts/setup-local.sh
    cat scripts/llama_self_check.py
    echo "${CMAKE_ARGS-}"
    [[ ${LLAMA_WHEEL:-auto} == auto ]] || echo "$LLAMA_WHEEL"
}

# Another compiler, or another build of torch, is another tool: .ready is what ENGINE=local is identified by.
made_with() {
    echo "wheels ${wheels##*/}"
    echo "torch $("$venv/bin/python" -c 'from importlib.metadata import version; print(version("torch"))')"
}

install_lock() {
    local torch=(-r locks/torch.txt)
    if cpu_torch; then torch=(); fi
    install --find-links "$wheels" --find-links "$pure" -r "$wheels/compiled.txt" -r "$pure/compiled.txt" "${torch[@]+"${torch[@]}"}" -r "locks/$group.txt"
    [[ -z $was || $was == "${wheels##*/}" ]] || install_other_wheels
}

# pip leaves an installed package alone where the version is the same.
install_other_wheels() { install --force-reinstall --no-deps --find-links "$wheels" -r "$wheels/compiled.txt"; }

# By itself, because pip would rather have the build that PyPI lists with a hash.
cpu_torch() {
    local found
    [[ $(uname -s) == Linux ]] || return 1
    if [[ -n $uv ]] && install_with_uv --no-deps -r locks/torch-cpu.txt 2>/dev/null; then return; fi
    found=$(pip_install --no-deps -r locks/torch-cpu.txt 2>&1) && return
    [[ $found != *"DO NOT MATCH"* ]] ||
        say "pip found a CPU build of torch whose hash is not in locks/torch-cpu.txt; it is not installed. To add it: scripts/lock.sh --torch-cpu"
    say "Installing PyPI's torch."
    return 1
}

# A first run of everything: a build for another CPU dies here and not in a stage.
after_install() {
    if [[ $group == local ]]; then install_converter; install_its_transformers; fi
    llama_runs || instead_of_prebuilt
    "$venv/bin/python" -c 'import xllamacpp; xllamacpp.get_system_info()' 2>/dev/null ||
        die "xllamacpp does not load: its wheel needs a CPU with AVX2 (x86-64-v3) or an ARM64 one. Use ENGINE=docker on this machine."
}

# Sets `problem` where it does not.
llama_runs() {
    local code=0
    problem=$("$venv/bin/python" scripts/llama_self_check.py 2>&1 >/dev/null) || code=$?
    problem=${problem##*$'\n'}
    [[ $code -ne 132 ]] || problem="it was killed by an illegal instruction, so it is made for another CPU"
    return "$code"
}

# Compiled here, it runs: the instructions are those of x86-64-v3, or of what CMAKE_ARGS says.
instead_of_prebuilt() {
    [[ $wheels == */prebuilt-* ]] ||
        die "llama-cpp-python does not run: ${problem:-no reason given}. Was it compiled for another CPU? Type: rm -rf $wheels $venv; $again"
    say "Upstream's prebuilt wheel does not run here: ${problem:-no reason given}."
    scripts/wheels.sh --refuse "$wheels"
    wheels=$(scripts/wheels.sh) || die "llama-cpp-python cannot be had, as said above. To go on, $again"
    install_other_wheels
    llama_runs || instead_of_prebuilt
}

install_converter() {
    local version share=$venv/share/llama.cpp
    version=$(sed -n 's/^llama-cpp-python==\([^ ]*\).*/\1/p' locks/sdists.txt)
    say "Unpacking the converter of llama-cpp-python $version …"
    rm -rf "$share" "$share.new"
    mkdir -p "$share.new"
    unpack_converter "$version" "$share.new"
    mv "$share.new" "$share" # a half-unpacked converter never has the final name
    env -i HOME="$HOME" PATH="$PATH" "$venv/bin/python" "$share/convert_hf_to_gguf.py" --help >/dev/null ||
        die "The converter does not start, as said above. Type: rm -rf $venv; $0"
}

# The transformers that the converter was made for, in a folder of its own: builder/llama/converter.py puts it in front
# of the newer one where a model needs it. Its dependencies are those of the environment.
install_its_transformers() {
    local folder=$venv/share/transformers-4.57
    rm -rf "$folder"
    install --no-deps --target "$folder" -r locks/converter.txt
}

# unpack_converter VERSION FOLDER
unpack_converter() {
    local top=llama_cpp_python-$1/vendor/llama.cpp sdist=$wheels/llama_cpp_python-$1.tar.gz
    tar -xzf "$sdist" --no-same-owner --strip-components=3 -C "$2" \
        "$top/convert_hf_to_gguf.py" "$top/convert_lora_to_gguf.py" "$top/conversion" "$top/gguf-py" "$top/LICENSE" ||
        die "$sdist does not hold the converter of llama-cpp-python $1. Type: rm -rf $wheels; $again"
}

case ${1-} in
    "" | local) ensure_venv "${2:-.venv-local}" local ;;
    bench) ensure_venv .venv-bench bench ;;
    *) say "Unknown argument '$*'. Usage: scripts/setup-local.sh [local [VENV]|bench]"; exit 2 ;;
esac
