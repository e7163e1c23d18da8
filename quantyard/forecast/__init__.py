"""Estimates the time, disk and memory that a plan will take, from past runs."""
