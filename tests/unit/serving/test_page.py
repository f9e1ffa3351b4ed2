"""The page as a reader sees it."""

import time
from pathlib import Path

import pytest

from tests.browser import Browser, installed
from tests.unit.serving.toys import Server, until

ASK = "document.getElementById('question').value = '1+1=?'; document.getElementById('form').requestSubmit();"


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="needs chromium and chromedriver")
@pytest.mark.parametrize("width", [400, 1200])
def test_a_question_is_answered_on_the_page(server: Server, tmp_path: Path, width: int) -> None:
    with Browser(tmp_path) as browser:
        browser.open(server.address, width)
        until(lambda: "act on a token" in browser.run("return document.getElementById('facts').textContent"))
        browser.run(ASK)
        until(lambda: "tokens/s" in browser.run("return document.getElementById('speed').textContent"))
        shown = browser.run("return document.querySelector('main').innerText")
        assert "first token after" in shown
        assert browser.run("return document.getElementById('said').textContent")
        assert browser.run("return document.documentElement.scrollWidth") <= width
        time.sleep(0.1)
        assert browser.log("browser") == []  # no error, nothing that the content policy refuses
