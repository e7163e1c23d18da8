"""Computes the memory that serving a model takes."""
