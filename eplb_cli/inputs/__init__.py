"""What a command is given: OLD, NEW, options, a saved plan."""
