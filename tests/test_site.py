"""The documentation site builds without warnings, works without a server, and its reference covers commands, config keys and the
Python API."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from commands import COMMANDS
from commands.config import document
from tests.browser import browser  # noqa: F401

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    """The folder of the site. The config is strict, so that broken links, missing anchors and unlisted pages end the build."""
    pytest.importorskip("mkdocs")
    folder = tmp_path_factory.mktemp("site")
    build = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--site-dir", str(folder)],
        cwd=ROOT,
        env={**os.environ, "NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert build.returncode == 0, build.stderr
    assert "WARNING" not in build.stderr
    return folder


def test_the_home_page_is_the_readme_with_its_links_turned_into_pages(site):
    home = (site / "index.html").read_text(encoding="utf-8")
    assert 'href="own_data.html"' in home and 'src="asked.png"' in home
    assert not re.search(r'href="[^"]*\.md[#"]', home)


def test_the_reference_has_every_command_key_and_documented_object(site):
    commands = (site / "reference/commands.html").read_text(encoding="utf-8")
    assert all(f'id="{name}"' in commands for name in COMMANDS)
    keys = (site / "reference/config.html").read_text(encoding="utf-8")
    assert keys.count("<dd>") == document().count("\n:   ") > 300
    api = (site / "reference/api.html").read_text(encoding="utf-8")
    for module, name in (("x2vlm", "load"), ("tasks.kinds", "TaskKind"), ("x2vlm.suites.cases", "CaseSuite")):
        assert hasattr(importlib.import_module(module), name)
        assert f'id="{module}.{name}"' in api


def test_no_page_shows_markup_of_docstrings_or_loads_from_another_server(site):
    pages = list(site.rglob("*.html"))
    assert len(pages) > 25
    for page in pages:
        text = page.read_text(encoding="utf-8")
        assert ":class:" not in text and ":func:" not in text, page
        assert not re.search(r'<(?:script|img)[^>]+src="(?:https?:)?//', text), page
        assert not re.search(r'<link[^>]+rel="stylesheet"[^>]+href="(?:https?:)?//', text), page


@pytest.fixture
def search(site, browser):  # noqa: F811
    """Searches the site's home page, opened as a file, and returns the pages of the results in their order."""
    page = browser.new_page()
    page.goto((site / "index.html").as_uri())

    def results(words: str) -> list[str]:
        page.fill("input.md-search__input", words)
        page.wait_for_selector(".md-search-result__link", state="attached")
        links = page.locator(".md-search-result__link").evaluate_all("links => links.map(link => link.href)")
        return list(dict.fromkeys(Path(link.partition("?")[0].partition("#")[0]).name for link in links))

    return results


def test_links_of_a_page_opened_as_a_file_lead_to_pages(site):
    for page in site.rglob("*.html"):
        for link in re.findall(r'<a[^>]+href="([^"]*)"', page.read_text(encoding="utf-8")):
            path = link.partition("#")[0]
            if path and "://" not in path and not path.startswith("mailto:"):
                assert page.name == "404.html" or (page.parent / path).resolve().is_file(), (page, link)


@pytest.mark.parametrize("words", ["editable installation", "prepare", "held-out splits", "broken records"])
def test_the_search_of_a_page_opened_as_a_file_ranks_the_changelog_last(search, words):
    found = search(words)
    assert len(found) > 1
    assert "changelog.html" not in found[:-1]
