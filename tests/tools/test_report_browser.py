"""``run.py report``: the page in a browser, on a screen and on a phone, in light and dark mode."""

from __future__ import annotations

import json

import pytest

from run import main
from tests.browser import browser  # noqa: F401 (fixture)
from tests.tasks.conftest import data, overrides  # noqa: F401 (fixtures)
from tests.tools.report_runs import boxes, make_run  # noqa: F401 (fixture)

pytestmark = pytest.mark.slow

EVIL = "<img src=x onerror=alert(1)>\"'[0].a"
FACTS = """() => ({
  overflow: document.documentElement.scrollWidth - innerWidth,
  charts: document.querySelectorAll("figure.chart").length,
  drawn: document.querySelectorAll("figure.chart svg").length,
  clipped: [...document.querySelectorAll("figure.chart svg")].filter(
    svg => svg.getBoundingClientRect().right > innerWidth + 1 || svg.getBoundingClientRect().width < 200).length,
  small: [...document.querySelectorAll("body *")].filter(element => element.checkVisibility()
    && [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim())
    && parseFloat(getComputedStyle(element).fontSize) < 13).map(element => element.outerHTML.slice(0, 80)),
})"""


@pytest.fixture
def opened(browser, tmp_path, request):  # noqa: F811
    """Opens a page with all its sections unfolded. Any request or console message of the page fails the test."""
    problems = []

    def of(width: int, scheme: str, javascript: bool = True):
        context = browser.new_context(
            viewport={"width": width, "height": 800}, color_scheme=scheme, java_script_enabled=javascript
        )
        page = context.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(dialog.message))
        page.on(
            "request",
            lambda asked: problems.append(asked.url) if not asked.url.startswith(("file:", "data:")) else None,
        )
        page.goto((tmp_path / "page.html").as_uri())
        if javascript:
            page.evaluate("document.querySelectorAll('details').forEach(details => { details.open = true; })")
            page.wait_for_function("!document.querySelector('figure.chart .drawing:empty')")
        return page

    yield of
    assert problems == []


@pytest.fixture
def pages(make, tmp_path):
    """Writes the page of a run, or of two groups of runs, with malicious metric names."""

    def write(*settings: list[str]) -> None:
        folders = []
        for number, each in enumerate(settings):
            folder = make(f"{'long-name-' * 4}{number}", *each, predictions=boxes(right=(number,)), recall=0.1 * number)
            lines = [
                {"step": step, EVIL: 100.0**step, "IoU >= 0.5": step / 9, "loss": 2.0 / step} for step in range(1, 9)
            ]
            for file in ("metrics.jsonl", "validation.jsonl"):
                (folder / file).write_text("".join(json.dumps(line) + "\n" for line in lines))
            folders.append(str(folder))
        assert main(["report", *folders, "--output", str(tmp_path / "page.html")]) == 0

    return write


ONE = [["seed=0"]]
GROUPS = [[f"seed={seed}", f"optim.lr={lr}"] for lr in (0.1, 0.2) for seed in (0, 1)]


@pytest.mark.parametrize("settings", [ONE, GROUPS], ids=["one", "groups"])
@pytest.mark.parametrize(("width", "scheme"), [(1280, "light"), (390, "dark")])
def test_charts_are_drawn_and_nothing_overflows(pages, opened, settings, width, scheme):
    pages(*settings)
    page = opened(width, scheme)
    facts = page.evaluate(FACTS)
    assert facts["charts"] == facts["drawn"] >= 4 * len(settings)
    assert (facts["overflow"], facts["clipped"], facts["small"]) == (0, 0, [])
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, ground[4:-1].split(","))) < 200) == (scheme == "dark")
    links = page.eval_on_selector_all("nav a", "links => links.map(link => link.getAttribute('href'))")
    assert len(links) >= 8 and all(page.query_selector(link) for link in links)


def test_hovering_shows_the_values_of_all_lines_as_text(pages, opened):
    pages(*GROUPS)
    page = opened(1280, "light")
    title = page.locator("figure.chart figcaption", has_text="onerror").first
    drawing = title.locator("xpath=../div[contains(@class, 'drawing')]")
    drawing.scroll_into_view_if_needed()
    box = drawing.bounding_box()
    page.mouse.move(box["x"] + 0.6 * box["width"], box["y"] + 60)
    page.mouse.move(box["x"] + box["width"] - 30, box["y"] + 60)
    tip = page.locator("#vg-tooltip-element.visible")
    tip.wait_for()
    rows = [row.inner_text().split("\t") for row in tip.locator("tr").all()]
    assert rows[0][0].rstrip(":") == "step" and len(rows) == 3
    assert float(rows[1][1].replace("−", "-")) > 1e10


def test_without_javascript_the_page_shows_a_note_tables_and_images(pages, opened):
    pages(*ONE)
    page = opened(390, "light", javascript=False)
    assert "need JavaScript" in page.locator("noscript").inner_html()
    assert page.locator("table").count() == 2 and page.locator(".card img").first.is_visible()
