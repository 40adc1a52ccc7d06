"""Reads official files, each in a separate process."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Iterator, Mapping
from contextlib import closing, contextmanager
from typing import TypeVar

from dataset.prepare.building import WorkerDiedError
from dataset.prepare.processes import in_order
from dataset.prepare.raw_folder import RawFile
from utils.progress import progress_bar

R = TypeVar("R")


def read_files(read: Callable[[str, RawFile], R], files: Mapping[str, RawFile], workers: int) -> Iterator[R]:
    """Yields ``read(name, file)`` for each file, in order.

    Args:
        read: a top-level function, or a :class:`functools.partial` of one, since worker processes call it.
        files: official files by name.
        workers: number of processes, each of which reads one file at a time.
    """

    def died(named: tuple[str, RawFile]) -> R:
        raise WorkerDiedError(
            f"{named[1]}: a process that read it was killed, perhaps because memory ran out; lower --workers"
        )

    with _collector_off(), closing(in_order(functools.partial(_read, read), files.items(), workers, died)) as results:
        yield from progress_bar(results, total=len(files), desc="reading", unit="file")


def _read(read: Callable[[str, RawFile], R], named: tuple[str, RawFile]) -> R:
    """Reads a file; runs in a worker process."""
    with _collector_off():
        return read(*named)


@contextmanager
def _collector_off() -> Iterator[None]:
    """Disables garbage collection inside the block, because it would repeatedly scan a file's millions of values, all of which
    are in use."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
