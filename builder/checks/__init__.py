"""Checks of what was converted and quantized."""
