"""Whatever one rank is given, all ranks of the group are told, and none waits for another."""
