"""Streams and events of the pretend device, with the names used in torch.cuda.

The result of an operation is computed at once, but a stream tracks its progress: each enqueued operation has an index, and
another stream may use the result only after it has waited for that index. Copies to the host arrive when the host waits for them.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

DEVICE_TYPE = int(torch._C._autograd.DeviceType.PrivateUse1)


class LastWrite:
    """The operation that last wrote a tensor's memory: the stream of the operation, and its index in that stream. A tensor and
    its views share one object.

    ``kept_for`` are the other streams that may still read the memory after the tensor is freed (``Tensor.record_stream``).
    """

    def __init__(self, stream: Stream, number: int):
        self.stream, self.number = stream, number
        self.kept_for: set[int] = set()


class Stream(torch.Stream):
    """A queue of operations."""

    _ids = itertools.count()

    def __new__(cls, device: Any = None) -> Stream:
        return super().__new__(cls, stream_id=next(cls._ids), device_index=0, device_type=DEVICE_TYPE)

    def __init__(self, device: Any = None):
        self.enqueued = self.finished = 0
        self.seen: dict[Stream, int] = {}
        """How far each other stream was when this stream waited for it, as the index of an operation."""
        self.arriving: list[tuple[int, Tensor, Tensor]] = []
        """Copies to the host: index, host memory, and its future content."""

    def __hash__(self) -> int:
        return self.stream_id

    def __deepcopy__(self, memo: dict[int, Any]) -> Stream:
        return self  # for a copied tensor

    def __eq__(self, other: object) -> bool:
        return self is other

    def enqueue(self) -> int:
        """Enqueues an operation and returns its index."""
        self.enqueued += 1
        return self.enqueued

    def require(self, last_write: LastWrite, operation: Any) -> None:
        """Raises a :class:`RuntimeError` unless an operation in this stream may use memory that ``last_write`` wrote."""
        if last_write.stream is self:
            return
        if self.seen.get(last_write.stream, 0) < last_write.number:
            raise RuntimeError(f"{operation} uses a tensor that another stream writes, without waiting for it")
        if self.stream_id not in last_write.kept_for:
            raise RuntimeError(
                f"{operation} uses a tensor of another stream without record_stream: its memory may be reused"
            )

    def copy_to_host(self, host: Tensor, values: Tensor) -> None:
        """Enqueues a copy that does not wait. Until it arrives, the content of the host's memory is undefined."""
        self.arriving.append((self.enqueue(), host, values.clone()))
        host.fill_(torch.nan if host.is_floating_point() else -1)

    def wait_stream(self, other: Stream) -> None:
        """Later operations of this stream run after the present operations of ``other``."""
        for stream, number in {**other.seen, other: other.enqueued}.items():
            if stream is not self:
                self.seen[stream] = max(number, self.seen.get(stream, 0))

    def synchronize(self) -> None:
        """The host waits for all enqueued operations."""
        finish({**self.seen, self: self.enqueued})

    def __enter__(self) -> Stream:
        self._before = current_stream()
        _thread.stream = self
        return self

    def __exit__(self, *error: object) -> None:
        _thread.stream = self._before


class Event:
    """A mark in a stream."""

    def __init__(self, enable_timing: bool = False):
        self.enable_timing = enable_timing
        self.after: dict[Stream, int] = {}
        self.recorded_s = 0.0

    def record(self, stream: Stream | None = None) -> None:
        """Puts the mark after the operations that are enqueued so far."""
        stream = stream or current_stream()
        self.after, self.recorded_s = {**stream.seen, stream: stream.enqueued}, time.perf_counter()

    def query(self) -> bool:
        """Whether the device has reached the mark, as far as the host knows from its last wait."""
        return all(stream.finished >= number for stream, number in self.after.items())

    def synchronize(self) -> None:
        """The host waits until the device has reached the mark."""
        finish(self.after)

    def elapsed_time(self, later: Event) -> float:
        """Milliseconds until ``later``."""
        assert self.enable_timing and later.enable_timing and self.query() and later.query()
        return (later.recorded_s - self.recorded_s) * 1000


def finish(progress: dict[Stream, int]) -> None:
    """Records that the device has reached the given operation (by index) of each stream, and delivers the copies that are due."""
    for stream, number in progress.items():
        stream.finished = max(stream.finished, number)
        due = [copy for copy in stream.arriving if copy[0] <= number]
        stream.arriving = [copy for copy in stream.arriving if copy[0] > number]
        for _, host, values in due:
            host.copy_(values)


_thread = threading.local()
_default = Stream()


def current_stream(device: Any = None) -> Stream:
    """The stream of this thread's operations."""
    return getattr(_thread, "stream", _default)


@contextmanager
def stream(chosen: Stream) -> Iterator[None]:
    """Enqueues this thread's operations in ``chosen``."""
    with chosen:
        yield


def synchronize(device: Any = None) -> None:
    """The host waits for the current stream and all operations that it has waited for."""
    current_stream().synchronize()
