"""Reports on finished runs: what the numbers say, and how surely."""
