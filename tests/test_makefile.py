"""The output of make for a newcomer."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


def planned(*words: str) -> str:
    return subprocess.run(["make", "-n", *words], cwd=ROOT, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("task", ["pretrain", "retrieval", "captioning"])
def test_the_demo_suggests_another_task_next(task):
    (line,) = [line for line in planned("demo", f"TASK={task}").splitlines() if "Next: " in line]
    after = line.partition("Next: make demo TASK=")[2].split()[0]
    assert after not in ("pretrain", task)


def test_help_lists_every_target_that_a_newcomer_needs():
    message = planned("help")
    for target in (
        *("demo", "scenes", "clips", "real", "gpu", "setup", "lint", "types", "faults"),
        *("test", "test-ci", "test-night", "test-all", "test-lowest", "test-newest", "test-extras"),
    ):
        assert f"make {target}" in message or f" {target} " in message, target


def test_the_tests_of_the_lowest_releases_exist():
    (tests,) = [line for line in planned("test-lowest").splitlines() if " -m pytest " in line]
    assert [path for path in tests.split() if path.startswith("tests/") and not (ROOT / path).exists()] == []


def test_the_site_needs_only_its_extra():
    commands = planned("docs", "--always-make")
    assert "--editable '.[docs]'" in commands
    assert "requirements-dev.txt" not in commands


def test_one_step_on_a_gpu_installs_nothing_into_an_existing_environment(tmp_path):
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv/installed-dev").touch()
    command = ["make", "-n", "--no-print-directory", "-f", str(ROOT / "Makefile"), "gpu", "STEP=profile", "CPU=1"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == ".venv/bin/python -m benchmarks.gpu_receipt --step 'profile' --cpu\n"
    (tmp_path / ".venv/installed-dev").unlink()
    for source in ("requirements.txt", "requirements-dev.txt", "setup.py", "pyproject.toml"):
        (tmp_path / source).touch()
    assert "pip install" in subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
