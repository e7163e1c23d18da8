"""Which stages a command runs, with which requests."""
