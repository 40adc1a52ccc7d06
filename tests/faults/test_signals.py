"""Signals from a scheduler, from a user, and from the operating system."""

from __future__ import annotations

import os
import signal
import time

import pytest

from demo.folder import FolderFlags
from demo.scenes.build import scenes
from tests.faults.conftest import STEPS, Job, lines, pause
from tests.messages import OneLine
from tools.runs.history import read_history
from utils.events import LostRank
from utils.processes import DUPLICATE_SIGNAL_S

pytestmark = pytest.mark.slow


def checkpoints(output) -> list[str]:
    return sorted(path.name for path in (output / "checkpoints").iterdir())


def receivers(job: Job, to: str) -> list[int]:
    ranks = job.ranks()
    if to.startswith("rank"):
        return [ranks[int(to[-1])]]
    return [*(ranks if to == "every process" else []), job.process.pid]


@pytest.mark.parametrize(
    ("to", "signum", "status"),
    [
        (
            "every process",
            signal.SIGUSR1,
            75,
        ),  # as from a scheduler; the launcher also forwards its own signals to the ranks
        ("launcher", signal.SIGINT, 130),
        ("rank 0", signal.SIGTERM, 75),
        ("rank 1", signal.SIGUSR1, 75),
    ],
)
def test_a_run_that_is_asked_to_stop_saves_its_step_and_resumes(
    tmp_path, overrides, equals_undisturbed, to, signum, status
):
    with Job(tmp_path / "run", *overrides, launcher=not to.startswith("rank")) as job:
        job.wait_for_step(3)
        for process in receivers(job, to):
            os.kill(process, signum)
        assert job.wait() == status, job.errors[-3000:]
    done = lines(job.output)[-1]["step"]
    assert 3 <= done < STEPS, "the run must stop within a few steps"
    assert checkpoints(job.output)[-1] == f"step-{done:08d}", "the run must not wait for the next checkpoint"
    who = signal.Signals(signum).name
    message = [line for line in job.errors.splitlines() if line.startswith("stopped by")]
    assert len(message) == 1 and message[0].startswith("stopped by" if to == "rank 1" else f"stopped by {who}"), (
        job.errors
    )
    assert message[0] == OneLine(f"step {done}", f"{job.output}/checkpoints", "--resume")
    assert "Traceback" not in job.errors
    equals_undisturbed(job.output)


@pytest.mark.parametrize("hanging", [0, 1])
def test_a_run_that_cannot_stop_because_a_rank_hangs_says_what_was_saved(
    tmp_path, overrides, equals_undisturbed, hanging
):
    with Job(tmp_path / "run", *overrides, "train.grace_s=5", launcher=True) as job:
        job.wait_for_step(8)
        pause(job.ranks()[hanging])
        os.kill(job.process.pid, signal.SIGTERM)
        assert job.wait() == 75, job.errors[-3000:]
    said = [line for line in job.errors.splitlines() if "stopped by SIGTERM" in line]
    assert len(said) == 1, job.errors[-3000:]
    newest = int(checkpoints(job.output)[-1].removeprefix("step-"))
    assert newest >= 6, "step 6 was saved before the rank hung"
    assert said[0].removeprefix("[rank 1] ") == OneLine(
        "train.grace_s", f"the newest checkpoint is of step {newest}", "--resume"
    )
    equals_undisturbed(job.output)


def test_a_second_signal_ends_the_run_at_once(tmp_path, overrides):
    with Job(tmp_path / "run", *overrides, "train.steps=100000", launcher=True) as job:
        job.wait_for_step(2)
        ranks = job.ranks()
        os.kill(ranks[0], signal.SIGSTOP)  # the run cannot stop gracefully
        os.kill(job.process.pid, signal.SIGTERM)
        time.sleep(DUPLICATE_SIGNAL_S + 0.1)
        started = time.monotonic()
        os.kill(job.process.pid, signal.SIGTERM)
        job.wait(20)
        assert time.monotonic() - started < 10
    deadline = time.monotonic() + 5
    while any(os.path.exists(f"/proc/{rank}") for rank in ranks):
        assert time.monotonic() < deadline, "a rank outlives the launcher"
        time.sleep(0.05)


def test_a_signal_during_the_evaluation_ends_it_and_it_can_be_repeated(tmp_path, overrides):
    """Rank 1 is paused while the signal is sent, so that rank 0 cannot finish first. The test split is so large that rank 0 has
    to wait for rank 1."""
    folder = tmp_path / "scenes"
    scenes(output=FolderFlags(out=folder), seed=0, train=4, val=4, test=100, size=(32, 32))
    overrides = [*overrides, f"evaluation.files=[{folder}/test.jsonl]"]
    with Job(tmp_path / "run", *overrides) as job:
        job.wait_until(lambda: "records read" in job.errors)  # the last line of the training
        rank_0, rank_1 = job.ranks()
        pause(rank_1)
        os.kill(rank_0, signal.SIGTERM)  # the signal is handled at once, or after a collective that waits for rank 1
        os.kill(rank_1, signal.SIGCONT)
        assert job.statuses()[0] == 75
    assert OneLine("evaluation", "--resume") in job.errors.splitlines()
    assert "Traceback" not in job.errors
    with Job(job.output, *overrides, flags=("--resume",)) as again:
        assert again.wait() == 0, again.errors[-3000:]
    assert (job.output / "evaluation.json").exists()


def test_a_signal_during_set_up_ends_the_run_before_its_first_step(tmp_path, overrides):
    """The launcher starts the run, as it does for users. A rank whose connection breaks during set-up may wait for minutes."""
    with Job(tmp_path / "run", *overrides, launcher=True) as job:
        job.wait_until(lambda: (job.output / "log.txt").exists())
        os.kill(job.ranks()[0], signal.SIGTERM)
        assert job.wait() == 75
    assert "Traceback" not in job.errors
    assert "stopped by SIGTERM" in job.errors


@pytest.mark.parametrize("rank", [1])
def test_a_rank_that_the_system_kills_is_named(tmp_path, overrides, equals_undisturbed, rank):
    """The run can then be resumed with another number of workers."""
    with Job(tmp_path / "run", *overrides, launcher=True) as job:
        job.wait_until(lambda: (job.output / "checkpoints/step-00000006").exists())
        os.kill(job.ranks()[rank], signal.SIGKILL)
        assert job.wait() == 137
    assert OneLine(f"error: rank {rank}", "SIGKILL", "memory") in job.errors.splitlines()
    assert isinstance(read_history(job.output / "events.jsonl").stop, LostRank)
    assert "Traceback" not in job.errors
    equals_undisturbed(job.output, "data.workers=0")


def test_killing_the_launcher_ends_its_ranks_and_unlocks_the_folder(tmp_path, overrides, equals_undisturbed):
    with Job(tmp_path / "run", *overrides, launcher=True) as job:
        job.wait_for_step(8)
        ranks = job.ranks()
        job.process.kill()
        job.wait()
    deadline = time.monotonic() + 5
    while any(os.path.exists(f"/proc/{rank}") for rank in ranks):
        assert time.monotonic() < deadline, "a rank outlives the launcher"
        time.sleep(0.05)
    equals_undisturbed(job.output)
