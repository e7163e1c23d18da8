"""Bounded HTTP, the Hub's API and downloads."""
