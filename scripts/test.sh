#!/usr/bin/env bash
# Run the test suite, after its whole set-up: the virtual environment, and the base image where a daemon answers.
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
fi
exec .venv/bin/python -m pytest "$@"
