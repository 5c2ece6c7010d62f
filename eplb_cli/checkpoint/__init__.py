"""Where every row of every expert lies in SRC."""
