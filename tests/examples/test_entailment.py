"""The example task outside the checkout: a copy elsewhere trains, validates, resumes and is evaluated, and its document quotes
it."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ranks import run_alone
from tests.tasks.test_outside import launch

ROOT = Path(__file__).parent.parent.parent
EXAMPLE = ROOT / "examples" / "entailment"
SMALL = [
    "model.vision.width=16",
    "model.vision.depth=1",
    "model.vision.heads=2",
    "model.text.arch.width=16",
    "model.text.arch.heads=2",
    "model.text.arch.intermediate=32",
    "model.fusion.layers=1",
    "schedule.warmup_steps=0",
    "train.validate_every=1",
    "train.checkpoint_every=1",
]

BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs" / "new_task.md").read_text(encoding="utf-8"), re.S)


@pytest.fixture
def folder(tmp_path) -> Path:
    shutil.copytree(EXAMPLE, tmp_path / "entailment", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "entailment"


@pytest.mark.night
def test_a_copy_trains_validates_resumes_and_is_evaluated(folder):
    cwd, run = folder.parent, folder.parent / "run"
    options = ["--output", str(run), *SMALL, "train.steps=2"]
    done = launch(cwd, "--task", "entailment", "--cpu", "1", *options)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [json.loads(line)["step"] for line in (run / "validation.jsonl").read_text().splitlines()] == [1, 2]
    shutil.rmtree(run / "checkpoints" / "step-00000002")
    report = json.loads((run / "evaluation.json").read_text())
    status, reported = run_alone(cwd, "entailment", *options, "--resume")
    assert status == 0, reported[-3000:]
    assert f"resuming from {run}/checkpoints/step-00000001" in reported
    assert json.loads((run / "evaluation.json").read_text()) == report
    assert report["test"]["sentences"]["value"] == 150
    assert 0 <= report["test"]["accuracy"]["value"] <= 1
    (cwd / "runs/entailment").mkdir(parents=True, exist_ok=True)
    run.rename(cwd / "runs/entailment/run")
    ask_as_the_document_does(cwd, cwd / "runs/entailment/run")


def ask_as_the_document_does(cwd: Path, run: Path) -> None:
    """Runs the three lines and the command of the document with a run of this test."""
    (code,), (command,) = (
        [block for _, block in BLOCKS if marker in block] for marker in ("import load", "run.py predict")
    )
    python = code.replace("runs/entailment", str(run))
    words = shlex.split(command.replace("runs/entailment", str(run)))
    asked = subprocess.run([sys.executable, "-c", python], cwd=cwd, capture_output=True, text=True, env=from_checkout())
    assert asked.returncode == 0, asked.stderr
    (answers,) = ast.literal_eval(asked.stdout)
    assert len(answers) == 2 and {*answers} <= {"entailment", "neutral", "contradiction"}
    predicted = subprocess.run(
        [sys.executable, str(ROOT / words[1]), *words[2:]], cwd=cwd, capture_output=True, text=True
    )
    assert predicted.stdout == f"{words[7]}\n  {answers[0]}  there is a red circle\n", predicted.stderr
    typo = [word.replace("entail", "entale") if word == "entail" else word for word in words[2:]]
    reported = subprocess.run([sys.executable, str(ROOT / "run.py"), *typo], cwd=cwd, capture_output=True, text=True)
    assert reported.returncode == 2 and "did you mean entail?" in reported.stderr


def from_checkout() -> dict[str, str]:
    """An environment in which the checkout is importable from any folder."""
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def test_the_example_is_short():
    lines = [line for file in EXAMPLE.glob("*.py") for line in file.read_text().splitlines()]
    assert len(lines) <= 280


@pytest.mark.parametrize(
    "block",
    [block for language, block in BLOCKS if language in ("python", "yaml") and "import load" not in block],
)
def test_the_document_quotes_the_example(block):
    assert any(block in file.read_text(encoding="utf-8") for file in EXAMPLE.iterdir() if file.is_file())


def test_the_document_shows_every_part_of_the_example():
    assert len(BLOCKS) >= 8
