"""The page at the end of a run: a failure is said and does no harm."""

import pytest

from flows import page
from flows.page import publish
from tests.project import FlowProject

pytestmark = pytest.mark.slow  # a process of its own


def test_a_page_is_written_and_linked_where_there_is_a_server(
    flow_project: FlowProject, monkeypatch: pytest.MonkeyPatch
) -> None:
    links: list[dict[str, str]] = []
    monkeypatch.setattr(page, "create_link_artifact", lambda **given: links.append(given))
    written = flow_project.root / "runs" / "report.html"
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert publish(flow_project.root) == f"the page: {written}"
    assert written.is_file()
    assert links == []
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    publish(flow_project.root)
    assert [link["link"] for link in links] == [written.as_uri()]


def test_what_goes_wrong_is_said(flow_project: FlowProject, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(**given: str) -> None:
        raise ConnectionError("nobody there")

    monkeypatch.setattr(page, "create_link_artifact", refuse)
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:9/api")
    assert publish(flow_project.root) == "no page, or no link to it: nobody there"
    (flow_project.root / "params.yaml").write_text("seed: one\n")
    assert "no page: `r1flow report` ended with 2" in publish(flow_project.root)
