"""Ranks agree on which of them ends after a signal. Whole runs are tested in tests/faults."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest
import torch.distributed as dist

from engine.checkpoint import newest_intact
from engine.stopping import POLL_S, StopRequest
from tests.engine.toy import ToyTask, trainer
from tests.ranks import CONTEXT, become_rank, free_port, on_each_of_two
from utils import distributed, log, rank_reports
from utils.errors import UserError
from utils.processes import PEER_LOST, REQUEUE, USER_ERROR


@pytest.mark.parametrize("signalled", [0, 1])
def test_a_rank_that_is_slower_than_rank_0_continues_with_it(signalled):
    """Regression test: rank 1 waited ``grace_s`` seconds for rank 0 to end, while rank 0 waited for rank 1."""
    on_each_of_two(end_an_evaluation, signalled)


@pytest.mark.slow
def test_a_rank_ends_after_rank_0_is_gone_whatever_it_waits_for():
    port = free_port()
    ranks = [CONTEXT.Process(target=leave_the_other, args=(rank, port)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [5, PEER_LOST]


def leave_the_other(rank: int, port: int) -> None:
    become_rank(rank, 2, port)
    with distributed.process_group(), StopRequest() as stop, stop.ending_at_once():
        dist.barrier()
        if rank == 0:
            os._exit(5)
        time.sleep(600)


def end_an_evaluation(rank: int, signalled: int) -> None:
    """The signal arrives when rank 0 has left the section that can be ended at once, and rank 1 is still in it."""
    started = time.monotonic()
    with distributed.process_group(), StopRequest(grace_s=90) as stop:
        with stop.ending_at_once():
            dist.barrier()
            if rank == 1:
                ask(rank, signalled)
                wait_for(stop)
        if rank == 0:
            ask(rank, signalled)
            wait_for(stop)
        dist.barrier()
    assert time.monotonic() - started < 60


class HangingValidation(ToyTask):
    """Rank 1 is asked to stop during a validation pass that takes ten minutes."""

    def validate(self) -> dict[str, float]:
        ask(distributed.rank(), 1)
        time.sleep(600)
        raise AssertionError


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_a_validation_ends_at_once_after_its_step_is_saved(tmp_path, parallel):
    """Regression test: with FSDP2, the ranks waited for the end of the validation or of train.grace_s."""
    started, port = time.monotonic(), free_port()
    ranks = [CONTEXT.Process(target=stop_in_validation, args=(rank, port, tmp_path, parallel)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [REQUEUE, REQUEUE]
    assert time.monotonic() - started < 60
    checkpoint, faults = newest_intact(tmp_path / "checkpoints")
    assert checkpoint is not None and (checkpoint.step, faults) == (2, [])
    assert checkpoint.training_state()["validation_due"]


def stop_in_validation(rank: int, port: int, folder: Path, parallel: str) -> None:
    become_rank(rank, 2, port)
    with distributed.process_group(), StopRequest(grace_s=90) as stop:
        run = trainer(folder, HangingValidation(scores=[]), steps=4, validate_every=2, parallel=parallel)
        run.stop = stop
        run.fit()


def ask(rank: int, signalled: int) -> None:
    if rank == signalled:
        os.kill(os.getpid(), signal.SIGTERM)


def wait_for(stop: StopRequest) -> None:
    """Waits until the signal has arrived and the watching thread has seen it."""
    while stop.signum is None:
        time.sleep(POLL_S)
    time.sleep(2 * POLL_S)


def test_a_checkpoint_that_cannot_be_written_ends_all_ranks_with_the_status_of_a_user_error(tmp_path, monkeypatch):
    """With status 75, a scheduler would start the run again, and it would fail in the same way."""
    port = free_port()
    ranks = [CONTEXT.Process(target=cannot_save, args=(rank, port, tmp_path)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [USER_ERROR, USER_ERROR]
    monkeypatch.setenv(rank_reports.FOLDER, str(tmp_path))
    assert rank_reports.some_rank_reported(USER_ERROR), "the launcher must know, too"
    assert not rank_reports.some_rank_reported(REQUEUE)


def cannot_save(rank: int, port: int, reports: Path) -> None:
    become_rank(rank, 2, port)
    os.environ[rank_reports.FOLDER] = str(reports)

    def save() -> str:
        raise UserError("No space left on device")

    with distributed.process_group(), StopRequest() as stop, stop.ending_at_once(save):
        dist.barrier()
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)


def test_a_checkpoint_that_takes_too_long_is_named_before_the_launcher_kills_the_rank(tmp_path):
    started = time.monotonic()
    process = CONTEXT.Process(target=saves_slowly, args=(tmp_path / "log.txt",))
    process.start()
    process.join(30)
    assert process.exitcode == REQUEUE and time.monotonic() - started < 20
    assert "not written within train.grace_s" in (tmp_path / "log.txt").read_text()


def saves_slowly(file: Path) -> None:
    log.set_up(file)
    with StopRequest(grace_s=2) as stop, stop.ending_at_once(lambda: str(time.sleep(60))):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)


@pytest.mark.parametrize("signum", [signal.SIGHUP, signal.SIGXCPU])
def test_a_lost_terminal_and_the_limit_of_cpu_time_ask_a_run_to_stop(signum):
    before = signal.signal(signum, signal.SIG_DFL)  # nohup ignores SIGHUP
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signum)
            assert (stop.signum, stop.status) == (signum, REQUEUE)
    finally:
        signal.signal(signum, before)


def test_a_run_started_under_nohup_ignores_a_lost_terminal():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert stop.signum is None
    finally:
        signal.signal(signal.SIGHUP, before)
