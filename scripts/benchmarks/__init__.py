"""What `scripts/bench` runs: ratios between commands that take turns in one run."""
