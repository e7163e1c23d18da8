"""Runs the steps of a plan, and keeps the manifest."""
