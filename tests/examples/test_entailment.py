"""The example task outside the checkout: a copy elsewhere trains, validates, resumes and is evaluated, and its document quotes
it."""

from __future__ import annotations

import json
import re
import shutil
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


@pytest.fixture
def folder(tmp_path) -> Path:
    shutil.copytree(EXAMPLE, tmp_path / "entailment", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "entailment"


@pytest.mark.slow
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
    status, reported = run_alone(cwd, "entailment", "--evaluate", *SMALL, f"init.checkpoint={run}")
    assert status == 0, reported[-3000:]
    measured = json.loads((cwd / "runs/entailment/config-evaluate/evaluation.json").read_text())
    assert values(measured) == values(report)
    assert values(report)["test"]["sentences"] == 150
    assert 0 <= report["test"]["accuracy"]["value"] <= 1


def values(report: dict) -> dict:
    """Only the numbers. The other fields contain the path of the weights."""
    return {split: {name: metric["value"] for name, metric in found.items()} for split, found in report.items()}


def test_the_example_is_short():
    lines = [line for file in EXAMPLE.glob("*.py") for line in file.read_text().splitlines()]
    assert len(lines) <= 250


BLOCKS = re.findall(r"```(\w+)\n(.*?)```", (ROOT / "docs" / "new_task.md").read_text(encoding="utf-8"), re.S)


@pytest.mark.parametrize("block", [block for language, block in BLOCKS if language in ("python", "yaml")])
def test_the_document_quotes_the_example(block):
    assert any(block in file.read_text(encoding="utf-8") for file in EXAMPLE.iterdir() if file.is_file())


def test_the_document_shows_every_part_of_the_example():
    assert len(BLOCKS) >= 8
