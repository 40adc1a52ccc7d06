"""Ranks agree on who ends when a signal comes; tests/faults has whole runs."""

from __future__ import annotations

import os
import signal
import time

import pytest
import torch.distributed as dist

from engine.stopping import POLL_S, StopRequest
from tests.ranks import CONTEXT, become_rank, free_port, on_each_of_two
from utils import distributed
from utils.processes import PEER_LOST


@pytest.mark.parametrize("signalled", [0, 1])
def test_a_rank_that_is_slower_than_rank_0_goes_on_with_it(signalled):
    """It used to wait ``grace_s`` seconds for rank 0 to end, which waited for it."""
    on_each_of_two(end_an_evaluation, signalled)


def test_a_rank_that_rank_0_has_left_ends_whatever_it_waits_for():
    port = free_port()
    ranks = [CONTEXT.Process(target=leave_the_other, args=(rank, port)) for rank in (0, 1)]
    for process in ranks:
        process.start()
    for process in ranks:
        process.join(60)
    assert [process.exitcode for process in ranks] == [5, PEER_LOST]


def leave_the_other(rank: int, port: int) -> None:
    become_rank(rank, 2, port)
    with distributed.process_group(), StopRequest() as stop, stop.at_once():
        dist.barrier()
        if rank == 0:
            os._exit(5)
        time.sleep(600)


def end_an_evaluation(rank: int, signalled: int) -> None:
    """The signal finds rank 0 behind what is ended at once, and rank 1 in it."""
    started = time.monotonic()
    with distributed.process_group(), StopRequest(grace_s=90) as stop:
        with stop.at_once():
            dist.barrier()
            if rank == 1:
                ask(rank, signalled)
                wait_for(stop)
        if rank == 0:
            ask(rank, signalled)
            wait_for(stop)
        dist.barrier()
    assert time.monotonic() - started < 60


def ask(rank: int, signalled: int) -> None:
    if rank == signalled:
        os.kill(os.getpid(), signal.SIGTERM)


def wait_for(stop: StopRequest) -> None:
    """Until the signal has come, and the watching thread has looked at it."""
    while stop.signum is None:
        time.sleep(POLL_S)
    time.sleep(2 * POLL_S)
