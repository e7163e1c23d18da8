"""What a request may ask for, and how much."""
