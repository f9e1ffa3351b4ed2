"""What tests of programs ask of the machine."""

import pytest

from pipeline.errors import InputError
from pipeline.rewards.containment import require_sandbox


def _missing() -> str:
    """Why no sandbox works here; empty where one does."""
    try:
        require_sandbox()
    except InputError as error:
        return str(error)
    return ""


needs_sandbox = pytest.mark.skipif(bool(_missing()), reason=_missing())
