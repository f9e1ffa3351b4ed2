"""The two ways in which a stage stops for a reason that is the user's to know, and their exit codes.

Everything else that is raised is a bug of ours and keeps its traceback.
"""

EXIT_INPUT = 2
EXIT_GATE = 3


class InputError(ValueError):
    """An outside input is wrong. The message names the file, line or key, the value, and the rule it breaks."""


class GateFailedError(Exception):
    """Data or a model did not pass its gate. The message names the expectation and shows what broke it."""
