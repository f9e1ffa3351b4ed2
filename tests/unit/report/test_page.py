"""The page says what the files say, and shows texts as texts."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from pipeline import figures
from pipeline.report.page import report_path, write_report
from tests.browser import Browser, installed
from tests.unit.report.conftest import HOSTILE, MODELS, add_stage, bare_project, write


class Page(HTMLParser):
    """What a browser would find in the page: elements, the text of figures, the JSON, the visible text."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.shown: dict[str, list[str]] = {}  # data-figure → texts
        self.scripts: list[str] = []
        self.text = ""
        self._figure: str | None = None
        self._inside = ""
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._figure = dict(attributes).get("data-figure")
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._figure, self._inside = None, ""

    def handle_data(self, data: str) -> None:
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data
        if self._figure is not None:
            self.shown.setdefault(self._figure, []).append(data)

    @property
    def facts(self) -> dict[str, Any]:
        return json.loads(self.scripts[0])


def metrics_files(root: Path) -> dict[str, dict[str, float]]:
    files = sorted((root / "artifacts").rglob("metrics.json"))
    named = {"@".join(file.parent.relative_to(root / "artifacts").parts): file for file in files}
    return {stage: json.loads(file.read_text()) for stage, file in named.items()}


def test_every_figure_on_the_page_is_the_one_in_metrics_json(project: Path) -> None:
    page, metrics = Page(write_report(project)), metrics_files(project)
    for name, texts in page.shown.items():
        stage, _, key = name.partition("/")
        value = metrics[stage][key]
        assert set(texts) <= {figures.number(value), figures.percent(value)}, name
    assert {f"{stage}/{key}" for stage, known in metrics.items() for key in known} == set(page.shown)
    assert metrics["evaluation"].pop("odd") != 0  # not a number: JSON has null for it
    assert page.facts["metrics"]["evaluation"].pop("odd", None) is None
    known = {stage: {k: v for k, v in of.items() if k != "odd"} for stage, of in page.facts["metrics"].items()}
    assert known == metrics


def test_models_are_those_of_the_figures_with_their_bounds(project: Path) -> None:
    page, metrics = Page(write_report(project)), metrics_files(project)["evaluation"]
    assert [model["name"] for model in page.facts["models"]] == list(MODELS)
    for model in page.facts["models"]:
        for field, suffix in (("pass_at_1", ""), ("low", "_low"), ("high", "_high")):
            key = f"{model['name']}.pass_at_1{suffix}"
            assert model[field] == metrics[key]
            assert figures.percent(metrics[key]) in page.shown[f"evaluation/{key}"]


def test_comparisons_and_other_figures_are_there(project: Path) -> None:
    page = Page(write_report(project))
    assert page.shown["evaluation/general_rl.over_base"] == [figures.percent(0.4725), "0.4725"]
    assert page.text.count("One against the other") == 1
    assert "cons@4" in page.text
    [base] = [model for model in page.facts["models"] if model["name"] == "base"]
    assert (base["others"], base["against"]) == ({"cons_at_4": "base.cons_at_4"}, {})


def test_texts_of_models_and_data_stay_texts(project: Path) -> None:
    page = Page(write_report(project))
    assert (page.tags.count("script"), page.tags.count("img")) == (2, 0)
    problem = page.facts["samples"]["problems"][0]
    assert problem["prompt"] == HOSTILE
    assert problem["answers"]["base"][0][0] == HOSTILE
    assert HOSTILE in page.text  # the stage's error, and params.yaml
    assert "<" not in page.scripts[0]


def test_nothing_is_fetched_from_anywhere(project: Path) -> None:
    text = write_report(project).read_text(encoding="utf-8")
    assert "default-src 'none'" in text
    addresses = set(re.findall(r"https?://[^\s\"'<]+", text))
    assert addresses <= {"http://www.w3.org/2000/svg"}  # a name, not an address


def test_a_project_in_which_nothing_has_run_has_a_page(tmp_path: Path) -> None:
    page = Page(write_report(bare_project(tmp_path)))
    assert [stage["ending"] for stage in page.facts["stages"]] == ["not run"] * 8
    assert page.facts["models"] == []
    assert page.facts["samples"] is None


def test_a_part_of_the_recipe_has_a_page(tmp_path: Path) -> None:
    root = bare_project(tmp_path)
    add_stage(root, "base", {"loss": 0.5})
    page = Page(write_report(root))
    assert page.shown == {"base/loss": ["0.5"]}
    assert "1 h 0 min" in page.text
    assert "not readable" in page.text  # energy
    assert "1.00 USD" in page.text


