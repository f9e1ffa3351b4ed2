"""Fixtures of several test folders."""

from pathlib import Path

import pytest

from tests.project import FlowProject


@pytest.fixture
def flow_project(tmp_path: Path) -> FlowProject:
    return FlowProject(tmp_path)
