"""Runs worker processes that make batches. Workers that hang or are killed are replaced."""

from __future__ import annotations

import contextlib
import errno
import logging
import multiprocessing
import multiprocessing.queues
import os
import shutil
import signal
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterator, Sequence
from contextvars import ContextVar
from copy import copy
from functools import partial
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from multiprocessing.util import Finalize
from types import FrameType
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from dataset.config import WORKER_TIMEOUT_S
from utils import accelerator, distributed, open_files
from utils.errors import UserError
from utils.processes import die_with_parent, ignore_stop_signals, signal_name

T = TypeVar("T")

RESTARTS = 3
"""Maximum number of restarts of the workers for the same batch, after a worker hung or was killed."""


reading: ContextVar[Callable[[str], object]] = ContextVar("reading")
"""In a worker, this function is called with the location of each record before the record is read. The location is reported if
the worker hangs or is killed."""

_NO_MEMORY = 88
"""Exit status of a worker that could not send a batch because shared memory is full."""

_LOCATION_BYTES = 480
_END = object()

logger = logging.getLogger(__name__)


def in_workers(
    make: Callable[[int], T], numbers: Sequence[int], workers: int, timeout_s: float = WORKER_TIMEOUT_S
) -> Iterator[T]:
    """Yields ``make(number)`` for each number, in order, computed by worker processes.

    The result of ``make`` must not depend on the process. If a worker hangs or is killed, all workers are replaced, up to
    :data:`RESTARTS` times for the same batch.

    Args:
        make: makes a batch.
        numbers: arguments of ``make``.
        workers: number of worker processes; with 0, ``make`` is called in this process.
        timeout_s: time limit for a batch, in seconds, after which the worker is assumed to hang.

    Raises:
        UserError: if ``make`` raises it in any process, or if workers repeatedly hang or are killed at the same batch.
    """
    done = faults = at_last_fault = 0
    while True:
        pool = _Pool(make, numbers[done:], workers, timeout_s)
        batches = pool.batches()
        try:
            for batch in batches:
                done += 1
                yield batch
            return
        except _LostWorkerError as lost:
            faults = faults + 1 if done == at_last_fault else 1
            at_last_fault = done
            if faults > RESTARTS:
                raise UserError(
                    f"{lost}; workers were restarted {RESTARTS} times without success",
                    remedy="if memory is short, lower data.workers",
                ) from None
            logger.warning("%s; the workers are restarted (%d of at most %d times)", lost, faults, RESTARTS)
        finally:
            batches.close()
            pool.end()


class _LostWorkerError(Exception):
    """Raised if a worker hangs or was killed. The message contains the worker's index and the location of the record that it was
    reading."""


