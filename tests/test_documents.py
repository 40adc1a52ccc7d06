"""README and docs: relative links lead somewhere, and command lines of run.py, make and python -m are ones that exist."""

from __future__ import annotations

import importlib.util
import re
import shlex
from pathlib import Path

import pytest

import run
from tasks import TASKS, launch
from tasks.kinds import choose
from utils.config import load_config

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    *sorted((ROOT / "docs").glob("*.md")),
    ROOT / "benchmarks/README.md",
]
BLOCK = re.compile(r"```(?:bash|sh)?\n(.*?)```", re.S)


def commands() -> list[tuple[str, str]]:
    """(page, command line) of every block, without those that show how a mistake is told."""
    found = []
    for page in PAGES:
        for block in BLOCK.findall(page.read_text(encoding="utf-8")):
            lines = [line.removeprefix("$ ") for line in block.splitlines()]
            after = [*lines[1:], ""]
            pairs = zip(lines, after, strict=True)
            found += [(page.name, line) for line, following in pairs if not following.startswith("error:")]
    return [(page, line) for page, line in found if line.startswith(("python ", "make ", "torchrun "))]


COMMANDS = commands()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if target.startswith(("http", "mailto:")):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        assert linked.exists(), target
        if anchor:
            titles = re.findall(r"^#+ (.+)$", linked.read_text(encoding="utf-8"), re.M)
            assert anchor in [re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles], target


def test_the_pages_have_commands():
    assert len(COMMANDS) > 20


@pytest.mark.parametrize(("page", "line"), COMMANDS)
def test_a_printed_command_exists(page, line, monkeypatch):
    """Its flags are known, its config binds with its overrides, its module or target is there."""
    monkeypatch.chdir(ROOT)
    words = shlex.split(line, comments=True)
    while "=" in words[0] and not words[0].startswith("-"):
        words = words[1:]
    if words[0] == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M)
        variables = dict(word.split("=") for word in words[1:] if "=" in word)
        assert all(word in targets for word in words[1:] if "=" not in word)
        assert variables.get("TASK", "pretrain") in TASKS
    elif words[1] == "-m":
        assert importlib.util.find_spec(words[2]) is not None, words[2]
    elif words[1] == "run.py":
        check_run(words[2:])
    else:
        assert words[0] == "torchrun" or (ROOT / words[1]).is_file(), line


def check_run(arguments: list[str]) -> None:
    if arguments[0] in run.COMMANDS:
        module = importlib.import_module(run.COMMANDS[arguments[0]].module)
        module.arguments_of(arguments[1:])
        return
    flags = launch.parse_run(arguments)
    if flags.config is None and flags.task is None:
        assert flags.output and flags.resume
        return
    config = None if flags.config in (None, "C", "FILE") else flags.config
    if flags.config is not None and config is None:
        return
    choice = choose(config, flags.overrides, flags.task)
    load_config(choice.config, flags.overrides, choice.load()[0])
