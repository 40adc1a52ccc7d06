"""Work on many files by processes that may die: a damaged file can crash a decoding library."""

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

J = TypeVar("J")
R = TypeVar("R")

AHEAD = 4
"""Jobs per process that run, or are done and wait for their turn. More would take more memory; fewer would let the processes idle
behind a long job."""


def in_order(
    work: Callable[[J], R], jobs: Iterable[J], workers: int, died: Callable[[J], R]
) -> Generator[R, None, None]:
    """Yields ``work(job)`` in the order of ``jobs``, which are taken as they are needed, by ``workers`` processes.

    If a process dies, the running jobs are done again, each in a process of its own; the result of a job that kills that process
    too is ``died(job)``. An exception of ``work`` is raised here.
    """
    left = iter(jobs)
    waiting: deque[tuple[J, Future[R]]] = deque()
    pool = _pool(workers)
    try:
        while True:
            for job in itertools.islice(left, AHEAD * workers - len(waiting)):
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
                result = _alone(work, job, died)
            yield result
    finally:
        pool.shutdown(cancel_futures=True)


def _alone(work: Callable[[J], R], job: J, died: Callable[[J], R]) -> R:
    with _pool(1) as pool:
        try:
            return pool.submit(work, job).result()
        except BrokenProcessPool:
            return died(job)


def _pool(workers: int) -> ProcessPoolExecutor:
    gc.freeze()  # else the collector goes through all that is imported again and again, here and in the processes
    return ProcessPoolExecutor(workers, initializer=_begin)


def _begin() -> None:
    """Set up a new process: one thread, no traceback at Ctrl-C, and an end when its parent is killed."""
    torch.set_num_threads(1)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
