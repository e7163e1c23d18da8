"""Serves files that were built."""
