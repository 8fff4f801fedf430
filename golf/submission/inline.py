"""What stands in a bundle for golf's search of its own packages: the bundler writes the table."""

# Config classes that the artifact may name -> their place in golf. Written by the bundler.
TARGETS: dict[type, str] = {}


def target_of(cls: type) -> str:
    """The name of a config class in artifacts: the bundle's are golf's own, byte for byte."""
    return TARGETS[cls]
