"""The same bytes in a registry."""
