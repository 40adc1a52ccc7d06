"""A tiny run on two ranks, undisturbed, and ways to disturb one."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from demo.scenes.build import build
from tests.conftest import tiny_run

ROOT = Path(__file__).parent.parent.parent
STEPS = 40
OF_TIME = ("samples_per_s", "images_per_s", "tokens_per_s", "tflops_per_s", "utilisation", "data_wait", "elapsed_s")


class Job:
    """``run.py`` on some ranks of the CPU, with its output in files."""

    def __init__(self, output: Path, *overrides: str, ranks: int = 2, flags: tuple[str, ...] = (), prepare=None):
        self.output = output
        output.parent.mkdir(parents=True, exist_ok=True)
        self.err = output.with_name(f"{output.name}-stderr-{time.monotonic_ns()}.txt")
        command = [sys.executable, "run.py", "--config", "configs/demo/pretrain.yaml", "--cpu", str(ranks)]
        with self.err.open("w", encoding="utf-8") as err:
            self.process = subprocess.Popen(
                [*command, "--output", str(output), *flags, *overrides],
                cwd=ROOT,
                stdout=subprocess.PIPE,
                stderr=err,
                text=True,
                preexec_fn=prepare,
            )

    def __enter__(self) -> Job:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.process.kill()
        self.process.communicate()

    def wait(self, timeout: float = 120) -> int:
        self.process.communicate(timeout=timeout)
        return self.process.returncode

    @property
    def errors(self) -> str:
        return self.err.read_text(encoding="utf-8")

    def until(self, reached: Callable[[], bool], timeout: float = 90) -> None:
        deadline = time.monotonic() + timeout
        while not reached():
            assert self.process.poll() is None, self.errors[-3000:]
            assert time.monotonic() < deadline, self.errors[-3000:]
            time.sleep(0.01)

    def until_step(self, step: int) -> None:
        self.until(lambda: len(lines(self.output)) >= step)

    def children(self, process: int | None = None) -> list[int]:
        """The processes that a process has started: the ranks, of the launcher; the workers, of a rank."""
        process = self.process.pid if process is None else process
        found = subprocess.run(
            ["ps", "-o", "pid=", "--ppid", str(process)], capture_output=True, text=True, check=False
        )
        return [pid for pid in map(int, found.stdout.split()) if "python" in command_of(pid)]

    def ranks(self) -> list[int]:
        """The processes of the ranks, in their order."""
        ranks = [pid for pid in self.children() if "tasks.run" in command_of(pid)]
        return sorted(ranks, key=lambda pid: int(environment_of(pid)["RANK"]))


def command_of(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text().replace("\0", " ")
    except OSError:
        return ""


def environment_of(pid: int) -> dict[str, str]:
    parts = Path(f"/proc/{pid}/environ").read_text().split("\0")
    return dict(part.split("=", 1) for part in parts if "=" in part)


def lines(output: Path) -> list[dict[str, float]]:
    """`metrics.jsonl` without what depends on the clock, and without a torn end."""
    try:
        text = (output / "metrics.jsonl").read_text()
    except OSError:
        return []
    whole = [json.loads(line) for line in text.splitlines(keepends=True) if line.endswith("\n")]
    return [{name: value for name, value in line.items() if name not in OF_TIME} for line in whole]


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
    build(folder, seed=0, train=40, val=8, test=8, size=32)
    return [*tiny_run(folder), f"train.steps={STEPS}", "train.checkpoint_every=10", "data.workers=1"]


@pytest.fixture(scope="session")
def whole(tmp_path_factory, overrides) -> Path:
    """The folder of an undisturbed run on two ranks."""
    with Job(tmp_path_factory.mktemp("whole") / "run", *overrides) as job:
        assert job.wait() == 0, job.errors[-3000:]
    return job.output


@pytest.fixture
def equals_whole(whole, overrides) -> Callable[[Path], None]:
    """Resume a disturbed run, and compare it with the undisturbed one to the last digit."""

    def check(output: Path, *more: str, ranks: int = 2) -> None:
        with Job(output, *overrides, *more, ranks=ranks, flags=("--resume",)) as job:
            assert job.wait() == 0, job.errors[-3000:]
        assert lines(output) == lines(whole)
        assert final_weights(output) == final_weights(whole)

    return check
