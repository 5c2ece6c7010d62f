"""One worker's work: bytes from file to file."""