def test_the_page_is_replaced_whole(project: Path) -> None:
    first = write_report(project)
    assert first == report_path(project)
    assert write_report(project).read_text().endswith("</html>")
    assert [file.name for file in first.parent.iterdir() if file.is_file()] == ["report.html"]


@pytest.mark.slow
@pytest.mark.skipif(not installed(), reason="needs chromium and chromedriver")
def test_a_browser_shows_it_without_complaint_and_asks_nobody(project: Path, tmp_path: Path) -> None:
    page = write_report(project)
    with Browser(tmp_path / "profile") as browser:
        for width in (1400, 400):
            browser.open(page, width)
            assert browser.run("return document.documentElement.scrollWidth") == width, "the page scrolls sideways"
            empty = [place for place in _charts(browser) if not place["drawn"]]
            assert empty == []
        assert browser.run("return document.title") != "taken"
        assert HOSTILE in browser.run("return document.getElementById('browser').textContent")
        changed = _choose(browser, other="base", verdict="changed")
        assert changed == "20 problems"  # every second one
        assert _choose(browser, other="base", verdict="worse") == "0 problems"
        browser.run("document.getElementById('theme').click()")
        assert browser.log("browser") == []
        asked = [json.loads(entry["message"])["message"] for entry in browser.log("performance")]
        urls = {event["params"]["request"]["url"] for event in asked if event["method"] == "Network.requestWillBeSent"}
        assert {url for url in urls if not url.startswith(("chrome:", "data:"))} == {page.as_uri()}


def _charts(browser: Browser) -> list[dict[str, Any]]:
    return browser.run(
        "return [...document.querySelectorAll('[data-chart]')].filter((place) => place.clientWidth)"
        ".map((place) => ({name: place.dataset.chart, drawn: place.children.length > 0}))"
    )


def _choose(browser: Browser, **choices: str) -> str:
    """Set filters by their place and return what the browser of samples says it found."""
    captions = {"other": "beside", "verdict": "show"}
    for name, value in choices.items():
        browser.run(
            f"const select = document.querySelector('select[aria-label={captions[name]}]');"
            f"select.value = {value!r}; select.dispatchEvent(new Event('change'))"
        )
    return browser.run("return document.querySelector('#browser .dim').textContent")


def add_study(root: Path, results: dict[str, Any]) -> None:
    for name in ("ran", "did_not"):
        arms = "{one: {model: base}, other: {model: base}}"
        study = f"question: Does it {name}? {HOSTILE!r}\ncontrol: one\nseeds: [0, 1]\narms: {arms}\n"
        write(root / "infra" / "profiles" / "studies" / f"{name}.yaml", study)
    write(root / "runs" / "studies" / "ran" / "results.json", results)


def test_studies_show_what_their_results_say_and_which_were_not_run(project: Path) -> None:
    def arm(share: float, **more: float) -> dict[str, Any]:
        pooled = {"pass_at_1": share, "pass_at_1_low": share - 0.0625, "pass_at_1_high": share + 0.0625, "tokens": 9.5}
        spent = {"own": None, "way": None, "currency": "USD"}
        return {
            "total": 7e6, "activated": 4e5, "pooled": pooled | more, "seeds": {"0": pooled, "1": pooled},
            "spent": {"0": spent, "1": spent},
        }  # fmt: skip

    over = {"over_control": 0.1825, "over_control_low": -0.0025, "over_control_high": 0.25, "p_value": 0.031}
    results = {
        "study": "ran", "question": HOSTILE, "control": "one", "problems": 40, "samples": 4, "seeds": [0, 1],
        "arms": {"one": arm(0.5), "other": arm(0.6825, **over)},
    }  # fmt: skip
    add_study(project, results)
    page = Page(write_report(project))
    assert page.facts["studies"] == {
        "ran": [
            {"name": name, "pass_at_1": share, "low": share - 0.0625, "high": share + 0.0625}
            for name, share in (("one", 0.5), ("other", 0.6825))
        ]
    }
    for text in ("68.3 [62.0, 74.5]", "+18.3 [-0.3, +25.0]", "0.031", "40 held-out problems × 4 samples, seeds 0, 1"):
        assert text in page.text
    assert page.text.index("r1flow study ran") < page.text.index("r1flow study did_not")
    assert page.tags.count("img") == 0
