"""Serves built files: with Docker Compose, as a process, or inside an image."""
