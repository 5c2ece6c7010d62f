"""How evenly placements spread a load; placements that are balanced, near to what is there, or repaired."""
