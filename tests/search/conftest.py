from tests.helpers.sweeps import door, outputs, world

__all__ = ["door", "outputs", "world"]  # fixtures of every test here
