"""DST: laid out, staged, proved, published."""
