import pytest
import torch


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> None:
    """Models of a few thousand parameters: more threads would only wait for each other."""
    torch.set_num_threads(1)
