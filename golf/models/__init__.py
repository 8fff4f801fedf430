"""Architectures - the shell (lm), the slots, one file an idea."""
