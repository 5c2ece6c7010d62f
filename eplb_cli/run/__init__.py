"""`plan` and `reshard`: one run from the request to the report."""
