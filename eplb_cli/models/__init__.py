"""Layers, experts and sizes; how many tokens each expert got."""
