"""Fixtures of several test folders."""

from pathlib import Path

import pytest

from pipeline.process import spin_briefly
from tests.project import FlowProject

spin_briefly()  # before any test imports torch


@pytest.fixture
def flow_project(tmp_path: Path) -> FlowProject:
    return FlowProject(tmp_path)


@pytest.fixture(scope="session")
def prefect_home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prefect's folder for all tests that run the flow: its database is made once, which takes seconds."""
    return tmp_path_factory.mktemp("prefect")
