#!/usr/bin/env python3
"""Refuses variables after `make TARGET` that the target would ignore; those of the program's commands it checks itself.

Usage:  QUANTYARD_CALLED_BY_MAKE=1 python3 scripts/check_variables.py TARGET
Exit codes:  0 all are its own · 2 one is not
"""

import os
import sys

if sys.version_info < (3, 11):  # noqa: UP036 (the set-up of the virtual environment says what is needed)
    sys.exit(0)
sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))  # noqa: PTH100, PTH120

from quantyard.cli.variables import check_target_variables
from quantyard.errors import BadRequest
from quantyard.formatting.printable import printable_line

if __name__ == "__main__":
    try:
        check_target_variables(sys.argv[1], os.environ)
    except BadRequest as error:
        sys.stderr.write(f"error: {printable_line(error.message)}\n{printable_line(error.hint)}\n")
        sys.exit(error.code)
