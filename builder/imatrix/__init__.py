"""Importance matrices: computed, read and written."""
