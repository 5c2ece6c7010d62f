"""Files of strangers as plain values: bounded, checked, never unpickled."""
