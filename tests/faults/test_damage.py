"""Damaged files, full disks and locked folders are reported in one line each, and nothing is lost."""

from __future__ import annotations

import shutil
import stat
import time

import pytest

from tests.faults.conftest import STEPS, Job, lines
from tests.messages import OneLine

pytestmark = pytest.mark.night


@pytest.fixture
def copy_of(undisturbed, tmp_path):
    """Returns a function that copies the undisturbed run as if it had been interrupted after step 12."""

    def make():
        run = tmp_path / "run"
        shutil.copytree(undisturbed, run)
        shutil.rmtree(run / f"checkpoints/step-{STEPS:08d}")
        (run / "evaluation.json").unlink()
        return run

    return make


def flip(file):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 4
    file.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "harm"),
    [("model.safetensors", "flip"), ("training.pt", "truncate"), ("manifest.json", "empty"), ("training.pt", "remove")],
)
def test_a_damaged_checkpoint_is_named_and_the_previous_one_is_used(copy_of, equals_undisturbed, name, harm):
    run = copy_of()
    file = run / "checkpoints/step-00000012" / name
    if harm == "flip":
        flip(file)
    elif harm == "truncate":
        file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    elif harm == "empty":
        file.write_bytes(b"")
    else:
        file.unlink()
    equals_undisturbed(run)
    (reported,) = [line for line in (run / "log.txt").read_text().splitlines() if "skipped a checkpoint" in line]
    assert "step-00000012" in reported


def test_an_evaluation_names_the_checkpoint_that_it_measured(copy_of, overrides):
    run = copy_of()
    (run / "checkpoints/step-00000012/model.safetensors").write_bytes(b"")
    with Job(run, *overrides, ranks=1, flags=("--resume", "--evaluate")) as job:
        assert job.wait() == 0, job.errors[-3000:]
    assert "last weights of this run, step 6" in (run / "evaluation.json").read_text()


def test_a_full_disk_is_reported_and_loses_nothing(tmp_path, overrides, equals_undisturbed, undisturbed):
    """Files may be at most slightly smaller than the optimiser states, so only those do not fit."""
    size = (undisturbed / f"checkpoints/step-{STEPS:08d}/optimizer/tensors.safetensors").stat().st_size

    with Job(tmp_path / "run", *overrides, file_bytes=size - 1) as job:
        assert job.wait() == 2
    assert "Traceback" not in job.errors
    reported = [line for line in job.errors.splitlines() if "cannot be written" in line]
    assert reported[0] == OneLine("step 6", "cannot be written")
    assert reported[-1].startswith("error: ") and f"the checkpoint of step {STEPS}" in reported[-1]
    assert lines(job.output)[-1]["step"] == STEPS, "the run must still train to the end"
    assert list((job.output / "checkpoints").iterdir()) == []


def test_a_rank_that_cannot_write_its_shard_fails_the_checkpoint(tmp_path, overrides, undisturbed):
    size = (undisturbed / f"checkpoints/step-{STEPS:08d}/optimizer/tensors.safetensors").stat().st_size
    run = tmp_path / "run"
    with Job(run, *overrides, "train.parallel=fsdp", file_bytes=size // 4, full_rank=1) as job:
        assert job.statuses() == [2, 2], job.errors[-3000:]
    assert "Traceback" not in job.errors
    reported = [line for line in job.errors.splitlines() if "cannot be written" in line]
    assert reported[-1] == OneLine("error:", f"the checkpoint of step {STEPS}", "rank 1", "File too large")
    assert "saved a checkpoint" not in (run / "log.txt").read_text()
    assert list((run / "checkpoints").iterdir()) == []


def test_incomplete_and_invalid_lines_of_the_metrics_are_skipped(copy_of, equals_undisturbed):
    run = copy_of()
    text = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
    text[5] = text[5].rstrip() + "\n\x00\x00\n[1]\n"
    (run / "metrics.jsonl").write_text("".join(text[:13]) + text[13][:20])
    equals_undisturbed(run)
    assert OneLine("3 lines", "line 7") in (run / "log.txt").read_text().splitlines()


def test_tensorboard_errors_do_not_stop_a_run(copy_of, equals_undisturbed):
    run = copy_of()
    shutil.rmtree(run / "tensorboard")
    (run / "tensorboard").write_text("a file in the place of the folder")
    equals_undisturbed(run)
    assert OneLine("TensorBoard's", "cannot be written") in (run / "log.txt").read_text().splitlines()


def test_two_runs_cannot_share_a_folder(tmp_path, overrides):
    with Job(tmp_path / "run", *overrides, "train.steps=100000", ranks=1) as first:
        first.wait_for_step(2)
        for flags in ((), ("--resume",), ("--resume", "--evaluate")):
            with Job(first.output, *overrides, "train.steps=100000", ranks=1, flags=flags) as second:
                assert second.wait() == 2
            (reported,) = second.errors.splitlines()
            assert reported == OneLine(f"error: {first.output}", "process"), reported


@pytest.mark.parametrize("flags", [(), ("--resume", "--evaluate")])
def test_a_folder_that_is_not_writable_is_reported_in_one_line(copy_of, overrides, flags):
    run = copy_of()
    bad = run / ("x" * 300) if not flags else run
    if flags:
        (run / ".lock").mkdir()  # even for the superuser
        run.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with Job(bad if flags else run / ("x" * 300), *overrides, ranks=1, flags=flags) as job:
        assert job.wait() == 2
    run.chmod(stat.S_IRWXU)
    (reported,) = job.errors.splitlines()
    assert reported.startswith("error: --output ") and "cannot be written" in reported


def test_another_number_of_ranks_resumes_with_the_same_records(copy_of, overrides):
    """The run resumes to the last step; tests/dataset checks that the order of records is the same. The losses differ, because
    dropout and negatives depend on the rank."""
    run = copy_of()
    with Job(run, *overrides, "data.workers=0", ranks=1, flags=("--resume",)) as job:
        assert job.wait() == 2
    (reported,) = [line for line in job.errors.splitlines() if line.startswith("error:")]
    assert OneLine("8 records", "2 ranks", "4", "1 rank") in reported.splitlines()
    assert reported.endswith("train.global_batch=null train.accumulate=2")
    with Job(run, *overrides, "train.global_batch=null", "train.accumulate=2", ranks=1, flags=("--resume",)) as job:
        assert job.wait() == 0, job.errors[-2000:]
    assert OneLine("1 rank", "2") in job.errors.splitlines()
    assert [line["step"] for line in lines(run)] == list(range(1, STEPS + 1))
    log = (run / "log.txt").read_text().splitlines()
    assert time.strptime(log[-1][:10], "%Y-%m-%d")
