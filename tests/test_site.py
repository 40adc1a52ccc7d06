"""The documentation site builds without warnings; its reference covers commands, config keys and the Python API."""

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
    assert 'href="own_data/"' in home and 'src="asked.png"' in home
    assert not re.search(r'href="[^"]*\.md[#"]', home)


def test_the_reference_has_every_command_key_and_documented_object(site):
    commands = (site / "reference/commands/index.html").read_text(encoding="utf-8")
    assert all(f'id="{name}"' in commands for name in COMMANDS)
    keys = (site / "reference/config/index.html").read_text(encoding="utf-8")
    assert keys.count("<dd>") == document().count("\n:   ") > 300
    api = (site / "reference/api/index.html").read_text(encoding="utf-8")
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
