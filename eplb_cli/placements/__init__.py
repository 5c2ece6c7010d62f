"""Which expert each slot holds: read in any dialect, checked, written."""
