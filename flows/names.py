"""What runs are called on Prefect's pages, in place of the names that it makes up."""

from datetime import UTC, datetime

from prefect.runtime import flow_run


def dated() -> str:
    """The flow and the minute: `recipe 2026-11-28 03:00`."""
    return f"{flow_run.flow_name} {datetime.now(UTC):%Y-%m-%d %H:%M}"


def asked() -> str:
    """`approve version 7`."""
    version = flow_run.parameters.get("version")
    return f"approve {'the newest version' if version is None else f'version {version}'}"
