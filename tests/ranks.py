"""The name under which other tests know ranks that are processes."""

from tests.helpers.ranks import on_processes as on_ranks

__all__ = ["on_ranks"]
