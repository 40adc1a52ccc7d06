"""The table of commands, and the example command in docs/architecture.md."""

from __future__ import annotations

import inspect
import random
import re
import shlex
import subprocess
import types
from dataclasses import is_dataclass
from pathlib import Path
from typing import Annotated, get_args, get_origin, get_type_hints

import pytest

from commands import COMMANDS
from run import main
from tests.messages import OneLine
from utils.commands import argv_of, call, parse_arguments
from utils.flags import OutputFile, OutputFolder
from utils.subcommands import subcommands_of

ROOT = Path(__file__).parents[2]
SHARED = {"__init__", "models"}
"""Modules in commands/ that do not define a command."""


def test_each_module_defines_one_command_and_each_command_has_a_module():
    modules = {path.stem for path in (ROOT / "commands").glob("*.py")} - SHARED
    targets = {name: command.target.split(":") for name, command in COMMANDS.items()}
    assert {module for module, _ in targets.values()} - {"run"} == {f"commands.{module}" for module in modules}
    assert all(function == name.replace("-", "_") for name, (_, function) in targets.items())


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_describes_itself_and_each_of_its_flags(name):
    document = COMMANDS[name].load().__doc__
    assert document and re.match(r"[A-Z`].*?[.:]", document, re.S)


ALL = {name: command.load() for name, command in COMMANDS.items()}
ALL |= {
    f"{name} {word}": each.load() for name, command in ALL.items() for word, each in subcommands_of(command).items()
}


@pytest.mark.parametrize("name", ALL)
def test_each_example_in_a_docstring_is_in_the_help(name, capsys):
    assert main([*name.split(), "--help"]) == 0
    shown = capsys.readouterr().out
    for section in re.split(r"^(?=\w+:\n)", inspect.getdoc(ALL[name]) or "", flags=re.MULTILINE)[1:]:
        title, *lines = section.rstrip().splitlines()
        assert all(line.startswith("    ") for line in lines if line), f"a line of {title} is not indented"
        for line in lines if title == "Examples:" else ():
            assert line.removeprefix("    ") in shown


TEXTS = ["-x", "--out", "-1 red", "--", "-1", "a=b", "-a=b c", "[1]", '{"a": 1}', "null", "none", "é ²", "a b", ","]


@pytest.mark.parametrize("name", ALL)
def test_unusual_texts_and_paths_survive_the_round_trip_through_words(name):
    """For each parameter of a command, and each field of its flags, that accepts any text or path."""
    rng = random.Random(name)

    def odd(hint: object) -> object:
        """Returns an unusual value of a type; if the type does not accept every text, returns None."""
        if hint in (OutputFile, OutputFolder):
            return odd(Path)
        if get_origin(hint) is Annotated:
            inner, parameter = get_args(hint)[:2]
            return parameter.choices[0] if parameter.choices else None if parameter.converter else odd(inner)
        if isinstance(hint, types.UnionType):
            return odd(get_args(hint)[0])
        if get_origin(hint) is tuple and get_args(hint)[-1] is not ...:
            return tuple(map(Path, "ab"))  # one flag with two arguments, and a dash would end them
        if get_origin(hint) in (list, tuple):
            values = [odd(get_args(hint)[0]) for _ in range(2)]
            return None if None in values else get_origin(hint)(values)
        if is_dataclass(hint):
            values = {key: odd(each) for key, each in get_type_hints(hint, include_extras=True).items()}
            return hint(**{key: value for key, value in values.items() if value is not None})
        return {str: str, Path: Path}[hint](rng.choice(TEXTS)) if hint in (str, Path) else None

    command = ALL[name]
    hints = get_type_hints(command, include_extras=True)
    parameters = inspect.signature(command).parameters.values()
    named = [each for each in parameters if each.kind is not each.VAR_POSITIONAL]
    for _ in range(10):
        values = {each.name: odd(hints[each.name]) for each in named}
        values = {key: value for key, value in values.items() if value is not None}
        if missing := [each.name for each in named if each.default is each.empty and each.name not in values]:
            pytest.skip(f"{missing[0]} does not accept any text")
        _, bound = parse_arguments(command, argv_of(command, **values), name)
        for key, value in values.items():
            assert bound.arguments.get(key, inspect.signature(command).parameters[key].default) == value


def test_bash_completes_files_and_names(tmp_path, capsys):
    assert main(["completion", "bash"]) == 0
    script = tmp_path / "x2vlm.bash"
    script.write_text(capsys.readouterr().out)

    def completed(*words: str) -> list[str]:
        line = shlex.join(words)
        code = f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1}; _x2vlm; echo ${{COMPREPLY[*]}}"
        return subprocess.run(["bash", "-c", code], capture_output=True, text=True, check=True).stdout.split()

    assert completed("x2vlm", "--task", "retr") == ["retrieval"]
    assert completed("x2vlm", "predict", "loc") == ["locate"]
    assert completed("x2vlm", "index", "--out", f"{tmp_path}/x2") == [str(script)]
    done = subprocess.run(
        ["bash", "-c", f"source {script}; complete -p x2vlm"], capture_output=True, text=True, check=True
    )
    assert "-o default" in done.stdout  # files, because nothing else matches


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--config", "C", "status"], ("status", "first")),
        ([""], ("''", "config, doctor, prepare")),
        (["export", "--model", "RUN"], ("--model", "MODEL", "without a flag")),
        (["predict", "locate", "--modl", "RUN", "--image", "x"], ("--modl", "--model")),
        (["search", "I", "red", "--json=1"], ("--json", "'1'", "no value")),
        (["serve", "--model", "x", "--port", "99999"], ("--port", "'99999'", "65,535")),
        (["--node-rank", "R"], ("--node-rank", "'R'", "at least 0")),
        (["tables", "--row", "bas_4m"], ("--row", "'bas_4m'", "base_4m")),
    ],
)
def test_mistakes_are_reported_in_one_line(words, message, capsys):
    assert main(words) == 2
    assert capsys.readouterr().err == OneLine("error:", *message)


def test_the_help_lists_the_commands_in_the_order_of_the_table(capsys):
    assert main(["--help"]) == 0
    shown = capsys.readouterr().out
    assert [name for name in re.findall(r"^│ ([a-z-]+) ", shown, re.MULTILINE) if name in COMMANDS] == list(COMMANDS)


def test_the_command_on_the_page_runs_as_printed(tmp_path, capsys):
    page = (ROOT / "docs/architecture.md").read_text(encoding="utf-8").split("### A command\n", 1)[1]
    source, line = re.findall(r"```python\n(.*?)```", page, re.S)[:2]
    names: dict[str, object] = {}
    for printed in (source, line):
        exec(printed, names)
    count = names["count"]
    for number, records in enumerate((2, 3)):
        (tmp_path / f"{number}.jsonl").write_text("{}\n" * records)
    files = [tmp_path / "0.jsonl", tmp_path / "1.jsonl"]
    assert call(count, argv_of(count, records=files, minimum=3), "run.py count") == 1
    assert capsys.readouterr().out == f"{files[0]}: 2\n{files[1]}: 3\n"
    assert call(count, ["--records", *map(str, files)], "run.py count") == 0
    assert call(count, ["--help"], "run.py count") == 0
    shown = capsys.readouterr().out
    assert "exit status: 0 every file has enough records" in shown
    assert call(count, ["--records", str(tmp_path / "absent.jsonl")], "run.py count") == 2
    assert capsys.readouterr().err == OneLine("--records", tmp_path / "absent.jsonl")
    assert "JSON Lines files." in shown and "python run.py count --records data/own/*.jsonl" in shown
