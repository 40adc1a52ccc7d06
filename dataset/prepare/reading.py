"""Official files, each read by a process of its own."""

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
    """Yields ``read(name, file)`` for each file, in their order.

    Args:
        read: a function at the top of a module, or a :class:`functools.partial` of one, since processes call it.
        files: official files by name.
        workers: processes, each of which reads a file at a time.
    """

    def died(named: tuple[str, RawFile]) -> R:
        raise WorkerDiedError(
            f"{named[1]}: a process that read it was killed; is there enough memory? give fewer --workers"
        )

    with _collector_off(), closing(in_order(functools.partial(_read, read), files.items(), workers, died)) as results:
        yield from progress_bar(results, total=len(files), desc="reading", unit="file")


def _read(read: Callable[[str, RawFile], R], named: tuple[str, RawFile]) -> R:
    """Read a file; runs in a worker process."""
    with _collector_off():
        return read(*named)


@contextmanager
def _collector_off() -> Iterator[None]:
    """No garbage collection in the block: it would go again and again through the millions of values of a file, all in use."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
