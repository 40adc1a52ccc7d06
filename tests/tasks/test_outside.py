"""A task in a folder outside the checkout is trained and evaluated from the command line.

The launcher starts the run on two ranks.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.messages import OneLine
from tests.ranks import run_alone

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parent.parent.parent
TASK = '''"""Visual reasoning under another name."""

import logging
from typing import Literal

from tasks.finetune import data_options
from tasks.kinds import TaskKind
from tasks.nlvr import NLVRConfig, NLVRTask

from .batches import CountingBatches


class CountingConfig(NLVRConfig):
    task: Literal["counting"] = "counting"
    greeting: str


class CountingTask(NLVRTask):
    @staticmethod
    def training_data(config, tokenizer, model, plan):
        return CountingBatches(config.data, **data_options(config, tokenizer))

    @staticmethod
    def build_model(config, vocab_size):
        logging.getLogger(__name__).info("%s from %s", config.greeting, __name__)
        return NLVRTask.build_model(config, vocab_size)


TASK = TaskKind(CountingConfig, CountingTask)
'''
BATCHES = """from dataset.tasks.nlvr import NLVRBatches


class CountingBatches(NLVRBatches):
    pass
"""


@pytest.fixture
def folder(tmp_path) -> Path:
    """The task's folder, inside a folder that also has packages with the names of ours."""
    folder = tmp_path / "elsewhere" / "counting"
    folder.mkdir(parents=True)
    (folder / "task.py").write_text(TASK)
    (folder / "batches.py").write_text(BATCHES)
    (folder / "config.yaml").write_text(f"base: {ROOT}/configs/demo/nlvr.yaml\ntask: counting\ngreeting: hello\n")
    for name in ("utils", "tasks"):
        (tmp_path / "elsewhere" / name).mkdir()
        (tmp_path / "elsewhere" / name / "__init__.py").write_text("raise ImportError('not ours')")
    return folder


def launch(cwd: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "run.py"), *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=300)


def test_a_folder_trains_and_is_evaluated(folder, overrides):
    """The commands run in the folder around it, with worker processes, the last time on two ranks."""
    cwd = folder.parent
    options = [
        *overrides("nlvr"),
        "train.steps=2",
        "train.checkpoint_every=1",
        "train.validate_every=1",
        "data.workers=1",
    ]
    status, reported = run_alone(cwd, "counting", "--config", "counting/config.yaml", *options)
    assert status == 0, reported[-3000:]
    assert "hello from counting.task" in reported
    run = cwd / "runs" / "counting" / "config"
    expected = (run / "evaluation.json").read_text()

    start = f"init.checkpoint={run}"
    done = launch(cwd, "--task", str(folder), "--cpu", "2", "--evaluate", *options, start)
    assert done.returncode == 0, done.stderr[-3000:]
    report = json.loads((cwd / "runs/counting/config-evaluate/evaluation.json").read_text())["test"]
    assert report["accuracy"]["training"] == "fine-tuned"
    assert {name: metric["value"] for name, metric in report.items()} == {
        name: metric["value"] for name, metric in json.loads(expected)["test"].items()
    }


def test_mistakes_are_reported_in_one_line_and_errors_of_the_task_have_a_traceback(folder):
    status, reported = run_alone(folder, ".", "--config", str(ROOT / "configs/demo/vqa.yaml"))
    assert status == 2
    assert reported == OneLine(f"error: {ROOT}/configs/demo/vqa.yaml", "task vqa", "--task vqa")
    (folder / "batches.py").write_text("import nothing_of_this_name")
    status, reported = run_alone(folder, ".")
    assert status == 1
    assert "Traceback" in reported
    assert "nothing_of_this_name" in reported


def test_one_process_needs_no_launcher(folder, overrides, tmp_path):
    status, reported = run_alone(
        ROOT, str(folder), "--output", str(tmp_path / "run"), *overrides("nlvr"), "train.steps=2"
    )
    assert status == 0, reported[-3000:]
    assert (tmp_path / "run" / "evaluation.json").is_file()
