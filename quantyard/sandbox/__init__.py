"""Processes with limits of time and memory, for what a model's author wrote."""
