"""Time, disk and memory that a plan will take, and what past runs teach about them."""
