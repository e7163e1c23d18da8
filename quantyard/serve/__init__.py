"""Serving what was built."""
