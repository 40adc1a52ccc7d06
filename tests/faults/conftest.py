"""A tiny undisturbed run on two ranks, and helpers that start and disturb other runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from demo.folder import FolderFlags
from demo.scenes.build import scenes
from engine.watch import RANKS
from tests.conftest import tiny_run
from tests.ranks import CONTEXT, free_port, run_rank

ROOT = Path(__file__).parent.parent.parent
STEPS = 18
CLOCK_VALUES = (
    *("samples_per_s", "images_per_s", "tokens_per_s", "tflops_per_s", "utilisation", "data_wait", "elapsed_s"),
    *RANKS,
)


class Job:
    """A run on the CPU whose stderr goes to a file. The ranks are started by ``run.py`` or, which is faster, forked from a
    process that has imported everything.

    Args:
        output: folder of the run.
        overrides: overrides of the demo's config.
        ranks: number of processes.
        flags: flags of the command.
        launcher: whether ``run.py`` starts the ranks.
        file_bytes: maximum size of any file, to simulate a full disk.
        full_rank: the rank to which ``file_bytes`` applies; if None, it applies to all ranks.
    """

    def __init__(
        self,
        output: Path,
        *overrides: str,
        ranks: int = 2,
        flags: tuple[str, ...] = (),
        launcher: bool = False,
        file_bytes: int | None = None,
        full_rank: int | None = None,
    ):
        self.output = output
        self.err = Path(tempfile.mkstemp(prefix="stderr-", suffix=".txt")[1])
        arguments = ["--config", "configs/demo/pretrain.yaml", "--output", str(output), *flags, *overrides]
        self.final_errors: str | None = None
        self.process: subprocess.Popen[str] | None = None
        self.forked: list[Any] = []
        if launcher:
            command = [sys.executable, "run.py", "--cpu", str(ranks), *arguments]
            with self.err.open("w", encoding="utf-8") as err:
                self.process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=err, text=True)
            return
        port = free_port()
        for rank in range(ranks):
            limit = file_bytes if full_rank in (None, rank) else None
            call = (rank, ranks, port, str(self.err), ["pretrain", *arguments], limit)
            self.forked.append(CONTEXT.Process(target=run_rank, args=call))
            self.forked[-1].start()

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self.wait()
        self.final_errors = self.errors
        self.err.unlink()

    def ended(self) -> bool:
        """Returns True if all processes have ended."""
        return all(self._status(each) is not None for each in (self.process, *self.forked) if each is not None)

    def kill(self) -> None:
        """Kills all processes that are still running."""
        for process in (self.process, *self.forked):
            if process is not None and self._status(process) is None:
                process.kill()

    def wait(self, timeout: float = 120) -> int:
        """Waits, and returns the exit status of the launcher or of the first rank that failed."""
        if self.process is not None:
            return self.process.wait(timeout)
        for process in self.forked:
            process.join(timeout)
            assert process.exitcode is not None, f"a rank does not end\n{self.errors[-3000:]}"
        return next((process.exitcode for process in self.forked if process.exitcode), 0)

    def statuses(self) -> list[int]:
        """Waits, and returns the exit statuses of forked ranks."""
        self.wait()
        return [process.exitcode for process in self.forked]

    @staticmethod
    def _status(process: Any) -> int | None:
        return process.poll() if isinstance(process, subprocess.Popen) else process.exitcode

    @property
    def errors(self) -> str:
        if self.final_errors is not None:
            return self.final_errors
        return self.err.read_text(encoding="utf-8")

    def wait_until(self, reached: Callable[[], bool], timeout: float = 90) -> None:
        deadline = time.monotonic() + timeout
        while not reached():
            assert not self.ended(), self.errors[-3000:]
            assert time.monotonic() < deadline, self.errors[-3000:]
            time.sleep(0.01)

    def wait_for_step(self, step: int) -> None:
        self.wait_until(lambda: len(lines(self.output)) >= step)

    def ranks(self) -> list[int]:
        """Returns the process ids of the ranks, in the order of the ranks."""
        if self.process is None:
            return [process.pid for process in self.forked]
        ranks = [pid for pid in children(self.process.pid) if "launch.rank" in command_of(pid)]
        return sorted(ranks, key=lambda pid: int(environment_of(pid)["RANK"]))


def children(process: int) -> list[int]:
    """Returns the ids of the Python processes that a process has started."""
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True, check=False)
    return [pid for pid in map(int, found.stdout.split()) if "python" in command_of(pid)]


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def environment_of(pid: int) -> dict[str, str]:
    parts = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(part.split("=", 1) for part in parts if "=" in part)


def lines(output: Path) -> list[dict[str, float]]:
    """The lines of `metrics.jsonl` without values that depend on the clock, and without an incomplete last line."""
    try:
        text = (output / "metrics.jsonl").read_text()
    except OSError:
        return []
    whole = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [{name: value for name, value in line.items() if name not in CLOCK_VALUES} for line in whole]


def final_weights(output: Path) -> bytes:
    return (output / f"checkpoints/step-{STEPS:08d}/model.safetensors").read_bytes()


def stopped(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "T"


def pause(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)
    while not stopped(pid):
        time.sleep(0.001)


@pytest.fixture(scope="session")
def overrides(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("faults") / "scenes"
    scenes(output=FolderFlags(out=folder), seed=0, train=40, val=8, test=8, size=(32, 32))
    return [
        *tiny_run(folder),
        f"train.steps={STEPS}",
        "train.checkpoint_every=6",
        "train.keep_checkpoints=9",
        "data.workers=1",
    ]


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory, overrides) -> Path:
    """The folder of an undisturbed run on two ranks."""
    with Job(tmp_path_factory.mktemp("undisturbed") / "run", *overrides) as job:
        assert job.wait() == 0, job.errors[-3000:]
    return job.output


@pytest.fixture
def equals_undisturbed(undisturbed, overrides) -> Callable[[Path], None]:
    """Returns a function that resumes a disturbed run and checks that the result equals the undisturbed run exactly."""

    def check(output: Path, *more: str, ranks: int = 2) -> None:
        with Job(output, *overrides, *more, ranks=ranks, flags=("--resume",)) as job:
            assert job.wait() == 0, job.errors[-3000:]
        assert lines(output) == lines(undisturbed)
        assert final_weights(output) == final_weights(undisturbed)

    return check
