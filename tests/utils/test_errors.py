"""What ends a command: a mistake of the user and a missing package are one line, anything else keeps its traceback."""

from __future__ import annotations

import errno
import os
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from safetensors import SafetensorError

from tests.messages import OneLine
from utils.errors import PACKAGES, PeerLostError, UserError, one_line_errors
from utils.processes import PEER_LOST, REQUEUE

ROOT = Path(__file__).parents[2]


def ends_with(error: Exception) -> int:
    def main() -> int:
        raise error

    return one_line_errors(main)()


def test_a_mistake_is_one_line_with_status_2(capsys):
    assert ends_with(UserError("a.yaml: no such file")) == 2
    assert capsys.readouterr().err == "error: a.yaml: no such file\n"


def test_a_rank_that_lost_another_has_a_status_below_that_of_a_run_to_be_queued_again(capsys):
    assert ends_with(PeerLostError("rank 1 is gone")) == PEER_LOST < REQUEUE, "srun returns the highest of its tasks"
    assert capsys.readouterr().err == "error: rank 1 is gone\n"


def test_a_package_that_is_not_installed_is_one_line_with_the_remedy(capsys):
    assert ends_with(ModuleNotFoundError("No module named 'ruamel'", name="ruamel.yaml")) == 2
    said = capsys.readouterr().err
    assert said == OneLine("ruamel.yaml", sys.executable, "make setup")
    assert said.count("\n") == 1


def test_a_module_of_a_users_own_that_is_missing_keeps_its_traceback():
    with pytest.raises(ModuleNotFoundError):
        ends_with(ModuleNotFoundError("No module named 'my_losses'", name="my_losses"))


def test_the_packages_are_those_of_the_requirements():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    named = {re.split(r"[><=\[]", line)[0].lower() for line in lines if line and not line.startswith("#")}
    known = {name: {each.lower() for each in found} for name, found in packages_distributions().items()}
    assert {distribution for package in PACKAGES for distribution in known[package]} >= named


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENAMETOOLONG, errno.EROFS, errno.EISDIR, errno.ENOSPC])
def test_a_file_that_the_surroundings_refuse_is_one_line(capsys, code):
    @one_line_errors
    def main(names: list[str]) -> int:
        raise OSError(code, os.strerror(code), names[0], None, *names[1:])

    assert main(["a/b"]) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: a/b: {os.strerror(code)}; ") and said.count("\n") == 1
    assert main(["a/.b.tmp", "a/b"]) == 2
    assert capsys.readouterr().err == said, "of a move, the target is named"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    ],
)
def test_a_full_disk_without_the_name_of_the_file_is_one_line(capsys, error):
    assert ends_with(error) == 2
    said = capsys.readouterr().err
    assert "cannot be written" in said and "make room" in said and said.count("\n") == 1


@pytest.mark.parametrize("size", [10, 100_000], ids=["written at the end", "written at once"])
def test_a_full_device_as_standard_output_is_one_line(size):
    code = (
        f"import sys; from utils.errors import one_line_errors\nmain = lambda: sys.stdout.write('x' * {size}) and 0\n"
    )
    code += "sys.exit(one_line_errors(main)())"
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-c", code], stdout=full, stderr=subprocess.PIPE, text=True, cwd=ROOT, check=False
        )
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert OneLine("No space left on device", "make room") in done.stderr.splitlines()


def test_other_errors_of_files_keep_their_traceback():
    for error in (FileNotFoundError(errno.ENOENT, "gone", "a"), OSError(errno.EACCES, "a socket"), OSError("odd")):

        @one_line_errors
        def main(error: OSError) -> int:
            raise error

        with pytest.raises(OSError):
            main(error)
