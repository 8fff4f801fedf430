"""The ways a run ends badly that are not bugs. Doors print them as one line, without a traceback."""


class UserError(ValueError):
    """Bad input: the message names the key, the value and the fix. Doors exit with code 2."""


class RunError(RuntimeError):
    """A run that cannot go on: the message says at which step, why, and what was saved. Doors exit with `code`."""

    code = 1


class ExportError(RunError):
    """A trained run of whose weights no artifact, or no score of one, could be made. The weights are kept."""


class BusyError(RunError):
    """Another process is at work there."""


class StoppedError(RunError):
    """A signal asked for the end, and all is saved."""

    code = 130
