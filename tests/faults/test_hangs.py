"""A process that hangs is reported with its position, and is replaced or ended in time."""

from __future__ import annotations

import os
import signal

import pytest

from tests.faults.conftest import Job, children, pause
from tests.messages import OneLine
from utils.events import Stalled, read_events
from utils.processes import PEER_LOST

pytestmark = pytest.mark.night


def test_a_rank_that_hangs_is_named_and_ends_the_run_in_time(tmp_path, overrides, equals_undisturbed):
    quick = ["train.stall_s=2", "train.step_timeout_min=0.05", "train.start_timeout_min=1", "train.grace_s=1"]
    with Job(tmp_path / "run", *overrides, *quick) as job:
        job.wait_for_step(13)  # the step time-out applies after the first steps
        second = job.ranks()[1]
        pause(second)
        job.wait_until(lambda: "timed out waiting" in job.errors)
        os.kill(second, signal.SIGCONT)
        assert job.statuses()[0] == PEER_LOST
    assert OneLine("rank 0", "2 s", "train.stall_s") in job.errors.splitlines()
    # Signs of life are seconds apart and steps are fast, so the last reported step may be any step.
    assert OneLine(f"{job.output}/log.txt", "rank 1") in job.errors.splitlines()
    assert "most recent call first" in (job.output / "log.txt").read_text()
    stalled = [each.event for each in read_events(job.output / "events.jsonl") if isinstance(each.event, Stalled)]
    assert any(set(event.silent_ranks) == {1} for event in stalled)
    assert OneLine("rank 0", "train.start_timeout_min") in job.errors.splitlines()
    assert "Traceback" not in job.errors
    equals_undisturbed(job.output)


def test_a_hanging_set_up_is_reported(tmp_path, overrides, equals_undisturbed):
    """Set-up may take long, and ends after `train.start_timeout_min`. The line reports where it is."""
    with Job(tmp_path / "run", *overrides, "train.stall_s=0.5") as job:
        job.wait_until(lambda: (job.output / "logs/rank-00001.txt").exists())
        second = job.ranks()[1]
        pause(second)
        job.wait_until(
            lambda: "rank 0: the set-up has taken" in job.errors or "rank 0 has not finished a step" in job.errors
        )
        os.kill(second, signal.SIGCONT)
        assert job.wait() == 0, job.errors[-3000:]
    assert "most recent call first" in (job.output / "log.txt").read_text()
    equals_undisturbed(job.output)


def test_a_worker_that_hangs_or_is_killed_is_replaced_and_the_run_is_the_same(tmp_path, overrides, equals_undisturbed):
    with Job(tmp_path / "run", *overrides, "data.worker_timeout_s=3") as job:
        job.wait_for_step(5)
        (worker,) = children(job.ranks()[0])
        pause(worker)
        job.wait_until(lambda: "has not made a batch for 3 s" in job.errors)
        job.wait_for_step(15)
        (worker,) = children(job.ranks()[1])
        os.kill(worker, signal.SIGKILL)
        assert job.wait() == 0, job.errors[-3000:]
    assert OneLine("worker 0 of rank 0", "3 s", "data.worker_timeout_s") in job.errors.splitlines()
    assert OneLine("worker 0 of rank 1", "SIGKILL") in job.errors.splitlines()
    assert "train.jsonl:" in job.errors
    equals_undisturbed(job.output)


def test_every_rank_has_a_log(undisturbed):
    assert (undisturbed / "log.txt").exists()
    assert (undisturbed / "logs/rank-00001.txt").exists()
