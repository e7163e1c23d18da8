"""Example programs that use a served model; each runs as it is."""
