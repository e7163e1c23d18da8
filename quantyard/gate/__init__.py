"""The gate: compares what was measured of each file with the budgets of a release."""
