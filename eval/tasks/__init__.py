"""The tasks of lm-evaluation-harness: loaded, checked, offline."""
