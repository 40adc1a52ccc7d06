"""The table of commands, and the command that docs/architecture.md adds."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from commands import COMMANDS
from utils.commands import argv_of, call

ROOT = Path(__file__).parents[2]
SHARED = {"__init__", "models"}
"""Modules of commands/ that hold no command."""


def test_each_module_has_a_command_and_each_command_its_module():
    modules = {path.stem for path in (ROOT / "commands").glob("*.py")} - SHARED
    targets = {name: command.target.split(":") for name, command in COMMANDS.items()}
    assert {module for module, _ in targets.values()} - {"run"} == {f"commands.{module}" for module in modules}
    assert all(function == name.replace("-", "_") for name, (_, function) in targets.items())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_describes_itself_and_each_of_its_flags(name):
    document = COMMANDS[name].load().__doc__
    assert document and re.match(r"[A-Z`].*?[.:]", document, re.S)


def test_the_command_of_the_page_runs_as_printed(tmp_path, capsys):
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split("### A command\n", 1)[1]
    source, line = re.findall(r"```python\n(.*?)```", page, re.S)[:2]
    names: dict[str, object] = {}
    exec(
        "import sys\nfrom pathlib import Path\nfrom typing import Annotated\n"
        "from utils.flags import SEVERAL, Positive\nfrom utils.subcommands import Command\n" + source + line,
        names,
    )
    count = names["count"]
    for number, records in enumerate((2, 3)):
        (tmp_path / f"{number}.jsonl").write_text("{}\n" * records)
    files = [tmp_path / "0.jsonl", tmp_path / "1.jsonl"]
    assert call(count, argv_of(count, records=files, least=3), "run.py count") == 1
    assert capsys.readouterr().out == f"{files[0]}: 2\n{files[1]}: 3\n"
    assert call(count, ["--records", *map(str, files)], "run.py count") == 0
    assert call(count, ["--help"], "run.py count") == 0
    shown = capsys.readouterr().out
    assert "files in JSON lines." in shown and "python run.py count --records data/own/*.jsonl" in shown
