"""The wire: units, chunks, messages, and what carries them."""
