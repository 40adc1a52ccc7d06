"""Errors that end a command: user mistakes and missing packages are reported in one line, and other errors keep their
traceback."""

from __future__ import annotations

import errno
import os
import pickle
import re
import subprocess
import sys
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from safetensors import SafetensorError

from tasks.binding import bind_run
from tests.messages import OneLine
from utils.config_files import ConfigError
from utils.errors import PACKAGES, PeerLostError, UserError, one_line_errors
from utils.processes import PEER_LOST, REQUEUE

ROOT = Path(__file__).parents[2]


def ends_with(error: Exception) -> int:
    def main() -> int:
        raise error

    return one_line_errors(main)()


def test_a_mistake_is_reported_in_one_line_with_status_2(capsys):
    assert ends_with(UserError("a.yaml: no such file")) == 2
    assert capsys.readouterr().err == "error: a.yaml: no such file\n"


def test_the_status_of_a_lost_peer_is_below_the_requeue_status(capsys):
    assert ends_with(PeerLostError("rank 1 is gone")) == PEER_LOST < REQUEUE, (
        "srun returns the highest status of its tasks"
    )
    assert capsys.readouterr().err == "error: rank 1 is gone\n"


def test_a_package_that_is_not_installed_is_reported_in_one_line_with_the_remedy(capsys):
    assert ends_with(ModuleNotFoundError("No module named 'ruamel'", name="ruamel.yaml")) == 2
    message = capsys.readouterr().err
    assert message == OneLine("ruamel.yaml", sys.executable, "make setup")
    assert message.count("\n") == 1


def test_a_missing_module_of_the_user_keeps_its_traceback():
    with pytest.raises(ModuleNotFoundError):
        ends_with(ModuleNotFoundError("No module named 'my_losses'", name="my_losses"))


def test_the_known_packages_equal_the_requirements():
    lines = (ROOT / "requirements.txt").read_text().splitlines()
    named = {re.split(r"[><=\[]", line)[0].lower() for line in lines if line and not line.startswith("#")}
    known = {name: {each.lower() for each in found} for name, found in packages_distributions().items()}
    assert {distribution for package in PACKAGES for distribution in known[package]} >= named


@pytest.mark.parametrize("code", [errno.EACCES, errno.ENAMETOOLONG, errno.EROFS, errno.EISDIR, errno.ENOSPC])
def test_file_errors_of_the_operating_system_are_reported_in_one_line(capsys, code):
    @one_line_errors
    def main(names: list[str]) -> int:
        raise OSError(code, os.strerror(code), names[0], None, *names[1:])

    assert main(["a/b"]) == 2
    message = capsys.readouterr().err
    assert message.startswith(f"error: a/b: {os.strerror(code)}; ") and message.count("\n") == 1
    assert main(["a/.b.tmp", "a/b"]) == 2
    assert capsys.readouterr().err == message, "for a move, the target must be named"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        OSError(errno.EDQUOT, os.strerror(errno.EDQUOT)),
    ],
)
def test_a_full_disk_without_a_file_name_is_reported_in_one_line(capsys, error):
    assert ends_with(error) == 2
    message = capsys.readouterr().err
    assert "cannot be written" in message and "make room" in message and message.count("\n") == 1


@pytest.mark.parametrize("size", [10, 100_000], ids=["written at the end", "written at once"])
def test_a_full_device_as_standard_output_is_reported_in_one_line(size):
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


def test_a_file_name_that_is_not_utf_8_is_printed_with_escapes():
    code = r"""
import sys
from utils.errors import one_line_errors
sys.exit(one_line_errors(lambda: print("caf\udce9") or 0)())
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, env={**os.environ, "PYTHONUTF8": "1"}, cwd=ROOT, check=False
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, rb"caf\udce9" + b"\n", b"")


def test_a_text_that_cannot_be_encoded_is_reported_in_one_line(capsys):
    def main() -> int:
        return len(f"{'x' * 1000}caf\udce9 {'y' * 1000}".encode())

    assert one_line_errors(main)() == 2
    message = capsys.readouterr().err
    assert r"caf\udce9 y" in message and "not valid UTF-8" in message
    assert message.count("\n") == 1 and len(message) < 200


def test_text_that_another_encoding_lacks_keeps_its_traceback():
    with pytest.raises(UnicodeEncodeError):
        one_line_errors(lambda: len("é".encode("ascii")))()


def test_other_file_errors_keep_their_traceback():
    for error in (FileNotFoundError(errno.ENOENT, "gone", "a"), OSError(errno.EACCES, "a socket"), OSError("odd")):

        @one_line_errors
        def main(error: OSError) -> int:
            raise error

        with pytest.raises(OSError):
            main(error)


def test_an_error_has_parts_which_a_copy_for_another_rank_keeps():
    error = UserError("has 3 rows; 4 are expected", where=Path("a.csv"), remedy="download it again")
    assert str(error) == "a.csv: has 3 rows; 4 are expected; download it again"
    for copy in (error, pickle.loads(pickle.dumps(error))):
        assert (copy.where, copy.what, copy.remedy) == ("a.csv", "has 3 rows; 4 are expected", "download it again")
        assert str(copy) == str(error)
    assert str(UserError("pass --task")) == "pass --task"
    assert (error.status, pickle.loads(pickle.dumps(PeerLostError("lost"))).status) == (2, PeerLostError.status)


def test_a_config_error_keeps_the_parts_of_every_finding(tmp_path):
    (tmp_path / "a.yaml").write_text("task: vqa\noptim: {lrr: 1}\n")
    with pytest.raises(ConfigError) as raised:
        bind_run(tmp_path / "a.yaml", [])
    parts = {(finding.where, finding.what, finding.remedy) for finding in raised.value.findings}
    assert (f"{tmp_path}/a.yaml:2", "optim.lrr is not a key of this config", "did you mean optim.lr?") in parts
    (tmp_path / "b.yaml").write_text("a: [1\n")
    with pytest.raises(ConfigError) as raised:
        bind_run(tmp_path / "b.yaml", [])
    assert raised.value.findings[0].remedy == "check quotes, brackets and indentation"
