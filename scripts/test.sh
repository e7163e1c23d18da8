#!/usr/bin/env bash
# Run the test suite, after its whole set-up: the virtual environments, and the base images where a daemon answers.
#
# Three phases, which tests/phases.py and the folders keep apart: the units, spread over the cores; the tests with
# real parts, one after the other; and the tests of measuring (tests/measure), which need llama.cpp, lm-eval and torch
# in their own process, so they run in .venv-bench; without SLOW=1 only where that is set up already.
# Every phase runs, also after one that failed; at the end stands what each took.
#
# Usage:  scripts/test.sh [pytest options, as -k or -x]
#         SLOW=1 scripts/test.sh                 slow tests too
#         REQUIRE_DOCKER=1 scripts/test.sh       no daemon is a failure, not a skip
# Exit codes:  pytest's
set -euo pipefail
cd "$(dirname "$0")/.."
code=0 took=()

# phase NAME COMMAND …
phase() {
    local name=$1 began=$SECONDS status=0
    shift
    "$@" || status=$?
    # A choice as -k may leave nothing in one phase (pytest's 5); elsewhere nothing is a failure.
    ((status == 0 || (status == 5 && n_options > 0))) || code=$status
    took+=("$(printf '%6d s  %s' $((SECONDS - began)) "$name")")
}

set_up() {
    scripts/setup-venv.sh test
    if docker version >/dev/null 2>&1; then
        scripts/base-images.sh --if-unreachable
    fi
    if [[ ${SLOW-} == 1 ]]; then
        scripts/setup-local.sh bench
    fi
}

n_options=$#
set -- --durations=40 --durations-min=5 "$@"  # where the time goes
[[ ${SLOW-} != 1 ]] || set -- -m "" "$@"
began=$SECONDS
set_up # not as a phase: `set -e` must end it
took+=("$(printf '%6d s  set-up' $((SECONDS - began)))")
phase units .venv/bin/python -m pytest --phase=units -n auto "$@" tests/unit tests/hostile
phase parts .venv/bin/python -m pytest --phase=parts --ignore=tests/measure "$@" tests
# After the others, which leave the demo model that these need.
if [[ ${SLOW-} == 1 || -f .venv-bench/.ready ]]; then
    phase measure .venv-bench/bin/python -m pytest "$@" tests/measure
else
    echo "tests/measure left out: make test SLOW=1, or scripts/setup-local.sh bench first" >&2
fi
printf '%s\n' "What each phase took:" "${took[@]}" >&2
exit "$code"
