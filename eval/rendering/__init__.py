"""Report and plots."""
