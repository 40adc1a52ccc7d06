"""Work in processes: results in order, only a few jobs in flight, and a process that dies loses only its own job."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dataset.prepare.processes import AHEAD, in_order

ROOT = Path(__file__).parents[3]
FORKS = multiprocessing.get_start_method() == "fork"
pytestmark = pytest.mark.skipif(not FORKS, reason="only forked processes know the functions of a test")


def slow_at_even_numbers(number: int) -> int:
    time.sleep(0.02 if number % 2 == 0 else 0)
    return number * number


def killed_at_five(number: int) -> int:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def fails_at_three(number: int) -> int:
    if number == 3:
        raise ValueError("three")
    return number


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_the_order_of_the_jobs(workers):
    assert list(in_order(slow_at_even_numbers, range(20), workers, int)) == [n * n for n in range(20)]


def test_jobs_are_requested_only_when_needed():
    asked = []
    results = in_order(slow_at_even_numbers, (asked.append(n) or n for n in range(100)), 2, int)
    next(results)
    assert len(asked) == AHEAD * 2
    results.close()


@pytest.mark.parametrize("workers", [1, 3])
def test_a_process_that_dies_loses_only_its_own_job(workers):
    found = list(in_order(killed_at_five, range(12), workers, lambda job: -job))
    assert found == [0, 1, 2, 3, 4, -5, 6, 7, 8, 9, 10, 11]


def test_errors_raised_by_work_are_raised():
    results = in_order(fails_at_three, range(12), 2, int)
    assert [next(results) for _ in range(3)] == [0, 1, 2]
    with pytest.raises(ValueError, match="three"):
        next(results)


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="the system does not list processes as files")
def test_no_process_outlives_its_parent():
    program = (
        "import os\nfrom dataset.prepare.processes import in_order\n"
        "def work(n):\n    import time; time.sleep(0.01); return os.getpid()\n"
        "for pid in in_order(work, range(10**6), 2, int):\n    print(pid, flush=True)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    children = {int(parent.stdout.readline()) for _ in range(20)}
    parent.kill()
    parent.wait()
    ends = time.monotonic() + 20
    while any(Path(f"/proc/{child}").exists() and is_running(child) for child in children):
        assert time.monotonic() < ends
        time.sleep(0.05)


def is_running(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