class _Pool:
    """A pool of worker processes that make the batches for a list of ``numbers``."""

    def __init__(self, make: Callable[[int], Any], numbers: Sequence[int], workers: int, timeout_s: float):
        self.workers, self.timeout_s = min(workers, len(numbers)), timeout_s
        self.children: list[BaseProcess] = []
        self.made = 0
        self.waiting_since: float | None = None
        self.late: int | None = None
        """The worker that was killed because its batch was late."""
        self.handler: Any = None
        self.kill_children: Finalize | None = None
        self.ended = threading.Event()
        # A row for each worker: its process id in the first 8 bytes, then the location of the record that it is reading.
        self.board = torch.zeros(max(1, self.workers), 8 + _LOCATION_BYTES, dtype=torch.uint8)
        if self.workers:
            self.board.share_memory_()
        self.loader: DataLoader[Any] = DataLoader(
            _Numbered(make),
            batch_size=None,
            sampler=numbers,
            num_workers=self.workers,
            worker_init_fn=partial(_begin, self.board),
            multiprocessing_context=_listing(self.children) if self.workers else None,
            pin_memory=accelerator.best_device().type != "cpu",
            # A separate generator. The loader would otherwise draw from torch's global generator, which dropout uses.
            generator=torch.Generator(),
        )

    def batches(self) -> Generator[Any, None, None]:
        """Yields a batch for each number.

        Raises:
            _LostWorkerError: if a worker hangs or is killed.
            UserError: if ``make`` raises it.
        """
        try:
            # Torch already sends the first numbers to the workers here, and raises if a worker is lost while it makes one of
            # these batches.
            iterator = iter(self.loader)
            if self.children:
                self._watch_children()
            while True:
                self.waiting_since = time.monotonic()
                self._raise_if_lost()
                batch = next(iterator, _END)
                self.waiting_since = None
                if batch is _END:
                    return
                if isinstance(batch, _Failure):
                    raise UserError(batch.message)
                yield batch
                self.made += 1
        except (RuntimeError, OSError, EOFError) as error:
            if (failure := open_files.limit_error(error) or _memory_is_full(error)) is not None:
                raise failure from None
            # Torch may notice a lost worker before we do, because the connection breaks before the process has ended.
            ends = time.monotonic() + 1.0
            while self.children and time.monotonic() < ends:
                self._raise_if_lost()
                time.sleep(0.05)
            raise
        finally:
            self.waiting_since = None

    def _watch_children(self) -> None:
        # Also called when this process ends. Otherwise, if an error ended the loop, Python would wait for the workers.
        self.kill_children = Finalize(None, _kill, args=(self.children,), exitpriority=0)
        threading.Thread(target=self._kill_if_late, daemon=True, name="watch workers").start()
        if threading.current_thread() is threading.main_thread():
            # Torch's signal handler would raise at any point of the main thread, for example in the middle of a step.
            self.handler = signal.signal(signal.SIGCHLD, self._child_ended)

    def _child_ended(self, _: int, __: FrameType | None) -> None:
        """Handles the end of a child process: if it was a worker and we are waiting for a batch, stops waiting."""
        if self.waiting_since is not None:
            self._raise_if_lost()

    def _kill_if_late(self) -> None:
        """Kills the worker whose batch is late. Torch's own timeout has no effect if a worker hangs while it sends a batch."""
        while not self.ended.wait(min(1.0, self.timeout_s / 4)):
            since = self.waiting_since
            if since is not None and time.monotonic() - since > self.timeout_s:
                self.late = self._awaited
                process = self._process(self._awaited)
                for child in self.children:
                    if child.pid == process or not process:
                        child.kill()
                return

    @property
    def _awaited(self) -> int:
        """The worker that makes the next batch. The workers take turns."""
        return self.made % self.workers

    def end(self) -> None:
        """Kills the remaining workers instead of waiting for them, because some may hang."""
        self.ended.set()
        _kill(self.children)
        if self.kill_children is not None:
            self.kill_children.cancel()
        if self.handler is not None:
            signal.signal(signal.SIGCHLD, self.handler)

    def _raise_if_lost(self) -> None:
        """Raises :class:`_LostWorkerError` if a worker has hung or has ended unexpectedly."""
        rank = distributed.rank()
        if self.late is not None:
            raise _LostWorkerError(
                f"worker {self.late} of rank {rank} has not made a batch for {self.timeout_s:g} s (data.worker_timeout_s); it "
                f"was reading {self._location(self.late)}; check that its disk is available"
            )
        for child in self.children:
            if child.exitcode in (_NO_MEMORY, -signal.SIGBUS):
                raise _no_memory()
            if child.exitcode:
                worker = next((number for number in range(self.workers) if self._process(number) == child.pid), 0)
                how = f"was killed by {signal_name(-child.exitcode)}" if child.exitcode < 0 else "ended on its own"
                raise _LostWorkerError(
                    f"worker {worker} of rank {rank} {how} while it read {self._location(worker)}; if the system killed it "
                    "because memory was full, lower data.workers"
                )

    def _process(self, worker: int) -> int:
        return int(self.board[worker, :8].view(torch.int64).item())

    def _location(self, worker: int) -> str:
        text = bytes(self.board[worker, 8:].tolist()).rstrip(b"\0")
        return text.decode("utf-8", "replace") or "its first record"


def _kill(children: Sequence[BaseProcess]) -> None:
    for child in children:
        if child.pid is not None:  # was started
            child.kill()
            child.join()


def _listing(children: list[BaseProcess]) -> BaseContext:
    """Returns torch's default context for starting processes, changed so that it appends all processes to ``children``.

    ``multiprocessing.active_children()`` is not enough, because it omits a process that ends immediately, and its exit status.
    """
    context = copy(multiprocessing.get_context())

    def process(*args: Any, **options: Any) -> BaseProcess:
        children.append(make(*args, **options))
        return children[-1]

    make = context.Process
    vars(context)["Process"] = process
    return context


def _begin(board: Tensor, worker: int) -> None:
    """Sets up a worker process."""
    die_with_parent()
    ignore_stop_signals()
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_not_handed_over)  # type: ignore[attr-defined]
    torch.set_num_threads(1)
    row = board[worker].numpy()
    row[:8].view(np.int64)[0] = os.getpid()
    reading.set(partial(_note, row[8:]))


def _not_handed_over(error: Exception, batch: object) -> None:
    """Ends the worker. Called if sending a batch fails, in the thread that sends it; Python would only print a traceback and lose
    the batch."""
    if _memory_is_full(error) is None:
        traceback.print_exception(error)
        os._exit(1)
    os._exit(_NO_MEMORY)


def _memory_is_full(error: Exception) -> UserError | None:
    """Returns a one-line error if ``error`` means that shared memory is full, otherwise None."""
    text = str(error)
    return _no_memory() if "/torch_" in text and os.strerror(errno.ENOSPC) in text else None


def _no_memory() -> UserError:
    size = ""
    with contextlib.suppress(OSError):
        room = shutil.disk_usage("/dev/shm")
        size = f" ({room.free / 1e6:,.0f} of {room.total / 1e6:,.0f} MB free now)"
    return UserError(
        f"shared memory, through which workers send batches, is full: /dev/shm{size}",
        remedy="lower data.workers or the batch size, or make it larger (docker run --shm-size=16g, in Kubernetes "
        "an emptyDir with medium: Memory at /dev/shm)",
    )


def _note(row: np.ndarray, location: str) -> None:
    text = location.encode("utf-8", "replace")[-_LOCATION_BYTES:]
    row[: len(text)] = np.frombuffer(text, np.uint8)
    row[len(text) :] = 0


class _Failure:
    """A UserError to be sent from a worker. Torch would wrap the exception itself in a traceback."""

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
        except (RuntimeError, OSError) as error:
            if (failure := open_files.limit_error(error) or _memory_is_full(error)) is None:
                raise
            return _Failure(str(failure))
