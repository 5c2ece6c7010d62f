"""How evenly placements spread the work over ranks, and placements that are nearer to what is there."""
