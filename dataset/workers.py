"""Worker processes that make batches, and what happens when one of them hangs or is killed."""

from __future__ import annotations

import logging
import multiprocessing
import os
import re
from collections.abc import Callable, Generator, Iterator, Sequence
from contextvars import ContextVar
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from utils import distributed
from utils.errors import UserError
from utils.processes import die_with_parent, ignore_stop_signals, signal_name

T = TypeVar("T")

RESTARTS = 3
"""How often workers are started again in a run, after one has hung or was killed."""

TIMEOUT_S = 600.0
"""Time for one batch, unless a config says otherwise."""

reading: ContextVar[Callable[[str], object]] = ContextVar("reading")
"""In a worker: called with the place of each record before it is read, for the message if the worker does not come back."""

_PLACE_BYTES = 480

logger = logging.getLogger(__name__)


def in_workers(
    make: Callable[[int], T], numbers: Sequence[int], workers: int, timeout_s: float = TIMEOUT_S
) -> Iterator[T]:
    """``make(number)`` for each number in order, made by ``workers`` processes (0: by this one).

    As ``make`` gives the same for a number whoever calls it, workers of which one hangs or is killed are replaced, up to
    :data:`RESTARTS` times.

    Args:
        make: of the batches.
        numbers: that it is called with.
        workers: processes.
        timeout_s: seconds after which a worker that makes one batch is taken to hang.

    Raises:
        UserError: as ``make`` does, in whichever process; or if workers hang or are killed again and again.
    """
    done, faults = 0, 0
    while True:
        pool = _Pool(make, numbers[done:], workers, timeout_s)
        batches = pool.batches()
        try:
            for batch in batches:
                done += 1
                yield batch
            return
        except _LostWorkerError as lost:
            faults += 1
            if faults > RESTARTS:
                raise UserError(f"{lost}; workers were started again {RESTARTS} times in vain") from None
            logger.warning("%s; the workers are started again (%d of at most %d times)", lost, faults, RESTARTS)
        finally:
            batches.close()
            pool.end()


class _LostWorkerError(Exception):
    """A worker that hangs or was killed: which, and what it read."""


class _Pool:
    """Worker processes for some numbers."""

    def __init__(self, make: Callable[[int], Any], numbers: Sequence[int], workers: int, timeout_s: float):
        self.workers, self.timeout_s = min(workers, len(numbers)), timeout_s
        self.children: list[BaseProcess] = []
        # A row a worker: its process in the first 8 bytes, the place of the record that it reads in the others.
        self.board = torch.zeros(max(1, self.workers), 8 + _PLACE_BYTES, dtype=torch.uint8)
        if self.workers:
            self.board.share_memory_()
        self.loader: DataLoader[Any] = DataLoader(
            _Numbered(make),
            batch_size=None,
            sampler=numbers,
            num_workers=self.workers,
            worker_init_fn=partial(_begin, self.board),
            timeout=timeout_s if self.workers else 0,
            pin_memory=torch.cuda.is_available(),
            # Without one of its own, the loader draws from torch's global generator, which belongs to the model's dropout.
            generator=torch.Generator(),
        )

    def batches(self) -> Generator[Any, None, None]:
        """A batch for each number.

        Raises:
            _LostWorkerError: if a worker does not come back.
            UserError: as ``make`` does.
        """
        made, others = 0, multiprocessing.active_children()
        try:
            iterator = iter(self.loader)
            self.children = [child for child in multiprocessing.active_children() if child not in others]
            for batch in iterator:
                if isinstance(batch, _Failure):
                    raise UserError(batch.message)
                yield batch
                made += 1
        except RuntimeError as error:
            lost = self._lost(str(error), made)
            if lost is None:
                raise
            raise _LostWorkerError(lost) from None

    def end(self) -> None:
        """Kill the workers that still live: one that hangs would be waited for."""
        for child in self.children:
            child.kill()
            child.join()

    def _lost(self, message: str, made: int) -> str | None:
        """The line for torch's message about a worker that does not come back; None: it is about something else."""
        rank = distributed.rank()
        if "timed out after" in message:
            worker = made % self.workers  # they take turns
            return (
                f"worker {worker} of rank {rank} has made no batch for {self.timeout_s:g} s (data.worker_timeout_s); it reads "
                f"{self._place(worker)}: is the disk there that holds it?"
            )
        killed = re.search(r"DataLoader worker \(pid\(?s?\)? ?([\d, ]+)\)", message)
        if killed is None:
            return None
        process = int(killed[1].split(",")[0])
        worker = next((number for number in range(self.workers) if self._process(number) == process), 0)
        code = next((child.exitcode for child in self.children if child.pid == process), None)
        ended = f"was ended by {signal_name(-code)}" if code is not None and code < 0 else "ended by itself"
        return (
            f"worker {worker} of rank {rank} {ended} while it read {self._place(worker)}; where memory is full, the "
            "system kills: lower data.workers"
        )

    def _process(self, worker: int) -> int:
        return int(self.board[worker, :8].view(torch.int64).item())

    def _place(self, worker: int) -> str:
        text = bytes(self.board[worker, 8:].tolist()).rstrip(b"\0")
        return text.decode("utf-8", "replace") or "its first record"


def _begin(board: Tensor, worker: int) -> None:
    """Set up a worker process."""
    die_with_parent()
    ignore_stop_signals()
    torch.set_num_threads(1)
    row = board[worker].numpy()
    row[:8].view(np.int64)[0] = os.getpid()
    reading.set(partial(_note, row[8:]))


def _note(row: np.ndarray, place: str) -> None:
    text = place.encode("utf-8", "replace")[-_PLACE_BYTES:]
    row[: len(text)] = np.frombuffer(text, np.uint8)
    row[len(text) :] = 0


class _Failure:
    """A user error on its way out of a worker: torch would wrap the exception itself in a traceback."""

    def __init__(self, message: str):
        self.message = message


class _Numbered(Dataset[Any]):
    def __init__(self, make: Callable[[int], Any]):
        self.make = make

    def __getitem__(self, number: int) -> Any:
        try:
            return self.make(number)
        except UserError as error:
            return _Failure(str(error))
