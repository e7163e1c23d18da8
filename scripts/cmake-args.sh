#!/usr/bin/env bash
# Print the CMAKE_ARGS with which llama-cpp-python is compiled for this host.
#
# Not GGML_NATIVE on x86_64 Linux: the compiler would then use all that the CPU advertises, and some virtual
# machines advertise AMX and die of an illegal instruction on quantized files. So each instruction set that
# ggml knows is switched by name, AMX never. Elsewhere nothing is printed, and ggml's own choice stands.
#
# Usage:  CMAKE_ARGS="$(scripts/cmake-args.sh)" pip install llama-cpp-python
#         scripts/cmake-args.sh CPUINFO     read that file in place of /proc/cpuinfo
# Exit codes:  0 printed · 1 the CPU's flags cannot be read
set -euo pipefail

# To add an instruction set: add a row.  ggml's option | the CPU flags that its compiler flags stand for
TABLE='
GGML_SSE42       sse4_2
GGML_AVX         avx
GGML_F16C        f16c
GGML_FMA         fma
GGML_AVX2        avx2
GGML_BMI2        bmi2
GGML_AVX512      avx512f avx512cd avx512vl avx512dq avx512bw
GGML_AVX512_VBMI avx512vbmi
GGML_AVX512_VNNI avx512_vnni
GGML_AVX512_BF16 avx512_bf16
GGML_AVX_VNNI    avx_vnni
'

main() {
    [[ "$(uname -s) $(uname -m)" == "Linux x86_64" || $# -gt 0 ]] || return 0
    local cpuinfo=${1:-/proc/cpuinfo} flags args=-DGGML_NATIVE=OFF option needs state avx512=ON vnni512=OFF
    flags=" $(sed -n '/^flags/{s/^[^:]*: //p;q;}' "$cpuinfo" 2>/dev/null) " || true
    if [[ -z ${flags// /} ]]; then
        echo "No CPU flags in $cpuinfo. Name the instruction sets yourself: CMAKE_ARGS='-DGGML_NATIVE=OFF …' scripts/setup-local.sh" >&2
        return 1
    fi
    while read -r option needs; do
        [[ -n $option ]] || continue
        state=$(has_all "$flags" "$needs")
        case $option in
            GGML_AVX512) avx512=$state ;;
            GGML_AVX512_*) [[ $avx512 == ON ]] || state=OFF ;; # meaningless without the base set
            GGML_AVX_VNNI) [[ $vnni512 == OFF ]] || state=OFF ;; # ggml prefers the 512-bit form of the same
        esac
        [[ $option != GGML_AVX512_VNNI ]] || vnni512=$state
        args+=" -D$option=$state"
    done <<<"$TABLE"
    echo "$args"
}

# has_all FLAGS NEEDS: ON if every word of NEEDS is in FLAGS, else OFF
has_all() {
    local flag
    for flag in $2; do
        [[ $1 == *" $flag "* ]] || { echo OFF; return; }
    done
    echo ON
}

main "$@"
