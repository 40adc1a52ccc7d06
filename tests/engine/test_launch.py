"""`run.py` from the command line to the end of a job on two ranks. Mistakes on two ranks are reported once."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests.engine.runs import ROOT, curve
from tests.faults.conftest import Job

pytestmark = pytest.mark.slow


def launch(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "run.py", "--task", "pretrain", "--cpu", "2", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)


def test_two_ranks_train_evaluate_and_return_0(tmp_path, tiny_overrides):
    done = launch("--output", str(tmp_path / "run"), *tiny_overrides, "train.steps=4")
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line["step"] for line in curve(tmp_path / "run")] == [1, 2, 3, 4]
    assert done.stdout.count("image to text R@1 (cosine)") == 1
    assert "Warning" not in done.stderr


def test_ranks_started_by_torchrun_train_without_another_launcher(tmp_path, tiny_overrides):
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "run.py"]
    arguments = ["--task", "pretrain", "--output", str(tmp_path / "run"), *tiny_overrides, "train.steps=2"]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [*torchrun, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=300
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert [line["step"] for line in curve(tmp_path / "run")] == [1, 2]
    assert done.stderr.count("started as torchrun: rank 0 of 2, ") == 1 and "rank 1 of 2" not in done.stderr


def test_a_mistake_is_reported_once_in_one_line_with_status_2(tmp_path, tiny_overrides):
    done = launch("--output", str(tmp_path / "run"), *tiny_overrides, "data.images.files=[nowhere.jsonl]")
    assert done.returncode == 2
    assert done.stderr.count("nowhere.jsonl") == 1
    assert "Traceback" not in done.stderr


def test_too_many_broken_records_stop_both_ranks_without_a_traceback(tmp_path, tiny_overrides, scenes_folder):
    whole = (scenes_folder / "train.jsonl").read_text().splitlines()
    lines = [line.replace('"image": "', f'"image": "{scenes_folder}/') for line in whole[:10]]
    (tmp_path / "broken.jsonl").write_text("".join(f"{line}\n{{\n{{\n{{\n" for line in lines))
    files = f"data.images.files=[{tmp_path}/broken.jsonl]"
    with Job(tmp_path / "run", *tiny_overrides, files, "train.steps=60") as job:
        assert job.statuses() == [2, 2]
    assert "more than data.max_broken = 1%" in job.errors
    assert "bad json (first: " in job.errors
    assert "Traceback" not in job.errors
