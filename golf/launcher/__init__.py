"""Fan-out: from typed runs to run folders, commands, processes."""
