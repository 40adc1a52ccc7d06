"""Video files: indexes the frames of a file, and decodes the requested frames.

The packets of a file contain the time of each frame, so the index is built without decoding. PyAV reads the packets for all
backends, so that the choice of frames does not depend on the backend.
"""

from __future__ import annotations

import bisect
import importlib
import itertools
import threading
import time
from collections.abc import Callable, Generator, Iterator, Sequence, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from dataset.broken import MediaError
from dataset.config import Backend
from utils.errors import UserError

T = TypeVar("T")


_MIN_COMPLETE = 0.95
"""A file counts as truncated if its packets cover less than this fraction of the length in its header. Headers are not exact."""
_CAN_SKIP_PACKETS = ("h264", "hevc", "mpeg4", "mpeg2video")
"""FFmpeg decoders that can skip single packets. The AV1 decoder would skip all following frames too."""


_MAX_HANGING = 8
_HANGING: list[threading.Thread] = []
"""Threads of this process that have exceeded their time limit."""


class Clock:
    """The time limit for reading one video."""

    def __init__(self, limit_s: float):
        self.limit_s = limit_s
        self.ends = time.monotonic() + limit_s

    def check(self) -> None:
        """Raises :class:`MediaError` if the time limit has passed."""
        if time.monotonic() > self.ends:
            raise self.late()

    def late(self) -> MediaError:
        return MediaError("unreadable video", f"not read within time_limit_s = {self.limit_s:g} s")


def run_with_limit(clock: Clock, work: Callable[[], T]) -> T:
    """Runs ``work()`` in a thread, and abandons the thread at the time limit, even if a library call does not return.

    An abandoned thread ends at its next check of the clock. A thread in a call that never returns cannot be ended. If there are
    :data:`_MAX_HANGING` such threads, no more are started.
    """
    _HANGING[:] = [thread for thread in _HANGING if thread.is_alive()]
    if len(_HANGING) >= _MAX_HANGING:
        message = f"{_MAX_HANGING} previous videos are still stuck in the decoder; try another backend"
        raise MediaError("unreadable video", message)
    done: list[T] = []
    failed: list[BaseException] = []

    def run() -> None:
        try:
            done.append(work())
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=run, daemon=True, name="video")
    thread.start()
    thread.join(max(0.0, clock.ends - time.monotonic()))
    if failed:
        raise failed[0]
    if not done:
        _HANGING.append(thread)
        raise clock.late()
    return done[0]


@dataclass(frozen=True)
class FileIndex:
    """Index of the frames of a file, in presentation order.

    Attributes:
        times: times of all frames, in ticks of the stream.
        keys: times of the key frames, in ticks of the stream.
        tick_s: length of a tick in seconds.
        timed: whether the packets have presentation times.
    """

    times: list[int]
    keys: list[int]
    tick_s: float
    timed: bool

    def frames_every(self, seconds: float) -> list[int]:
        """Returns the frames that are shown 0, ``seconds``, 2 ``seconds``, … after the first frame, up to the last frame."""
        shown = [(time - self.times[0]) * self.tick_s for time in self.times]
        slack = self.tick_s / 2
        return [
            bisect.bisect_right(shown, number * seconds + slack) - 1
            for number in range(int((shown[-1] + slack) / seconds) + 1)
        ]


