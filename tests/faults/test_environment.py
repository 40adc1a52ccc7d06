"""Environments with restrictions: no home, caches and folders that are not writable, and files in place of folders."""

from __future__ import annotations

import ctypes
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from demo.folder import FolderFlags
from demo.scenes.build import scenes
from tests.conftest import tiny_run
from tests.messages import OneLine
from tests.ranks import run_alone

ROOT = Path(__file__).parent.parent.parent
HOMELESS = """
import pwd, runpy, sys
def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")
pwd.getpwuid = unknown  # as of a user of a container who is in no table
runpy.run_module("tasks.run", run_name="__main__", alter_sys=True)
"""
HOME = ("HOME", "USER", "LOGNAME", "XDG_CACHE_HOME")
pytestmark = [
    pytest.mark.night,
    pytest.mark.skipif(sys.platform != "linux", reason="removes rights from the superuser with Linux's prctl"),
]


def without_rights() -> None:
    """Makes permissions apply to the superuser too, by removing CAP_DAC_OVERRIDE and CAP_DAC_READ_SEARCH before the next exec."""
    for capability in (1, 2):
        ctypes.CDLL(None).prctl(24, capability, 0, 0, 0)  # PR_CAPBSET_DROP


def run(*arguments: str, command: tuple[str, ...] = ("-m", "tasks.run"), **environment: str | None):
    """Runs ``python -m tasks.run pretrain`` with further arguments. A variable set to None is removed from the environment."""
    given = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    variables = {name: value for name, value in given.items() if value is not None}
    return subprocess.run(
        [sys.executable, *command, "pretrain", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env=variables,
        preexec_fn=without_rights,
        timeout=120,
        check=False,
    )


@pytest.fixture(scope="module")
def overrides(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("surroundings") / "scenes"
    scenes(output=FolderFlags(out=folder), seed=0, train=12, val=4, test=4, size=(32, 32))
    return [*tiny_run(folder), "train.steps=1", "schedule.warmup_steps=0", "data.cache_index=null"]


@pytest.fixture(scope="module")
def trained(tmp_path_factory, overrides) -> Path:
    """The folder of a run whose user has no home."""
    folder = tmp_path_factory.mktemp("trained") / "run"
    done = run("--output", str(folder), *overrides, command=("-c", HOMELESS), **dict.fromkeys(HOME))
    assert done.returncode == 0, done.stderr[-3000:]
    startup_error = [line for line in done.stderr.splitlines() if "cannot be cached" in line]
    assert len(startup_error) == 1 and startup_error[0] == OneLine("home folder", "memory")
    return folder


@pytest.fixture
def closed(tmp_path):
    """A folder that is not writable."""
    folder = tmp_path / "closed"
    folder.mkdir()
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    yield folder
    folder.chmod(stat.S_IRWXU)


def startup_error(*arguments: str, **environment: str | None) -> str:
    """The error line of a run that fails at its start."""
    done = run(*arguments, **environment)
    return the_line(done.returncode, done.stderr)


def startup_error_with_rights(*arguments: str) -> str:
    """Like :func:`startup_error`, in a forked process that keeps its rights."""
    return the_line(*run_alone(ROOT, "pretrain", *arguments))


def the_line(status: int, errors: str) -> str:
    assert status == 2, errors[-3000:]
    (line,) = [line for line in errors.splitlines() if not line.endswith("starts to train on 1 rank")]
    assert line.startswith("error: ")
    return line


def test_a_run_needs_no_home(trained):
    assert (trained / "evaluation.json").is_file()


def test_a_home_that_is_not_writable_causes_one_warning(tmp_path, closed, overrides):
    done = run("--output", str(tmp_path / "run"), *overrides, HOME=str(closed), XDG_CACHE_HOME=None)
    assert done.returncode == 0, done.stderr[-3000:]
    (line,) = [line for line in done.stderr.splitlines() if "cannot be cached" in line]
    assert line == OneLine(f"{closed}/.cache/x2vlm/index", "Permission denied")


def test_an_output_folder_that_is_not_writable_is_reported_in_one_line(tmp_path, closed, overrides):
    (tmp_path / "file").write_text("")
    for tells, output, reason in (
        (startup_error, closed, "Permission denied"),
        (startup_error_with_rights, tmp_path / "file", "File exists"),
    ):
        assert OneLine(reason) in tells("--output", str(output), *overrides).splitlines()


def test_an_evaluation_does_not_write_to_a_run_that_is_not_writable(tmp_path, trained, overrides):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    folder.chmod(stat.S_IRUSR | stat.S_IXUSR)
    line = startup_error("--output", str(folder), "--evaluate", "--resume", *overrides)
    folder.chmod(stat.S_IRWXU)
    assert line == OneLine(f"error: --output {folder}", "Permission denied")


def test_a_file_in_place_of_a_folder_is_reported_before_training(tmp_path, overrides):
    (tmp_path / "checkpoints").write_text("")
    line = startup_error_with_rights("--output", str(tmp_path), *overrides)
    assert line == OneLine(f"{tmp_path}/checkpoints", "Not a directory")


def test_a_malicious_config_of_a_resumed_run_is_reported_in_one_line(tmp_path, trained, overrides):
    folder = tmp_path / "run"
    shutil.copytree(trained, folder)
    (folder / "config.yaml").write_text("seed: 0\na: &a [*a]\n")
    line = startup_error_with_rights("--output", str(folder), "--resume", *overrides)
    assert line == OneLine(f"error: {folder}/config.yaml is damaged", "line 2", "&a", "*a")


def test_inaccessible_paths_are_reported_in_one_line(tmp_path, closed, overrides):
    closed.chmod(0)
    denied, output = "Permission denied; check the path and its permissions", ("--output", str(tmp_path / "run"))
    assert denied in startup_error(*output, *overrides, f"init.checkpoint={closed}/x.pth")
    assert denied in startup_error(*output, *overrides, "--config", f"{closed}/x.yaml")
    assert (
        OneLine("File name too long")
        in startup_error_with_rights(*output, *overrides, "--config", "x" * 300).splitlines()
    )
