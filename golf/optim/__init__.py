"""Optimizers - a table of groups, one file a rule."""
