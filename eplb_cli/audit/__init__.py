"""A tree looked at again: inspect, verify, identify."""
