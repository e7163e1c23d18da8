"""The calibration text that comes with Quantyard, and the script that makes it."""
