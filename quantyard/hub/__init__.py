"""Queries the Hub about models and releases, and downloads releases."""
