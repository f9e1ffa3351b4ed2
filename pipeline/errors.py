"""The two ways in which a stage stops for a reason that is the user's to know, and their exit codes.

Everything else that is raised is a bug of ours and keeps its traceback.
"""

EXIT_BUG = 1
EXIT_INPUT = 2
EXIT_GATE = 3


class InputError(ValueError):
    """An outside input is wrong. The message names the file, line or key, the value, and the rule it breaks."""


class GateFailedError(Exception):
    """Data or a model did not pass its gate. The message names the expectation and shows what broke it."""


def exit_code(error: BaseException | None) -> int:
    """The exit status that says how a stage ended."""
    match error:
        case None:
            return 0
        case SystemExit(code=int(code)):
            return code
        case InputError():
            return EXIT_INPUT
        case GateFailedError():
            return EXIT_GATE
        case _:
            return EXIT_BUG
