"""Asking the Hub about models and releases, and downloading them."""
