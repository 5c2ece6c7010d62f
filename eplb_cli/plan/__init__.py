"""Two placements become one table of moves."""
