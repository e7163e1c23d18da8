"""Limits of what a request may ask for."""