def index_of(path: Path, max_pixels: int, clock: Clock) -> FileIndex:
    """Builds the index of a file from its packets, without decoding.

    Raises:
        MediaError: if the file is not a video, or is truncated.
    """
    times, keys, timed = [], [], True
    with _reading(path), _open(path, clock) as container:
        stream = _video_stream_of(container)
        if stream is None:
            raise MediaError("unreadable video", f"{path} has no video stream, only sound or data")
        if stream.width * stream.height > max_pixels:
            size = f"{path}: {stream.width} x {stream.height} pixels, more than max_pixels = {max_pixels}"
            raise MediaError("image too large", size)
        # Exact fractions would take as long as reading the packets.
        ticks = [float(other.time_base or 0) for other in container.streams]
        tick_s, reached_s = float(stream.time_base or 1), 0.0
        # Packets of all streams are read, because the length in the header is often the length of the longest stream.
        for packet in container.demux():
            clock.check()
            stamp = packet.pts if packet.pts is not None else packet.dts
            if packet.size == 0 or stamp is None:
                continue
            number = packet.stream_index
            reached_s = max(reached_s, (stamp + (packet.duration or 0)) * ticks[number])
            if number != stream.index or packet.is_discard:
                continue
            timed = timed and packet.pts is not None
            times.append(stamp)
            if packet.is_keyframe:
                keys.append(stamp)
        header_s = _header_length_s(container, stream)
    if not times:
        raise MediaError("unreadable video", f"{path} has no frames")
    times.sort()
    # The file does not store the duration of the last frame. We assume the maximum duration of the other frames.
    longest = max((later - earlier for earlier, later in itertools.pairwise(times)), default=0)
    reached_s = max(reached_s, (times[-1] + longest) * tick_s)
    if reached_s < _MIN_COMPLETE * header_s:
        length = f"it has {reached_s:.1f} of the {header_s:.1f} s in its header"
        raise MediaError("unreadable video", f"{path} is truncated: {length}")
    return FileIndex(times, sorted(keys), tick_s, timed)


def _video_stream_of(container: Any) -> Any:
    """Returns the video stream, or None if the file has only sound or data. The cover picture of a song does not count as a video
    stream."""
    cover = import_backend("av").stream.Disposition.attached_pic
    return next((stream for stream in container.streams.video if not stream.disposition & cover), None)


def _header_length_s(container: Any, stream: Any) -> float:
    """Returns the length of a file according to its header, in seconds, or 0 if the header has no length."""
    if container.format.name == "avi":
        # For a truncated file, the library reports the truncated length. The header contains the number of frames, one tick each.
        return float(stream.frames * stream.time_base)
    return container.duration / 1_000_000 if container.duration else 0.0


def decoded(
    path: Path, index: FileIndex, wanted: Sequence[int], backend: Backend, clock: Clock
) -> Generator[Tensor, None, None]:
    """Yields the ``wanted`` frames of a file, each as (3, H, W) uint8 RGB. Each frame is decoded on demand.

    Raises:
        MediaError: "unreadable video" if a frame cannot be decoded.

    Args:
        wanted: indices of frames, ascending and without duplicates.
    """
    frames = _BACKENDS[backend](path, index, wanted, clock)
    try:
        for _ in wanted:
            with _reading(path):
                frame = next(frames)
            yield frame
    finally:
        frames.close()


def _av_frames(path: Path, index: FileIndex, wanted: Sequence[int], clock: Clock) -> Generator[Tensor, None, None]:
    with _open(path, clock) as container:
        reader = _AvReader(container, index, wanted, clock)
        for number in wanted:
            yield reader.frame(number)


