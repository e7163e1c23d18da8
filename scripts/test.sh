#!/usr/bin/env bash
# Run a tier of the tests, after its whole set-up: the virtual environments, and the base images where a daemon answers.
# docs/testing.md says what each tier holds.
#
# The phases, of which a tier has some: the units, spread over the cores; the tests with real parts, two files at a
# time, each stage with one thread; those that watch the clock or the machine, one after the other; and the tests of
# measuring (tests/measure), which need llama.cpp, lm-eval and torch in their own process, so they run in .venv-bench.
# Every phase runs, also after one that failed; at the end stands what each took. A test that ends its process (as a
# fault in llama.cpp's library does) fails its phase at once: a worker in its place would wait for tests that never come.
#
# Usage:  scripts/test.sh [TIER] [pytest options, as -k or -x]
#         TIER: fast · quick (the default) · docker · e2e · change · all
#         REQUIRE_DOCKER=1 scripts/test.sh       no daemon is a failure, not a skip
#         JOBS=1 scripts/test.sh change          parts one file at a time (2 by default)
# Exit codes:  pytest's; 2: no such tier
set -euo pipefail
cd "$(dirname "$0")/.."
code=0 took=()
# Where it is set, each of the thousand Pythons that the tests start compiles the project again: 0.7 s, and 7 s to collect.
unset PYTHONDONTWRITEBYTECODE

# phase NAME COMMAND …
phase() {
    local name=$1 began=$SECONDS status=0
    shift
    "$@" || status=$?
    # A choice as -k may leave nothing in one phase (pytest's 5); elsewhere nothing is a failure.
    ((status == 0 || (status == 5 && n_options > 0))) || code=$status
    took+=("$(printf '%6d s  %s' $((SECONDS - began)) "$name")")
}

# set_up [docker|local|bench …]
# What the tests would make when they first need it, so that their times are their own; side by side, for each waits much.
set_up() {
    local part makers=() maker
    scripts/setup-venv.sh test
    [[ " $* " != *" docker "* ]] || ! docker version >/dev/null 2>&1 || scripts/base-images.sh --if-unreachable
    trap 'kill $(jobs -p) 2>/dev/null || true' EXIT # a shell's children in the background do not hear Ctrl-C
    for part; do
        "set_up_$part" &
        makers+=($!)
    done
    for maker in "${makers[@]+"${makers[@]}"}"; do wait "$maker"; done
}

set_up_docker() { ! docker version >/dev/null 2>&1 || ENGINE=docker .venv/bin/python -m quantyard images >&2; }
set_up_local() { ENGINE=local .venv/bin/python -m quantyard images >&2; }
set_up_bench() { scripts/setup-local.sh bench; }

run() { .venv/bin/python -m pytest "${options[@]}" "$@"; }
# One worker more than there are cores, since some tests wait.
units() { PYTEST_XDIST_AUTO_NUM_WORKERS=$(($(getconf _NPROCESSORS_ONLN) + 1)) phase units run -n auto "$@"; }

# parts FOLDER …
# One thread for each stage: two of llama.cpp with a thread for every core wait for each other.
parts() {
    local not=(--ignore=tests/measure --ignore=tests/unit)
    THREADS=${THREADS-1} phase parts run --phase=parts -n "${JOBS:-2}" "${files[@]}" "${not[@]}" "$@"
    [[ $tier == quick ]] || phase alone run --phase=alone "${not[@]}" "$@"
}

# After the others, which leave the demo model that these need. They use one thread each.
measure() { phase measure .venv-bench/bin/python -m pytest "${options[@]}" -n "${JOBS:-2}" "${files[@]}" tests/measure; }

case ${1-} in
    fast | quick | docker | e2e | change | all) tier=$1 && shift ;;
    "" | -*) tier=quick ;;
    *) echo "$1 is not a tier: fast, quick, docker, e2e, change or all" >&2 && exit 2 ;;
esac
n_options=$# began=$SECONDS
files=(--dist loadfile --no-loadscope-reorder) # a file at a time, in the order of tests/phases.py
options=(--max-worker-restart=0 --durations=40 --durations-min=5 "$@") # durations: where the time goes
pure=(--phase=units tests/unit tests/hostile)
containers=(tests/clients tests/docker tests/hostile tests/page tests/serve tests/serve_contract)
# set_up is not a phase: `set -e` must end it.
case $tier in
    fast) set_up ;;
    quick) set_up docker ;;
    docker | e2e) set_up docker local ;;
    change | all) set_up docker local bench ;;
esac
took+=("$(printf '%6d s  set-up' $((SECONDS - began)))")
case $tier in
    fast) units --tier=fast tests/unit ;;
    quick) units "${pure[@]}" && options+=(--tier=quick) && parts tests ;;
    docker) parts "${containers[@]}" ;;
    e2e) parts tests/e2e ;;
    all)
        export HOSTILE=all HYPOTHESIS_PROFILE=${HYPOTHESIS_PROFILE-all}
        options+=(--tier=all)
        ;;&
    change | all) units "${pure[@]}" && parts tests && measure ;;
esac
printf '%s\n' "What each phase took:" "${took[@]}" >&2
exit "$code"
