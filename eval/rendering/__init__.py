"""Renders a report as Markdown and as plots."""
