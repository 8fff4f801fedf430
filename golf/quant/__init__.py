"""Quantisers - the grid, the formats, the role table."""
