"""How evenly placements spread the work over ranks."""
