"""`python -m quantyard`."""

from quantyard.cli import main

main()
