"""A job on nodes that come and go: local processes that meet at a rendezvous, each with one rank on the CPU."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from tests.faults.conftest import ROOT, lines
from tests.ranks import free_port

pytestmark = pytest.mark.night

STEPS = 60
GLOBAL_BATCH = 24
"""Six micro-batches, on one, two or three ranks."""

TASK = '''"""Pre-training that writes down which records each step was trained on, and takes its time."""

import json
import os
import time
from pathlib import Path
from typing import Literal

from engine.trainer import Trainer
from tasks.kinds import TaskKind
from tasks.pretrain import PretrainConfig, PretrainTask

STARTED = time.time()
FOLDER = Path(os.environ["TRAINED"])
train_step = Trainer.train_step


def logged_step(self, micro_batches, *more):
    ranks = int(os.environ.get("WORLD_SIZE", "1"))
    pending = train_step(self, micro_batches, *more)
    line = {"started": STARTED, "port": os.environ["MASTER_PORT"], "ranks": ranks}
    line |= {"step": self.step, "batches": [batch.records for batch in micro_batches]}
    with (FOLDER / f"{os.getpid()}.jsonl").open("a") as file:
        file.write(json.dumps(line) + "\\n")
    if "PACE_S" in os.environ and not (FOLDER / "fast").exists():
        time.sleep(float(os.environ["PACE_S"]) if self.step < 15 else 1)
    return pending


Trainer.train_step = logged_step


class LoggedConfig(PretrainConfig):
    task: Literal["logged"] = "logged"


TASK = TaskKind(LoggedConfig, PretrainTask)
'''


class Node:
    """A node of the job: its launcher and ranks, in a separate process group."""

    def __init__(self, folder: Path, port: int, arguments: list[str], *, hosts: bool = False):
        self.err = (folder / f"node-{time.monotonic_ns()}.txt").open("w+")
        conf = f"is_host={int(hosts)},last_call_timeout=3,keep_alive_interval=1,keep_alive_max_attempt=3"
        environment = {
            "PET_RDZV_CONF": conf,
            "OMP_NUM_THREADS": "1",
            "PACE_S": "0.2",
            "TRAINED": str(folder / "trained"),
        }
        flags = ["--cpu", "1", "--nodes", "1:3", "--master", f"127.0.0.1:{port}", "--resume"]
        self.process = subprocess.Popen(
            [sys.executable, "run.py", *flags, *arguments],
            cwd=ROOT,
            env=os.environ | environment,
            stdout=subprocess.DEVNULL,
            stderr=self.err,
            start_new_session=True,
        )

    def __enter__(self) -> Node:
        return self

    def __exit__(self, *_: object) -> None:
        self.vanish()
        self.err.close()

    def vanish(self) -> None:
        """Simulates a power failure: the node's processes are killed without any clean-up."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    @property
    def errors(self) -> str:
        return Path(self.err.name).read_text()[-4000:]


def trained(folder: Path) -> list[dict[str, Any]]:
    """The lines that the ranks recorded, oldest start first."""
    files = (folder / "trained").glob("*.jsonl")
    whole = [line for file in files for line in file.read_text().splitlines(keepends=True) if line.endswith("\n")]
    return sorted(map(json.loads, whole), key=lambda line: line["started"])


def wait_until(reached: Callable[[], bool], *nodes: Node, timeout_s: float = 120) -> None:
    deadline = time.monotonic() + timeout_s
    while not reached():
        assert time.monotonic() < deadline, "".join(node.errors for node in nodes)
        assert all(node.process.poll() is None for node in nodes), "".join(node.errors for node in nodes)
        time.sleep(0.05)


