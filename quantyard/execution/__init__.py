"""Runs the steps of a plan, and writes the manifest."""
