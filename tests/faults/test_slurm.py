"""A SLURM job from `run.py --slurm` to its end. Local replacements for sbatch, srun and scontrol run it on this machine."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.faults.conftest import ROOT, lines
from tests.messages import OneLine
from tests.ranks import free_port

pytestmark = pytest.mark.night

STAND_INS = {
    "sbatch": """
from pathlib import Path
argv = sys.argv[1:]
assert argv[0] == "--parsable" and len(argv) == 2, argv
Path(state, "submitted").write_text(argv[1])
print("12017;one")
""",
    # Runs the command once for each task, with one task per node, and returns the highest status, like srun.
    "srun": """
import signal, subprocess
from pathlib import Path
argv = sys.argv[1:]
while argv[0].startswith("--"):
    argv.pop(0)
nodes = int(os.environ["SLURM_NNODES"])
tasks = []
for node in range(nodes):
    own = {"SLURM_STEP_ID": "0", "SLURM_STEP_NUM_NODES": str(nodes), "SLURM_STEP_NUM_TASKS": str(nodes)}
    own |= {"SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NODEID": str(node), "SLURM_PROCID": str(node), "SLURM_LOCALID": "0"}
    tasks.append(subprocess.Popen(argv, env=os.environ | own))
Path(state, "tasks").write_text(" ".join(str(task.pid) for task in tasks))
sys.exit(max(task.wait() for task in tasks))
""",
    "scontrol": """
from pathlib import Path
assert sys.argv[1:] == ["requeue", "12017"], sys.argv
Path(state, "requeued").touch()
""",
}


class Slurm:
    """A queue with one job."""

    def __init__(self, folder: Path, nodes: int):
        self.folder, self.nodes = folder, nodes
        (folder / "bin").mkdir(parents=True)
        for name, body in STAND_INS.items():
            file = folder / "bin" / name
            file.write_text(f"#!{sys.executable}\nimport os, sys\nstate = {str(folder)!r}\n{body}")
            file.chmod(stat.S_IRWXU)
        self.environment = os.environ | {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}

    def submit(self, *arguments: str) -> str:
        """Runs ``run.py --slurm`` and returns its output."""
        command = [sys.executable, "run.py", "--slurm", *arguments]
        done = subprocess.run(command, cwd=ROOT, env=self.environment, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self) -> subprocess.Popen[str]:
        """Starts the job's script, as SLURM does on the first node."""
        (self.folder / "requeued").unlink(missing_ok=True)
        (self.folder / "tasks").unlink(missing_ok=True)
        job = {"SLURM_JOB_ID": "12017", "SLURM_NNODES": str(self.nodes), "SLURM_NTASKS": str(self.nodes)}
        script = (self.folder / "submitted").read_text()
        with (self.folder / "output.txt").open("a") as output:  # --open-mode=append
            return subprocess.Popen(
                ["bash", script], env=self.environment | job, stdout=output, stderr=output, text=True
            )

    def signal(self, signum: int) -> None:
        """Signals each task, as SLURM does before the job's time limit."""
        for task in (self.folder / "tasks").read_text().split():
            os.kill(int(task), signum)

    @property
    def requeued(self) -> bool:
        return (self.folder / "requeued").exists()

    @property
    def output(self) -> str:
        return (self.folder / "output.txt").read_text()[-5000:]


def test_a_job_that_is_stopped_and_requeued_ends_like_an_undisturbed_one(tmp_path, overrides, undisturbed):
    slurm, output = Slurm(tmp_path / 'it\'s "slurm"', nodes=2), tmp_path / "my 'first' \"$HOME\" run"
    arguments = ["--config", "configs/demo/pretrain.yaml", "--output", str(output), "--nodes", "2", "--cpu", "1"]
    message = slurm.submit(*arguments, "--time", "30", *overrides)
    assert message == f"job 12017: {output}/slurm.sh; output in {output}/slurm-12017.txt\n"

    job = slurm.start()
    deadline = time.monotonic() + 120
    while len(lines(output)) < 3:
        assert job.poll() is None and time.monotonic() < deadline, slurm.output
        time.sleep(0.02)
    slurm.signal(signal.SIGUSR1)
    assert job.wait(120) == 75, slurm.output
    assert slurm.requeued
    assert "requeueing job 12017" in slurm.output
    done = lines(output)[-1]["step"]
    assert 3 <= done < 18

    job = slurm.start()
    assert job.wait(120) == 0, slurm.output
    assert not slurm.requeued
    assert f"resuming from {output}/checkpoints/step-{done:08d}" in slurm.output
    assert OneLine("SLURM job 12017", "node 0 of 2", "127.0.0.1:17017") in slurm.output.splitlines()
    assert "Traceback" not in slurm.output
    assert lines(output) == lines(undisturbed)


def test_mistakes_and_cancelled_jobs_are_not_requeued(tmp_path):
    slurm = Slurm(tmp_path / "slurm", nodes=1)
    arguments = [
        "--task",
        "pretrain",
        "--cpu",
        "1",
        "--output",
        str(tmp_path / "run"),
        "data.images.files=[nowhere.jsonl]",
    ]
    slurm.submit(*arguments)
    assert slurm.start().wait(120) == 2, slurm.output
    assert "nowhere.jsonl" in slurm.output and not slurm.requeued

    srun = slurm.folder / "bin" / "srun"
    srun.write_text(f"#!/bin/sh\ntouch {slurm.folder}/tasks\nsleep 1\nexit 75\n")
    job = slurm.start()
    while not (slurm.folder / "tasks").exists():
        time.sleep(0.02)
    job.terminate()  # scancel also signals the script
    assert job.wait(20) == 75
    assert not slurm.requeued


def test_each_task_of_one_task_per_gpu_is_a_rank(tmp_path, overrides, undisturbed):
    """Two tasks on one node, as started by srun --ntasks-per-node=2."""
    output = tmp_path / "run"
    step = {
        "SLURM_JOB_ID": str(free_port()),
        "SLURM_STEP_ID": "0",
        "SLURM_STEP_NUM_NODES": "1",
        "SLURM_STEP_NUM_TASKS": "2",
    }
    step |= {"SLURM_STEP_NODELIST": "127.0.0.1", "SLURM_NODEID": "0", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "run.py", "--config", "configs/demo/pretrain.yaml", "--output", str(output), *overrides]
    with (tmp_path / "output.txt").open("w") as message:
        tasks = [
            subprocess.Popen(
                command,
                cwd=ROOT,
                env=os.environ | step | {"SLURM_PROCID": str(task), "SLURM_LOCALID": str(task)},
                stdout=message,
                stderr=message,
            )
            for task in range(2)
        ]
        assert [task.wait(120) for task in tasks] == [0, 0], (tmp_path / "output.txt").read_text()[-3000:]
    assert lines(output) == lines(undisturbed)