def starts(done: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """Groups the lines by start of the ranks, oldest start first. Each start uses a different port."""
    by_port: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in done:
        by_port[line["port"]].append(line)
    return list(by_port.values())


def trajectory(done: list[dict[str, Any]]) -> dict[int, list[Any]]:
    """The micro-batches of each step that contributed to the final weights. A start resumes from a checkpoint, so steps that the
    previous start trained after that checkpoint do not count."""
    steps: dict[int, list[Any]] = {}
    for start in starts(done):
        first = min(line["step"] for line in start)
        steps = {step: batches for step, batches in steps.items() if step < first}
        for line in start:
            steps.setdefault(line["step"], []).extend(line["batches"])
    return {step: sorted(batches) for step, batches in steps.items()}


@pytest.fixture(scope="module")
def arguments(tmp_path_factory, overrides) -> list[str]:
    folder = tmp_path_factory.mktemp("elastic") / "logged"
    folder.mkdir()
    (folder / "task.py").write_text(TASK)
    (folder / "config.yaml").write_text(f"base: {ROOT}/configs/demo/pretrain.yaml\ntask: logged\n")
    batch = [f"train.global_batch={GLOBAL_BATCH}", "train.accumulate=null", f"train.steps={STEPS}"]
    return ["--task", str(folder), *overrides, *batch, "evaluation=null", "data.workers=0"]


def start_undisturbed(folder: Path, arguments: list[str]) -> subprocess.Popen[bytes]:
    """Starts an undisturbed run on one node. It runs at the same time as the other run, because both mostly wait."""
    (folder / "straight" / "trained").mkdir(parents=True)
    with (folder / "undisturbed.txt").open("w") as err:
        return subprocess.Popen(
            [sys.executable, "run.py", "--cpu", "1", *arguments, "--output", str(folder / "undisturbed")],
            cwd=ROOT,
            env=os.environ | {"TRAINED": str(folder / "straight" / "trained"), "OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
            stderr=err,
        )


def test_nodes_can_be_lost_join_and_leave_and_each_record_is_trained_in_order(tmp_path, arguments):
    output, port = tmp_path / "run", free_port()
    (tmp_path / "trained").mkdir()
    straight = start_undisturbed(tmp_path, arguments)
    arguments = [*arguments, "--output", str(output)]
    with Node(tmp_path, port, arguments, hosts=True) as first:
        with Node(tmp_path, port, arguments) as second:
            wait_until(
                lambda: any(line["ranks"] == 2 and line["step"] >= 8 for line in trained(tmp_path)), first, second
            )
            second.vanish()
        wait_until(lambda: trained(tmp_path)[-1]["ranks"] == 1 and trained(tmp_path)[-1]["step"] >= 10, first)
        alone = trained(tmp_path)[-1]["started"]
        with Node(tmp_path, port, arguments) as third:
            later = lambda: [line for line in trained(tmp_path) if line["started"] > alone and line["ranks"] == 2]  # noqa: E731
            wait_until(lambda: len(later()) > 4, first, third)
            third.process.terminate()
            assert third.process.wait(60) == 75, third.errors
            (tmp_path / "trained" / "fast").touch()
            assert first.process.wait(120) == 0, first.errors
    assert "Traceback" not in first.errors + third.errors

    disturbed = starts(trained(tmp_path))
    assert [start[0]["ranks"] for start in disturbed[-4:]] == [2, 1, 2, 1]
    for before, after in pairwise(disturbed[-3:]):
        assert min(line["step"] for line in after) == max(line["step"] for line in before) + 1, (
            "a checkpoint must be saved first"
        )
    reports = [line for node in (first, second, third) for line in Path(node.err.name).read_text().splitlines()]
    with_two = [line for line in reports if line.endswith("starting the ranks on 2 nodes")]
    assert len(with_two) >= 2, "once with the second node, and once with the third"

    assert straight.wait(120) == 0, (tmp_path / "undisturbed.txt").read_text()[-3000:]
    undisturbed = trajectory(trained(tmp_path / "straight"))
    assert sorted(undisturbed) == list(range(1, STEPS + 1))
    assert trajectory(trained(tmp_path)) == undisturbed, (
        "each step must have the same micro-batches, without losses or repetitions"
    )
    assert [line["step"] for line in lines(output)] == list(range(1, STEPS + 1)), (
        "there must be a line of metrics for each step"
    )
