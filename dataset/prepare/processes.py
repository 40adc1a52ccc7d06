"""Runs jobs in worker processes that may die, because a damaged file can crash a decoding library."""

from __future__ import annotations

import gc
import itertools
import multiprocessing
import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import TypeVar

import torch

from utils.errors import UserError

J = TypeVar("J")
R = TypeVar("R")

AHEAD = 4
"""Maximum number of running and finished jobs per process whose results have not yet been yielded. A higher value needs more
memory; with a lower value, processes are idle while a long job runs."""


class WorkerDiedError(UserError):
    """Raised if a process was killed while it worked on the file ``where``. The data set files are not at fault, so finished
    shards are kept, and the next run resumes."""

    def __init__(self, where: object):
        what = "the process that worked on it was killed, perhaps because memory ran out"
        super().__init__(what, where=where, remedy="lower --workers")


def in_order(
    work: Callable[[J], R], jobs: Iterable[J], workers: int, died: Callable[[J], R]
) -> Generator[R, None, None]:
    """Runs jobs in ``workers`` processes and yields ``work(job)`` in the order of ``jobs``, which are fetched as needed.

    If a process dies, the running jobs are retried, each in a separate process. If a job kills its process again, the job's
    result is ``died(job)``. Exceptions in ``work`` are raised in this process.
    """
    remaining = iter(jobs)
    waiting: deque[tuple[J, Future[R]]] = deque()
    pool = _pool(workers)
    try:
        while True:
            for job in itertools.islice(remaining, AHEAD * workers - len(waiting)):
                try:
                    future = pool.submit(work, job)
                except BrokenProcessPool:
                    pool.shutdown()
                    pool = _pool(workers)
                    future = pool.submit(work, job)
                waiting.append((job, future))
            if not waiting:
                return
            job, future = waiting.popleft()
            try:
                result = future.result()
            except BrokenProcessPool:
                result = _run_alone(work, job, died)
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def _run_alone(work: Callable[[J], R], job: J, died: Callable[[J], R]) -> R:
    with _pool(1) as pool:
        try:
            return pool.submit(work, job).result()
        except BrokenProcessPool:
            return died(job)


def _pool(workers: int) -> ProcessPoolExecutor:
    gc.freeze()  # so that garbage collection does not scan the imported modules, here and in the processes
    return ProcessPoolExecutor(workers, initializer=_set_up_worker)


def _set_up_worker() -> None:
    """Sets up a worker process: it has one thread, prints no traceback on Ctrl-C, and exits if its parent is killed."""
    torch.set_num_threads(1)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_exit_with_parent, daemon=True).start()


def _exit_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
