"""Output paths of all commands: a path that cannot be written is reported before any work is done."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from cyclopts import Argument

from commands import COMMANDS
from run import main
from tests.messages import OneLine, naming
from utils.commands import command_line
from utils.errors import NotRegularError
from utils.files import write_text
from utils.flags import OutputFile, OutputFolder, WrongValueError, output_file, output_folder
from utils.subcommands import Command, subcommands_of

OUTPUT_FLAGS = ("--out", "--output", "--save")
NOT_WRITTEN = ("doctor --output",)
"""Flags that name the folder of a later run."""

UNWRITABLE = {
    "benchmark": ["sugarcrepe", "--model", "M", "--data", "D", "--out", "/proc/x"],
    "checkpoint convert": ["M", "--out", "/proc/x.th"],
    "checkpoint adapters": ["M", "--out", "/proc/x"],
    "checkpoint average": ["M", "--out", "/proc/x"],
    "checkpoint interpolate": ["M", "--out", "/proc/x"],
    "checkpoint merge": ["M", "--base", "B", "--out", "/proc/x"],
    "doctor": ["--config", "C", "--out", "/proc/x"],
    "export": ["M", "--out", "/proc/x.onnx"],
    "index": ["F", "--model", "M", "--out", "/proc/x"],
    "leaks": ["C", "--out", "/proc/x"],
    "migrate": ["C", "--out", "/proc/x"],
    "predict": ["caption", "--model", "M", "--image", "I", "--save", "/proc/x.png"],
    "prepare": ["coco", "--raw", "R", "--out", "/proc/x"],
    "prepare frames": ["F", "--out", "/proc/x"],
    "prepare multilingual": ["R", "--out", "/proc/x"],
    "prepare own": ["F", "--out", "/proc/x.jsonl"],
    "prepare parquet": ["R", "--out", "/proc/x"],
    "prepare to_odvg": ["R", "--out", "/proc/x.jsonl"],
    "report": ["R", "--output", "/proc/x.html"],
    "reproduce": ["--table", "1", "--output", "/proc/x"],
    "rescore": ["--config", "C", "--predictions", "P", "--out", "/proc/x"],
    "score-boxes": ["D", "--model", "M", "--images", "I", "--out", "/proc/x.json"],
    "search": ["I", "a dog", "--save", "/proc/x.png"],
    "sweep": ["--config", "C", "--output", "/proc/x"],
    "tokenizer": ["--records", "R", "--out", "/proc/x"],
}
"""Arguments of each command that writes a file or folder. The inputs do not exist."""


def output_flags() -> Iterator[tuple[str, Argument]]:
    """Yields every output flag with the name of its command."""

    def flags_of(name: str, command: Command) -> Iterator[tuple[str, Argument]]:
        function = command.load()
        for argument in command_line(function, name).app.assemble_argument_collection(parse_docstring=False):
            if argument.name in OUTPUT_FLAGS and f"{name} {argument.name}" not in NOT_WRITTEN:
                yield name, argument
        for word, subcommand in subcommands_of(function).items():
            yield from flags_of(f"{name} {word}", subcommand)

    for name, command in COMMANDS.items():
        yield from flags_of(name, command)


def test_every_output_flag_is_checked_when_it_is_parsed():
    found = dict(output_flags())
    assert found.keys() == UNWRITABLE.keys()
    converters = [kind.__metadata__[0].converter for kind in (OutputFile, OutputFolder)]
    assert [name for name, argument in found.items() if argument.parameter.converter not in converters] == []


@pytest.mark.parametrize("command", UNWRITABLE)
def test_an_unwritable_output_is_reported_before_the_inputs_are_read(command, capsys):
    assert main([*command.split(), *UNWRITABLE[command]]) == 2
    assert capsys.readouterr().err == OneLine("error", UNWRITABLE[command][-1], "cannot write to /proc", "another path")


@pytest.mark.parametrize("command", UNWRITABLE)
def test_a_folder_in_place_of_a_file_or_vice_versa_is_reported_before_the_inputs_are_read(command, tmp_path, capsys):
    flag = UNWRITABLE[command][-2]
    (argument,) = (each for name, each in output_flags() if name == command and each.name == flag)
    is_file = argument.parameter.converter is OutputFile.__metadata__[0].converter
    (tmp_path / "file").touch()
    wrong, reported = (tmp_path, "is a folder") if is_file else (tmp_path / "file", "is a file")
    assert main([*command.split(), *UNWRITABLE[command][:-1], str(wrong)]) == 2
    assert capsys.readouterr().err == OneLine("error", flag, str(wrong), reported, "pass")


def test_checking_an_output_leaves_no_trace(tmp_path):
    assert output_folder(str(tmp_path / "new" / "folder")) == tmp_path / "new" / "folder"
    assert list(tmp_path.iterdir()) == []


def test_an_output_below_a_file_is_reported(tmp_path, capsys):
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "folder"
    assert main(["migrate", "missing.yaml", "--out", str(out)]) == 2
    assert capsys.readouterr().err == OneLine("--out", str(out), "Not a directory", "another path")


def test_a_device_and_a_fifo_are_rejected_as_outputs_because_they_would_be_replaced(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path, kind in (("/dev/null", "a device"), (str(tmp_path / "fifo"), "a FIFO")):
        with pytest.raises(WrongValueError, match=naming(path, kind, "another path")):
            output_file(path)
    with pytest.raises(NotRegularError, match="device"):
        write_text(Path("/dev/null"), "text")
    assert Path("/dev/null").is_char_device()


def test_the_file_behind_a_link_is_replaced_and_not_the_link(tmp_path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    assert output_file(str(tmp_path / "link")) == tmp_path / "file"
