"""Loads the tasks of lm-evaluation-harness, checks them, and gives them their data sets offline."""
