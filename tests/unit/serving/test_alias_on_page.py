"""A person moves the alias on MLflow's own page, and the endpoint follows."""

from pathlib import Path

import pytest

from pipeline.promotion.outcome import TAGS
from tests.browser import Browser, installed
from tests.mlflow_server import mlflow_server
from tests.unit.serving.champions import MODEL, Project, noted, taught
from tests.unit.serving.toys import until

EDITOR = "[data-component-id*=modelversionviewaliaseditor]"
FIELD, SAVE = "[role=dialog] input", "[data-component-id='mlflow.edit-aliases-modal.save-button']"
ENTER = {"key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13}


def is_there(browser: Browser, what: str) -> bool:
    return bool(browser.run(f'return !!document.querySelector("{what}")'))


def click(browser: Browser, what: str) -> None:
    until(lambda: is_there(browser, what), 60)
    browser.run(f'document.querySelector("{what}").click()')


def give_alias(browser: Browser, uri: str, version: int) -> None:
    """As a person does: the pencil beside the aliases, the name, Enter, Save."""
    browser.open(f"{uri}/#/models/{MODEL}/versions/{version}", 1400)
    click(browser, EDITOR)
    until(lambda: is_there(browser, FIELD), 60)
    browser.run(f'document.querySelector("{FIELD}").focus()')
    browser.command("Input.insertText", text="champion")
    for kind in ("keyDown", "keyUp"):
        browser.command("Input.dispatchKeyEvent", type=kind, **ENTER)
    click(browser, SAVE)


@pytest.mark.slow
@pytest.mark.timeout(600)  # a server of MLflow, a browser and a server of ours, all of which start
@pytest.mark.skipif(not installed(), reason="needs chromium and chromedriver")
def test_the_alias_that_is_moved_on_the_page_moves_the_endpoint(tmp_path: Path) -> None:
    (tmp_path / "mlflow").mkdir()
    with mlflow_server(tmp_path / "mlflow") as (uri, _), Browser(tmp_path / "browser") as browser:
        project = Project(tmp_path / "project", uri=uri)
        good = taught("a", "7")
        project.release(good)
        project.release(good, noted)
        wrong = project.release(taught("a", "8"))
        with project.serve() as server:
            assert server.version() == 1
            give_alias(browser, uri, 2)
            assert until(lambda: server.version() == 2, 60) < 15
            give_alias(browser, uri, wrong.number)
            until(lambda: ("refused", wrong.number) in project.kinds(), 60)
            assert server.version() == 2
            browser.open(f"{uri}/#/models/{MODEL}/versions/{wrong.number}", 1400)
            until(lambda: TAGS["refused"] in browser.run("return document.body.innerText"), 60)
            assert "held-out problems right" in browser.run("return document.body.innerText")
