"""Disturbs a run at random times, resumes it each time, and compares the result with an undisturbed run.

    python -m tests.faults.soak --kills 20

Each disturbance kills one rank or all ranks with SIGKILL or SIGTERM at a random moment. Sometimes the newest checkpoint is then
damaged (a flipped bit, a truncated or an empty file), or the run continues for a while on a disk that is too full for a
checkpoint. The last line reports whether metrics and weights equal those of the undisturbed run.
"""

from __future__ import annotations

import math
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from multiprocessing.process import BaseProcess
from pathlib import Path

from demo.folder import FolderFlags
from demo.scenes.build import scenes
from engine.checkpoint import CHECKPOINTS, list_checkpoints
from tests.conftest import tiny_run
from tests.faults.conftest import Job, lines
from utils.commands import call

STEPS = 400
EVERY = 10


def wait_until(job: Job, chance: random.Random, first: int) -> None:
    """Waits until the run has made some steps or has ended."""
    goal = first + chance.randrange(0, 3 * EVERY)
    deadline = time.monotonic() + 120
    while len(lines(job.output)) < goal and time.monotonic() < deadline and not job.ended():
        time.sleep(0.01)
    time.sleep(chance.uniform(0, 0.2))


def damage(output: Path, chance: random.Random) -> str | None:
    """Damages a file of the newest checkpoint if there is an older one. Returns a description of the damage."""
    checkpoints = list_checkpoints(output / CHECKPOINTS)
    if len(checkpoints) < 2:
        return None
    file = chance.choice(sorted(checkpoints[-1].folder.iterdir()))
    content = bytearray(file.read_bytes())
    how = chance.choice(["flipped bit", "truncated", "empty"])
    if how == "flipped bit":
        content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
    file.write_bytes(content if how == "flipped bit" else content[: len(content) // 2] if how == "truncated" else b"")
    return f"{how} {file.name}"


def died(rank: BaseProcess) -> bool:
    """Whether a rank was killed by a signal."""
    return rank.exitcode is not None and rank.exitcode < 0


def disturb(output: Path, overrides: list[str], chance: random.Random, counts: Counter[str]) -> bool:
    """Starts the run once and ends it at a random moment. Returns whether it finished."""
    full = chance.random() < 0.15
    first = len(lines(output))
    with Job(output, *overrides, flags=("--resume",), file_bytes=150_000 if full else None) as job:
        wait_until(job, chance, first)
        if job.ended():
            counts["finished on its own"] += 1
            return job.wait() == 0
        signum = chance.choice([signal.SIGKILL, signal.SIGKILL, signal.SIGTERM])
        ranks = job.ranks()
        for rank in ranks if chance.random() < 0.5 else [chance.choice(ranks)]:
            os.kill(rank, signum)
        while signum == signal.SIGTERM and not job.ended() and not any(died(rank) for rank in job.forked):
            time.sleep(0.05)
        if signum == signal.SIGKILL or any(
            died(rank) for rank in job.forked
        ):  # before the handler is installed, SIGTERM also ends the process
            job.kill()  # as the launcher does
        job.wait()
    counts[signal.Signals(signum).name] += 1
    counts["full disk"] += full
    if "Traceback" in job.errors and signum == signal.SIGTERM:  # a killed process may leave an incomplete file
        counts["TRACEBACK"] += 1
        sys.stdout.write(job.errors)
    if chance.random() < 0.3 and (done := damage(output, chance)):
        counts[done] += 1
    return False


def soak(*, kills: int = 20, minutes: float | None = None, seed: int = 0) -> int:
    """Disturbs a run at random times, resumes it each time, and compares the result with an undisturbed run.

    Each disturbance kills one rank or all ranks with SIGKILL or SIGTERM at a random moment. Sometimes the newest checkpoint is
    then damaged (a flipped bit, a truncated or an empty file), or the run continues for a while on a disk that is too full for a
    checkpoint. The last line reports whether metrics and weights equal those of the undisturbed run.

    Args:
        kills: number of disturbances.
        minutes: stop after this time, even if fewer disturbances have been made.
        seed: random seed of the disturbances.
    """
    chance, counts = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        scenes(output=FolderFlags(out=root / "scenes"), seed=0, train=40, val=8, test=8, size=(32, 32))
        overrides = [*tiny_run(root / "scenes"), f"train.steps={STEPS}", f"train.checkpoint_every={EVERY}"]
        overrides += ["train.keep_checkpoints=3", "data.workers=1"]
        with Job(root / "undisturbed", *overrides) as job:
            assert job.wait(1200) == 0, job.errors
        run, runs, done = root / "run-0", 0, 0
        until = time.monotonic() + 60 * minutes if minutes else math.inf
        while done < kills and time.monotonic() < until:
            done += 1
            if disturb(run, overrides, chance, counts):
                runs = check(root, run, overrides, runs, counts)
                run = root / f"run-{runs}"
        check(root, run, overrides, runs, counts)
    sys.stdout.write(", ".join(f"{count} {name}" for name, count in sorted(counts.items()) if count) + "\n")
    wrong = counts["DIFFERENT"] + counts["TRACEBACK"]
    sys.stdout.write(f"{'WRONG' if wrong else 'equal to the last digit'} after {done} disturbances\n")
    return 1 if wrong else 0


def check(root: Path, run: Path, overrides: list[str], runs: int, counts: Counter[str]) -> int:
    """Lets a run finish and compares it with the undisturbed one. Returns the number of runs so far."""
    with Job(run, *overrides, flags=("--resume",)) as job:
        if job.wait(1200) != 0:
            sys.stdout.write(job.errors)
    last = f"{CHECKPOINTS}/step-{STEPS:08d}/model.safetensors"
    same = (root / "undisturbed" / last).read_bytes() == (run / last).read_bytes() and lines(
        root / "undisturbed"
    ) == lines(run)
    counts["runs equal" if same else "DIFFERENT"] += 1
    return runs + 1


if __name__ == "__main__":
    sys.exit(call(soak, sys.argv[1:], "python -m tests.faults.soak"))
