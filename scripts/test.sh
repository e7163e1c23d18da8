#!/usr/bin/env bash
# Run the test suite, after its whole set-up: the virtual environments, and the base images where a daemon answers.
#
# The tests of measuring (tests/measure) need llama.cpp, lm-eval and torch in their own process, so they run in
# .venv-bench; without SLOW=1 only where that is set up already.
#
# Usage:  scripts/test.sh [pytest arguments]
#         SLOW=1 scripts/test.sh                 slow tests too
#         REQUIRE_DOCKER=1 scripts/test.sh       no daemon is a failure, not a skip
# Exit codes:  pytest's
set -euo pipefail
cd "$(dirname "$0")/.."
scripts/setup-venv.sh test
if docker version >/dev/null 2>&1; then
    scripts/base-images.sh --if-unreachable
fi
if [[ ${SLOW-} == 1 ]]; then
    set -- -m "" "$@"
    scripts/setup-local.sh bench
fi
set -- --durations=40 --durations-min=5 "$@"  # where the time goes
code=0
.venv/bin/python -m pytest --ignore=tests/measure "$@" || code=$?
# After the others, which leave the demo model that these need.
if [[ ${SLOW-} == 1 || -f .venv-bench/.ready ]]; then
    .venv-bench/bin/python -m pytest tests/measure "$@" || code=$?
else
    echo "tests/measure left out: make test SLOW=1, or scripts/setup-local.sh bench first" >&2
fi
exit "$code"