class _AvReader:
    """Decodes forward to a requested frame, from the current position or from the last key frame before it, whichever is later.

    Frames that are neither requested nor referenced by other frames are skipped.
    """

    def __init__(self, container: Any, index: FileIndex, wanted: Sequence[int], clock: Clock):
        self.container, self.index, self.clock = container, index, clock
        self.stream = _video_stream_of(container)
        self.stream.codec_context.thread_count = 1
        leaves_out = index.timed and self.stream.codec_context.name in _CAN_SKIP_PACKETS
        self.needed = {index.times[number] for number in wanted} if leaves_out else None
        """Times of the requested frames; if None, all frames are decoded."""
        self.decoded = _decode(container, self.stream, self.needed, clock)
        self.passed = 0
        """Number of frames decoded since the start; used if frames have no times."""
        self.reached = index.times[0] - 1

    def frame(self, number: int) -> Tensor:
        if not self.index.timed:
            return self._counted(number)
        wanted = self.index.times[number]
        index = bisect.bisect_right(self.index.keys, wanted) - 1
        if index > 0 and self.index.keys[index] > self.reached:
            self._jump(self.index.keys[index])
        pixels = self._run_to(wanted)
        if pixels is None:
            # The container's table of key frames can be wrong. Decode all frames from the start, so that none is missed.
            self.needed = None
            self._jump(self.index.times[0])
            pixels = self._run_to(wanted)
        if pixels is None:
            raise MediaError("unreadable video", f"frame {number} cannot be decoded")
        return pixels

    def _jump(self, stamp: int) -> None:
        self.container.seek(stamp, stream=self.stream, backward=True)
        self.decoded = _decode(self.container, self.stream, self.needed, self.clock)

    def _run_to(self, wanted: int) -> Tensor | None:
        for frame in self.decoded:
            self.reached = frame.pts if frame.pts is not None else self.reached
            if frame.pts == wanted:
                return _rgb(frame)
            if frame.pts is not None and frame.pts > wanted:
                return None
        return None

    def _counted(self, number: int) -> Tensor:
        for frame in self.decoded:
            self.passed += 1
            if self.passed == number + 1:
                return _rgb(frame)
        raise MediaError("unreadable video", f"frame {number} cannot be decoded")


def _decode(container: Any, stream: Any, needed: Set[int] | None, clock: Clock) -> Iterator[Any]:
    """Yields the frames from the container's position on. Frames whose time is not in ``needed`` are skipped if no other frame
    references them.

    This is not a method, because a generator with a reference to its reader would keep the file open until garbage collection.
    """
    for packet in container.demux(stream):
        clock.check()
        may_skip = needed is not None and packet.pts is not None and packet.pts not in needed
        stream.codec_context.skip_frame = "NONREF" if may_skip else "DEFAULT"
        yield from packet.decode()


def _rgb(frame: Any) -> Tensor:
    return torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)


def _decord_frames(path: Path, index: FileIndex, wanted: Sequence[int], clock: Clock) -> Generator[Tensor, None, None]:
    reader = import_backend("decord").VideoReader(str(path), num_threads=1)
    _check_count(len(reader), index, "decord")
    for number in wanted:
        clock.check()
        yield torch.from_numpy(reader.get_batch([number]).asnumpy()[0]).permute(2, 0, 1)


def _check_count(count: int, index: FileIndex, backend: str) -> None:
    if count != len(index.times):
        message = (
            f"{backend} finds {count} frames, but the file has {len(index.times)}; set backend: av, which can read it"
        )
        raise MediaError("unreadable video", message)


_BACKENDS: dict[Backend, Callable[[Path, FileIndex, Sequence[int], Clock], Generator[Tensor, None, None]]] = {
    "av": _av_frames,
    "decord": _decord_frames,
}


def import_backend(backend: Backend) -> Any:
    """Imports the module of a backend. It is imported on first use, because each backend brings its own FFmpeg."""
    return importlib.import_module(backend)


def why_not_loaded(backend: Backend) -> str | None:
    """Returns the error message of the backend's import, or None if it can be imported."""
    try:
        import_backend("av")  # indexes the packets for all backends
        import_backend(backend)
    # decord raises RuntimeError or OSError if its own library is missing or cannot be loaded.
    except (ImportError, OSError, RuntimeError) as error:
        return str(error).strip().split("\n")[0][:200]
    return None


def _open(path: Path, clock: Clock) -> Any:
    return import_backend("av").open(str(path), timeout=max(0.1, clock.ends - time.monotonic()))


@contextmanager
def _reading(path: Path) -> Iterator[None]:
    """Converts the various exceptions of the decoding libraries to a broken record."""
    try:
        yield
    except (MediaError, UserError):
        raise
    except ImportError as error:
        raise UserError(f"{path} is a video file, and {error.name} cannot be loaded", remedy="pip install it") from None
    except Exception as error:
        # After the reason, PyAV's errors repeat the path and FFmpeg's log.
        reason = getattr(error, "strerror", None) or str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise MediaError("unreadable video", f"{path}: {reason}") from None
