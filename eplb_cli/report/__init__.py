"""The numbers of a plan or a run."""
