"""The page as a reader sees it."""

import time
from pathlib import Path

import pytest

from tests.browser import Browser, installed
from tests.unit.serving.toys import Server, until

# Greedily, which writes up to the server's limit: what a random model samples may end at any token.
ASK = """
document.getElementById("temperature").value = "0";
document.getElementById("question").value = "1+1=?";
document.getElementById("form").requestSubmit();
"""


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="needs chromium and chromedriver")
@pytest.mark.parametrize("width", [400, 1200])
def test_a_question_is_answered_on_the_page(server: Server, tmp_path: Path, width: int) -> None:
    with Browser(tmp_path) as browser:
        browser.open(server.address, width)
        until(lambda: "act on a token" in browser.run("return document.getElementById('facts').textContent"))
        browser.run(ASK)
        until(lambda: "written 480 tokens" in browser.run("return document.getElementById('speed').textContent"))
        shown = browser.run("return document.querySelector('main').innerText")
        assert "first token after" in shown
        assert browser.run("return document.getElementById('said').textContent")
        assert browser.run("return document.documentElement.scrollWidth") <= width
        time.sleep(0.1)
        assert browser.log("browser") == []  # no error, nothing that the content policy refuses


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="needs chromium and chromedriver")
def test_the_speed_is_that_after_the_first_token(server: Server, tmp_path: Path) -> None:
    with Browser(tmp_path) as browser:
        browser.open(server.address, 800)
        said = "return document.getElementById('speed').textContent"
        assert browser.run(f"speed(11, 100, 105, 125, null); {said}") == "first token after 5 msspeed 500 tokens/s"
        # All came at once: nothing to divide by.
        assert browser.run(f"speed(11, 100, 105, 105, null); {said}") == "first token after 5 ms"
