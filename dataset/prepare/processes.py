"""Work on many files by processes of which one may die: what a decoding library does with a damaged file is its own affair."""

from __future__ import annotations

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
"""Jobs for each process that are under way, or done and waiting for their turn: what is held in memory, and how far the others
go on where one job takes long."""


def in_order(
    work: Callable[[J], R], jobs: Iterable[J], workers: int, died: Callable[[J], R]
) -> Generator[R, None, None]:
    """``work(job)`` of each job in their order, by ``workers`` processes; ``jobs`` are asked for as they are needed.

    Where a process dies, the jobs that were under way are done again, each in a process of its own; for one that kills that
    process too, the result is ``died(job)``. What ``work`` raises is raised here.
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
                made = future.result()
            except BrokenProcessPool:
                made = _alone(work, job, died)
            yield made
    finally:
        pool.shutdown(cancel_futures=True)


def _alone(work: Callable[[J], R], job: J, died: Callable[[J], R]) -> R:
    with _pool(1) as pool:
        try:
            return pool.submit(work, job).result()
        except BrokenProcessPool:
            return died(job)


def _pool(workers: int) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(workers, initializer=_begin)


def _begin() -> None:
    """In a new process: one thread, an end without a traceback at Ctrl-C, and none left over where its parent is killed."""
    torch.set_num_threads(1)
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
