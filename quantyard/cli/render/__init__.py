"""Everything a terminal shows."""
