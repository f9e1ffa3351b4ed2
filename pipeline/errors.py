"""The four ways in which a stage stops for a reason that is the user's to know, and their exit codes.

Everything else that is raised is a bug of ours and keeps its traceback, but for one thing: where a store or registry
does not answer or refuses we raise ConnectionError itself, with the address. The command line shows that as a message
too; a stage is tried again, as it may pass.
"""

EXIT_BUG = 1
EXIT_INPUT = 2
EXIT_GATE = 3
EXIT_HEALTH = 4
EXIT_BUDGET = 5


class InputError(ValueError):
    """An outside input is wrong. The message names the file, line or key, the value, and the rule it breaks."""


class GateFailedError(Exception):
    """Data or a model did not pass its gate. The message names the expectation and shows what broke it."""


class RunStoppedError(Exception):
    """A training run is sick beyond its bounded help. The message names condition, evidence and what to try."""


class BudgetExceededError(Exception):
    """What is left of the budget does not reach to the next checkpoint. The message names spent, needed and allowed."""


EXPECTED = (InputError, GateFailedError, RunStoppedError, BudgetExceededError)
"""Shown as their message alone, and not tried again: the same work would end the same way."""


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
        case RunStoppedError():
            return EXIT_HEALTH
        case BudgetExceededError():
            return EXIT_BUDGET
        case _:
            return EXIT_BUG
