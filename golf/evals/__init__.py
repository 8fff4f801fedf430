"""Scores - nats and bytes of a token stream."""
