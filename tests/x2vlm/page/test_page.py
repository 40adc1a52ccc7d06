"""The page: what each tab says, its limits, and the whole of it in a browser."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from run import main
from tests.tasks.painted import ROOT
from utils.errors import UserError
from x2vlm.page.abilities import MOST_TEXTS, abilities_of, lines_of
from x2vlm.page.limits import RateLimit

TABS = {
    "pretrain": ["locate", "match", "explain"],
    "retrieval": ["match", "explain"],
    "captioning": ["caption"],
    "grounding": ["locate"],
    "vqa": ["answer"],
    "nlvr": ["compare"],
}
PICTURES = ("locate", "explain", "search")


@pytest.mark.parametrize("kind", TABS)
def test_a_model_has_a_tab_for_all_that_it_can_be_asked(kind, model, data):
    image = str(data / "images/1.png")
    found = abilities_of(model(kind))
    assert [ability.name for ability in found] == TABS[kind]
    for ability in found:
        if (kind, ability.name) == ("retrieval", "explain"):
            continue  # the tiny model has one block of the fusion, which has no maps
        answer = ability.ask([image] * ability.files, ability.example)
        assert answer.lines and all(answer.lines)
        assert (answer.picture is not None) == (ability.name in PICTURES)
        if answer.picture is not None:
            assert answer.picture.dtype == np.uint8 and answer.picture.shape[1] > 300


def test_answers_are_those_of_the_model(model, data):
    image = str(data / "images/1.png")
    tabs = {ability.name: ability for ability in abilities_of(model("pretrain"))}
    [box] = model("pretrain").locate(image, "a star")[0]
    [line] = tabs["locate"].ask([image], "a star").lines
    assert line == f"a star: {box.x:.0f}, {box.y:.0f}, {box.width:.0f} x {box.height:.0f}, {box.score:.2f}"
    scores = model("pretrain").match(image, ["a star", "a dog"])[0]
    lines = tabs["match"].ask([image], "a star\n\n a dog ").lines
    assert lines == [f"{scores[n]:.3f}  {('a star', 'a dog')[n]}" for n in np.argsort(-scores)]


def test_an_index_is_searched(model, data, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    index = model("pretrain").index(data / "images", tmp_path / "index")
    search = abilities_of(model("pretrain"), index)[0]
    assert (search.name, search.files) == ("search", 0)
    answer = search.ask([], "a star")
    assert [line.split("  ")[1] for line in answer.lines] == [hit.path.name for hit in index.search("a star", top=12)]
    assert answer.picture is not None


def test_texts_are_lines_of_a_bounded_number_and_length():
    assert lines_of(" a \n\nb\n") == ["a", "b"]
    for text, said in [
        (" \n", "give a text"),
        ("a\n" * (MOST_TEXTS + 1), "9 lines were given"),
        ("a" * 3000, "has 3,000 characters"),
    ]:
        with pytest.raises(UserError, match=said):
            lines_of(text)


def test_a_visitor_may_ask_so_often_in_a_minute():
    limit = RateLimit(2)
    limit.count("a", 0.0)
    limit.count("a", 30.0)
    limit.count("b", 30.0)
    with pytest.raises(UserError, match=r"^2 questions a minute; ask again in 20 s"):
        limit.count("a", 40.0)
    limit.count("a", 60.0)
    with pytest.raises(UserError):
        limit.count("a", 61.0)


def test_without_gradio_the_remedy_is_told(run, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["serve", "--model", str(run("pretrain"))]) == 2
    assert capsys.readouterr().err == 'error: serve: needs gradio, which is not installed: pip install ".[page]"\n'


@pytest.fixture
def served(run, tmp_path) -> Iterator[str]:
    """The address of a page of two models, in a process of its own."""
    pytest.importorskip("gradio", reason='the page needs gradio: pip install ".[page]"')
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, str(ROOT / "run.py"), "serve", "--port", str(port), "--max-mb", "1"]
    models = ["--model", str(run("pretrain")), "--model", str(run("vqa"))]
    process = subprocess.Popen([*command, *models], stdout=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
    finally:
        process.send_signal(signal.SIGINT)
        assert process.wait(30) in (0, 130)


@pytest.fixture
def browser() -> Iterator[object]:
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="a browser is driven by playwright: pip install playwright"
    )
    chromium = shutil.which("chromium")
    if chromium is None:
        pytest.skip("Chromium is not installed: apt install chromium")
    with playwright.sync_playwright() as started:
        launched = started.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield launched
        launched.close()


@pytest.mark.slow
def test_the_page_in_a_browser(served, browser, data, tmp_path):
    """A picture is uploaded, a question asked, the drawn result read; a hostile upload, and a large one, are refused."""
    page, asked = browser.new_page(), []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(served)
    page.get_by_role("tab", name="locate").click()
    page.set_input_files("#locate-pretrain-1 input[type=file]", str(data / "images/1.png"))
    page.locator("img:visible").first.wait_for()
    page.locator("textarea:visible").first.fill("a red star")
    page.get_by_role("button", name="locate", exact=True).click()
    answer = page.locator(".lines textarea:visible").first
    wait_until(lambda: re.fullmatch(r"a red star: \d+, \d+, \d+ x \d+, \d\.\d\d", answer.input_value()))
    wait_until(lambda: page.locator("img:visible").count() == 2)
    page.get_by_role("tab", name="match").click()
    hostile = tmp_path / "hostile.png"
    hostile.write_bytes(b"\x89PNG\r\n\x1a\n" + b"<script>alert(1)</script>")
    page.set_input_files("#match-pretrain-1 input[type=file]", str(hostile))
    page.get_by_text("hostile.png: unreadable image").wait_for()
    large = tmp_path / "large.png"
    Image.effect_noise((1500, 1500), 200).save(large)
    assert large.stat().st_size > 1024**2
    page.get_by_role("tab", name="answer").click()
    page.set_input_files("#answer-vqa-1 input[type=file]", str(large))
    page.get_by_text("exceed the maximum allowed size").wait_for()
    assert {url.split("/")[2] for url in asked if url.startswith("http")} == {served.removeprefix("http://")}
    assert str(Path(os.sep, "tmp")) not in page.inner_text("body")


def wait_until(holds) -> None:
    for _ in range(200):
        if holds():
            return
        time.sleep(0.1)
    raise AssertionError("waited for 20 s")
