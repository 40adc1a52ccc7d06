"""When the ranks of an elastic job restart, and when the job ends. The ranks are one-line scripts on one node."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.messages import OneLine
from tests.ranks import free_port
from utils.processes import PEER_LOST, REQUEUE, USER_ERROR

ROOT = Path(__file__).parent.parent.parent
LAUNCH = """
import sys
from launch.clusters import LaunchContext
from launch.placement import Nodes
from utils.errors import one_line_errors
from launch.torchrun import run_ranks
context = LaunchContext("flags", Nodes(1, 1, True), None, sys.argv[1], max_restarts=int(sys.argv[2]))
sys.exit(one_line_errors(run_ranks)(context, 2, [sys.argv[3]], grace_s=5))
"""
RANK = """
import os, sys, time
from pathlib import Path
starts = Path(sys.argv[0]).with_name(f"starts-{os.environ['RANK']}")
starts.open("a").write(os.environ["MASTER_PORT"] + "\\n")
number = len(starts.read_text().splitlines())
if number <= TIMES and os.environ["RANK"] == "1":
    STOP
elif number <= TIMES:
    time.sleep(60)  # as a rank that waits for the other
"""


def launch(folder: Path, times: int, stop: str, restarts: int) -> tuple[subprocess.CompletedProcess[str], list[str]]:
    """Runs a job whose rank 1 stops in its first starts. Returns the finished process and the port of rank 0 in each
    start, as seen by rank 1. (Rank 0 may be stopped before it has begun.)"""
    (folder / "rank.py").write_text(RANK.replace("TIMES", str(times)).replace("STOP", stop))
    command = [sys.executable, "-c", LAUNCH, f"127.0.0.1:{free_port()}", str(restarts), str(folder / "rank.py")]
    environment = os.environ | {"PET_RDZV_CONF": "last_call_timeout=1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=120)
    return done, (folder / "starts-1").read_text().splitlines()


@pytest.mark.night
@pytest.mark.parametrize(
    ("stop", "restarts", "starts", "status"),
    [
        ("os.kill(os.getpid(), 9)", 1, 2, 0),
        (f"sys.exit({PEER_LOST})", 1, 2, 0),
        (f"sys.exit({PEER_LOST})", 0, 1, PEER_LOST),
        (f"sys.exit({REQUEUE})", 0, 2, 0),
        (f"sys.exit({USER_ERROR})", 5, 1, USER_ERROR),
    ],
    ids=["killed", "lost a peer", "lost a peer too often", "stopped gracefully", "mistake"],
)
def test_ranks_restart_unless_the_user_has_to_fix_something(tmp_path, stop, restarts, starts, status):
    done, ports = launch(tmp_path, 1, stop, restarts)
    assert done.returncode == status, done.stderr
    assert len(ports) == starts
    assert len(set(ports)) == starts, (
        "each start needs a new store, because ranks were asked to stop in the previous one"
    )
    assert "Traceback" not in done.stderr
    assert done.stderr.count("restarting the ranks on 1 node\n") == starts - 1
    assert ("rank 1 was killed by SIGKILL" in done.stderr) == ("os.kill" in stop)


@pytest.mark.night
def test_losing_the_rendezvous_node_ends_the_others_with_one_line(tmp_path):
    (tmp_path / "rank.py").write_text(RANK.replace("TIMES", "9").replace("STOP", "time.sleep(60)"))
    port = free_port()
    launch = LAUNCH.replace("Nodes(1, 1, True)", "Nodes(1, 2, True)")
    command = [sys.executable, "-c", launch, f"127.0.0.1:{port}", "5", str(tmp_path / "rank.py")]
    nodes = []
    for hosts in (1, 0):
        conf = f"is_host={hosts},last_call_timeout=20"
        environment = os.environ | {"PET_RDZV_CONF": conf, "PYTHONPATH": str(ROOT)}
        nodes.append(
            subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True)
        )
    host, other = nodes
    try:
        deadline = time.monotonic() + 60
        while len(list(tmp_path.glob("starts-*"))) != 4:
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(host.pid, signal.SIGKILL)
        _, message = other.communicate(timeout=60)
    finally:
        for node in nodes:
            if node.poll() is None:
                os.killpg(node.pid, signal.SIGKILL)
            node.wait()
    assert other.returncode == PEER_LOST
    assert OneLine("error", "--nodes 1:2") in message.splitlines() and "Traceback" not in message, message
    assert OneLine(f"127.0.0.1:{port}", "again") in message.splitlines()


@pytest.mark.night
def test_failures_are_counted(tmp_path):
    done, ports = launch(tmp_path, 9, "sys.exit(1)", 2)
    assert done.returncode == 1
    assert len(ports) == 3
