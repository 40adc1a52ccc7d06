"""A worker that hangs or is killed is reported with the record it was reading, and replaced."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from dataset.workers import RESTARTS, in_workers, reading
from tests.messages import OneLine, naming
from utils.errors import UserError


class BatchMaker:
    """Batch 3 does ``harm`` the first ``times`` times. Files count the attempts."""

    def __init__(self, folder: Path, harm: str, times: int):
        self.folder, self.harm, self.times = folder, harm, times

    def __call__(self, number: int) -> int:
        reading.get()(f"data/train.jsonl:{number}")
        if number == 3 and len(list(self.folder.iterdir())) < self.times:
            (self.folder / f"{len(list(self.folder.iterdir()))}").touch()
            if self.harm == "hang":
                time.sleep(60)
            os.kill(os.getpid(), signal.SIGKILL)
        return number


@pytest.mark.parametrize(
    ("harm", "reported"),
    [
        ("hang", ("worker 1 of rank 0", "1 s", "data.worker_timeout_s", "data/train.jsonl:3")),
        ("kill", ("worker 1 of rank 0", "SIGKILL", "data/train.jsonl:3", "memory")),
    ],
)
def test_a_lost_worker_is_reported_and_replaced(tmp_path, caplog, harm, reported):
    made = in_workers(BatchMaker(tmp_path, harm, times=1), range(8), 2, timeout_s=1)
    assert list(made) == list(range(8))
    (record,) = caplog.records
    assert record.getMessage() == OneLine(f"1 of at most {RESTARTS}")
    assert record.getMessage() == OneLine(*reported)


def test_a_worker_that_is_stopped_while_it_sends_batches_is_replaced(tmp_path):
    """A worker sends its batches in a separate thread, which is stopped too."""
    batches = in_workers(torch.ones, range(1, 40), 1, timeout_s=1)
    assert len(next(batches)) == 1
    (worker,) = multiprocessing.active_children()
    os.kill(worker.pid, signal.SIGSTOP)
    assert [len(batch) for batch in batches] == list(range(2, 40))


def test_a_worker_that_dies_in_the_middle_of_a_step_does_not_disturb_it(tmp_path):
    batches = in_workers(torch.ones, range(1, 9), 1)
    assert len(next(batches)) == 1
    (worker,) = multiprocessing.active_children()
    worker.kill()
    time.sleep(0.5)  # this is the step, in which torch's own handler would raise an error
    assert [len(batch) for batch in batches] == list(range(2, 9))


def test_repeatedly_losing_a_worker_ends_the_run_with_one_line(tmp_path):
    batches = in_workers(BatchMaker(tmp_path, "kill", times=99), range(8), 2, timeout_s=10)
    with pytest.raises(UserError, match=naming("SIGKILL", ":3", RESTARTS)):
        list(batches)
    assert not multiprocessing.active_children()


def test_a_worker_lost_before_all_indices_are_assigned_is_replaced(tmp_path, caplog, monkeypatch):
    """Torch assigns the first indices while it creates its iterator, and raises an error there."""
    give_away = _MultiProcessingDataLoaderIter._try_put_index

    def slowly(self):
        give_away(self)
        time.sleep(0.1)

    monkeypatch.setattr(_MultiProcessingDataLoaderIter, "_try_put_index", slowly)
    assert list(in_workers(BatchMaker(tmp_path, "kill", times=2), range(3, 9), 2)) == list(range(3, 9))
    assert [record.getMessage().split(" while ")[0] for record in caplog.records] == [
        "worker 0 of rank 0 was killed by SIGKILL"
    ] * 2
    assert not multiprocessing.active_children()


def test_leaving_a_loop_early_leaves_no_workers(tmp_path):
    batches = in_workers(BatchMaker(tmp_path, "hang", times=1), range(8), 2)
    assert next(batches) == 0
    started = time.monotonic()
    batches.close()
    assert not [child for child in multiprocessing.active_children() if child.is_alive()]
    assert time.monotonic() - started < 30


def test_workers_ignore_the_signals_of_a_scheduler(tmp_path):
    def make(number: int) -> int:
        for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
            os.kill(os.getpid(), signum)
        return number

    assert list(in_workers(make, range(4), 2)) == [0, 1, 2, 3]


class CannotBePickled:
    def __reduce__(self):
        raise RuntimeError(NO_MEMORY)


NO_MEMORY = "unable to write to file </torch_1_2_3>: No space left on device (28)"


def fails_in_the_worker(number: int) -> int:
    raise RuntimeError(NO_MEMORY)


def fails_on_its_way(number: int) -> CannotBePickled:
    return CannotBePickled()


@pytest.mark.parametrize("make", [fails_in_the_worker, fails_on_its_way])
def test_a_small_dev_shm_is_reported_in_one_line_with_the_remedy(make, capfd):
    with pytest.raises(UserError, match=r"/dev/shm.*lower data\.workers.*shm-size") as error:
        list(in_workers(make, range(8), 2, timeout_s=20))
    assert "\n" not in str(error.value)
    assert "Traceback" not in capfd.readouterr().err
