"""How much memory serving a model takes."""
