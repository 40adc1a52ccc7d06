"""Videos: the frames that are wanted, and only those, from files, lists of pictures and folders of pictures.

Of a file, the frames shown at each whole second are the candidates (section 3.2); of a list or a folder, all pictures are.
From the candidates some are taken: uniformly in evaluation, at random in training. Which frames these are does not depend on
the backend that decodes them. A rotation in a file's header is not applied, as with pictures.
"""

from __future__ import annotations

import bisect
import importlib
import itertools
import json
import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dataset.pictures import decode
from dataset.records import BrokenRecordError, ImageSource, picture_of
from utils.config import Config
from utils.errors import UserError

T = TypeVar("T")

Backend = Literal["av", "decord", "torchcodec"]
Choose = Callable[[int], Sequence[int]]
"""From the number of candidates to those that are taken, ascending; one may be taken several times."""

FRAME_SUFFIXES = (".jpg", ".jpeg", ".png", ".webp")
LIST_SUFFIX = ".json"

_WHOLE_ENOUGH = 0.95
"""A file with a smaller share of the length that its header says is truncated: headers are rough."""


class VideoReadingConfig(Config):
    """How the frames of videos are found and decoded."""

    backend: Backend = Field(
        "av", description="of files: av (PyAV); decord; torchcodec (its exact mode: the other picks wrong frames)"
    )
    frames_per_second: float = Field(1.0, gt=0, description="candidates in a second of a file")
    time_limit_s: float = Field(60.0, gt=0, description="a video that takes longer is a broken record")
    same_view: bool = Field(
        False, description="one crop, flip and colouring for all frames of a video (released: each frame has its own)"
    )


@dataclass(frozen=True)
class VideoSource:
    """A video that is read only when it is needed: a ``path`` (a video file, a JSON list of base64 pictures, or a folder of
    pictures), or the ``frames`` themselves."""

    place: str
    path: Path | None = None
    frames: tuple[ImageSource, ...] = ()


def video_source(value: Any, key: str, place: str, folder: Path) -> VideoSource:
    """The video that ``value`` of ``key`` names, a path from ``folder``, or holds, a list of base64 pictures or their paths.

    Raises:
        BrokenRecordError: "wrong type", "missing video", or what a picture is broken by.
    """
    if isinstance(value, list):
        if not value:
            raise BrokenRecordError("unreadable video", place, f"{key} is an empty list")
        return VideoSource(place, frames=tuple(picture_of(each, f"{key}[…]", place, folder) for each in value))
    if not isinstance(value, str):
        raise BrokenRecordError("wrong type", place, f"{key} is {value!r:.80}, neither a path nor a list of pictures")
    if not value:
        raise BrokenRecordError("missing video", place, f"{key} is empty")
    return VideoSource(place, path=folder / value)


def sample_frames(count: int, wanted: int, rng: np.random.Generator | None = None) -> list[int]:
    """``wanted`` of ``count`` frames, ascending (the released ``sample_frame_ids``).

    Where there are enough, one of each of ``wanted`` stretches of nearly equal length: the first in evaluation (without
    ``rng``), with the longer stretches first; a random one in training, with the stretches in random order of length. Where
    there are too few, all, and in turn again in evaluation, or random ones again in training.
    """
    if count <= wanted:
        again = range(count, wanted) if rng is None else rng.integers(count, size=wanted - count).tolist()
        return sorted([*range(count), *(each % count for each in again)])
    lengths = np.full(wanted, count // wanted)
    lengths[: count % wanted] += 1
    if rng is not None:
        rng.shuffle(lengths)
    starts = np.concatenate([[0], np.cumsum(lengths)[:-1]])
    return (starts if rng is None else starts + rng.integers(lengths)).tolist()


@dataclass(frozen=True)
class FrameSampler:
    """Videos to tensors (F, 3, S, S) with as many ``frames`` as the model has; a frame is reduced as soon as it is decoded."""

    frames: int
    config: VideoReadingConfig
    max_pixels: int

    def training(
        self, source: VideoSource, rng: np.random.Generator, look: Callable[[Tensor, np.random.Generator], Tensor]
    ) -> Tensor:
        """Random frames, each through ``look``, which takes a picture and its random numbers.

        Raises:
            BrokenRecordError: as :func:`read_frames`.
        """
        chosen, views = (np.random.default_rng(rng.integers(2**63)) for _ in range(2))
        seed = int(views.integers(2**63))

        def seen(frame: Tensor) -> Tensor:
            return look(frame, np.random.default_rng(seed) if self.config.same_view else views)

        return self._read(source, lambda count: sample_frames(count, self.frames, chosen), seen)

    def evaluation(self, source: VideoSource, look: Callable[[Tensor], Tensor]) -> Tensor:
        """Frames at even distances, each through ``look``.

        Raises:
            BrokenRecordError: as :func:`read_frames`.
        """
        return self._read(source, lambda count: sample_frames(count, self.frames), look)

    def _read(self, source: VideoSource, choose: Choose, look: Callable[[Tensor], Tensor]) -> Tensor:
        return torch.stack(read_frames(source, self.config, choose, look, self.max_pixels))


def read_frames(
    source: VideoSource, config: VideoReadingConfig, choose: Choose, look: Callable[[Tensor], Tensor], max_pixels: int
) -> list[Tensor]:
    """``look`` of each chosen frame, (3, H, W) uint8 RGB, in order. At no time is more than one frame there in full size.

    Raises:
        BrokenRecordError: "missing video"; "unreadable video" for a file that is empty, truncated, damaged, without pictures,
            or not read within the time limit; "image too large"; and what a picture of a list is broken by.
    """
    clock = _Clock(config.time_limit_s, source.place)
    return _within(clock, lambda: list(_frames(source, config, choose, look, max_pixels, clock)))


def check_backend(sources: Iterable[VideoSource], config: VideoReadingConfig, key: str) -> None:
    """Lists and folders of pictures need no decoder; ``sources`` are looked at only where it is missing.

    Raises:
        UserError: with the config ``key``, where a video file is among ``sources`` and the backend cannot be used here.
    """
    reason = _why_not_loaded(config.backend)
    if reason is None:
        return
    file = next((source for source in sources if source.path is not None and _is_video_file(source.path)), None)
    if file is not None:
        remedy = "av" if config.backend == "av" else f"av {config.backend}, or use backend: av"
        raise UserError(
            f"{key}.backend: {config.backend} cannot be loaded ({reason}), and {file.path} ({file.place}) is a video file; "
            f"pip install {remedy}"
        )


def check_held_out(sources: Sequence[VideoSource], config: VideoReadingConfig, max_pixels: int, key: str) -> None:
    """Look at the packets of every video file of a split, without decoding any, so that a broken one is told before training.

    Raises:
        UserError: with the config ``key``, for the first that is no whole video; or as :func:`check_backend`.
    """
    check_backend(sources, config, "data.video")
    for path, place in {source.path: source.place for source in sources if source.path is not None}.items():
        if not _is_video_file(path):
            continue
        try:
            _index(path, max_pixels, _Clock(config.time_limit_s, place))
        except BrokenRecordError as error:
            raise UserError(f"{key}: {error}; a held-out set has to be whole") from None


def _is_video_file(path: Path) -> bool:
    """Whether what lies at ``path`` is for a decoder: neither a list nor a folder of pictures."""
    return path.suffix.lower() != LIST_SUFFIX and not path.is_dir()


class _Clock:
    """The time limit of one video."""

    def __init__(self, limit_s: float, place: str):
        self.limit_s, self.place = limit_s, place
        self.ends = time.monotonic() + limit_s

    def check(self) -> None:
        """Raise where the time is up."""
        if time.monotonic() > self.ends:
            raise self.late()

    def late(self) -> BrokenRecordError:
        return BrokenRecordError("unreadable video", self.place, f"not read within time_limit_s = {self.limit_s:g} s")


def _within(clock: _Clock, work: Callable[[], T]) -> T:
    """``work()``, given up when the time is over, even in the middle of a library's call that does not return."""
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
        raise clock.late()
    return done[0]


def _frames(
    source: VideoSource,
    config: VideoReadingConfig,
    choose: Choose,
    look: Callable[[Tensor], Tensor],
    max_pixels: int,
    clock: _Clock,
) -> Iterator[Tensor]:
    pictures = _pictures(source)
    if pictures is not None:
        decoded, latest = None, -1
        for number in choose(len(pictures)):
            clock.check()
            if number != latest:
                decoded, latest = decode(pictures[number].load(), max_pixels, source.place), number
            assert decoded is not None
            yield look(decoded)
        return
    assert source.path is not None
    index = _index(source.path, max_pixels, clock)
    candidates = index.shown_each(1 / config.frames_per_second)
    chosen = [candidates[number] for number in choose(len(candidates))]
    found = _BACKENDS[config.backend](source.path, index, sorted(set(chosen)), clock)
    frame, at = None, -1
    for number in chosen:
        if number != at:
            with _reading(source.path, clock.place):
                frame, at = next(found), number
        assert frame is not None
        clock.check()
        yield look(frame)
    found.close()


def _pictures(source: VideoSource) -> Sequence[ImageSource] | None:
    """The pictures of a list or a folder; None for a video file.

    Raises:
        BrokenRecordError: there is nothing there, or no picture.
    """
    if source.path is None:
        return source.frames
    path = source.path
    try:
        is_folder, is_file = path.is_dir(), path.is_file()
    except OSError as error:  # a name that is longer than one may be
        raise BrokenRecordError("missing video", source.place, f"{str(path)[:200]}: {error.strerror}") from None
    if not (is_folder or is_file):
        raise BrokenRecordError("missing video", source.place, f"{str(path)[:200]} does not exist")
    if is_folder:
        names = sorted((each for each in path.iterdir() if each.suffix.lower() in FRAME_SUFFIXES), key=_by_number)
        found = [ImageSource(source.place, path=each) for each in names]
    elif path.suffix.lower() == LIST_SUFFIX:
        found = _listed_pictures(path, source.place)
    else:
        return None
    if not found:
        raise BrokenRecordError("unreadable video", source.place, f"{path} holds no pictures")
    return found


def _listed_pictures(path: Path, place: str) -> list[ImageSource]:
    try:
        values = json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise BrokenRecordError("unreadable video", place, f"{path} is no JSON list of pictures: {error}") from None
    if not isinstance(values, list):
        raise BrokenRecordError("unreadable video", place, f"{path} is no JSON list of pictures")
    return [picture_of(value, f"{path.name}[{number}]", place, path.parent) for number, value in enumerate(values)]


def _by_number(path: Path) -> list[Any]:
    """So that 10.jpg comes after 9.jpg."""
    parts = re.split(r"(\d+)", path.name)
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in parts if part]


@dataclass(frozen=True)
class _Index:
    """The frames of a file in the order in which they are shown: ``times`` of each, and of those that decoding can start at,
    ``keys``, in the stream's own ticks of ``tick_s`` seconds. ``timed``: the packets say when each frame is shown."""

    times: list[int]
    keys: list[int]
    tick_s: float
    timed: bool

    def shown_each(self, seconds: float) -> list[int]:
        """The frames shown at 0, ``seconds``, 2 ``seconds`` … after the first one, up to the last."""
        shown = [(time - self.times[0]) * self.tick_s for time in self.times]
        slack = self.tick_s / 2
        return [
            bisect.bisect_right(shown, number * seconds + slack) - 1
            for number in range(int((shown[-1] + slack) / seconds) + 1)
        ]


def _index(path: Path, max_pixels: int, clock: _Clock) -> _Index:
    """Reads the packets of a file without decoding any.

    Raises:
        BrokenRecordError: the file is no video, or not whole.
    """
    times, keys, timed = [], [], True
    with _reading(path, clock.place), _open(path, clock) as container:
        stream = _pictures_of(container)
        if stream is None:
            raise BrokenRecordError("unreadable video", clock.place, f"{path} has no pictures, only sound or data")
        if stream.width * stream.height > max_pixels:
            size = f"{path}: {stream.width} x {stream.height} pixels, more than max_pixels = {max_pixels}"
            raise BrokenRecordError("image too large", clock.place, size)
        tick_s, reached_s = float(stream.time_base or 1), 0.0
        # Of all streams: the length that the header says is often that of the longest.
        for packet in container.demux():
            clock.check()
            stamp = packet.pts if packet.pts is not None else packet.dts
            if packet.size == 0 or stamp is None:
                continue
            reached_s = max(reached_s, float((stamp + (packet.duration or 0)) * (packet.time_base or 0)))
            if packet.stream.index != stream.index or packet.is_discard:
                continue
            timed = timed and packet.pts is not None
            times.append(stamp)
            if packet.is_keyframe:
                keys.append(stamp)
        said_s = _said_length_s(container, stream)
    if not times:
        raise BrokenRecordError("unreadable video", clock.place, f"{path} has no frames")
    times.sort()
    # How long the last frame is shown is not said: as long as any other, at most.
    longest = max((later - earlier for earlier, later in itertools.pairwise(times)), default=0)
    reached_s = max(reached_s, (times[-1] + longest) * tick_s)
    if reached_s < _WHOLE_ENOUGH * said_s:
        there = f"it has {reached_s:.1f} of the {said_s:.1f} s that its header says"
        raise BrokenRecordError("unreadable video", clock.place, f"{path} is truncated: {there}")
    return _Index(times, sorted(keys), tick_s, timed)


def _pictures_of(container: Any) -> Any:
    """The stream of pictures, None where there is none: the cover of a song is no video."""
    cover = _import_backend("av").stream.Disposition.attached_pic
    return next((stream for stream in container.streams.video if not stream.disposition & cover), None)


def _said_length_s(container: Any, stream: Any) -> float:
    """How long a file lasts by its header; 0 where it does not say."""
    if container.format.name == "avi":
        # The library takes the length of a cut file for its own; the header counts frames of one tick each.
        return float(stream.frames * stream.time_base)
    return container.duration / 1_000_000 if container.duration else 0.0


def _av_frames(path: Path, index: _Index, wanted: Sequence[int], clock: _Clock) -> Iterator[Tensor]:
    """From the last key frame before each wanted frame, unless decoding has come further already."""
    with _open(path, clock) as container:
        reader = _AvReader(container, index, clock)
        for number in wanted:
            yield reader.frame(number)


class _AvReader:
    """Decodes forwards, and jumps ahead where a key frame lies before the next wanted frame."""

    def __init__(self, container: Any, index: _Index, clock: _Clock):
        self.container, self.index, self.clock = container, index, clock
        self.stream = _pictures_of(container)
        self.stream.codec_context.thread_count = 1
        self.decoded = container.decode(self.stream)
        self.passed = 0
        """Frames decoded since the start; what counts where frames have no times."""
        self.reached = index.times[0] - 1

    def frame(self, number: int) -> Tensor:
        if not self.index.timed:
            return self._counted(number)
        wanted = self.index.times[number]
        place = bisect.bisect_right(self.index.keys, wanted) - 1
        if place > 0 and self.index.keys[place] > self.reached:
            self._jump(self.index.keys[place])
        found = self._run_to(wanted)
        if found is None:
            # The container's table of key frames can be wrong: from the start, nothing is missed.
            self._jump(self.index.times[0])
            found = self._run_to(wanted)
        if found is None:
            raise BrokenRecordError("unreadable video", self.clock.place, f"frame {number} cannot be decoded")
        return found

    def _jump(self, stamp: int) -> None:
        self.container.seek(stamp, stream=self.stream, backward=True)
        self.decoded = self.container.decode(self.stream)

    def _run_to(self, wanted: int) -> Tensor | None:
        for frame in self.decoded:
            self.clock.check()
            self.reached = frame.pts if frame.pts is not None else self.reached
            if frame.pts == wanted:
                return _rgb(frame)
            if frame.pts is not None and frame.pts > wanted:
                return None
        return None

    def _counted(self, number: int) -> Tensor:
        for frame in self.decoded:
            self.clock.check()
            self.passed += 1
            if self.passed == number + 1:
                return _rgb(frame)
        raise BrokenRecordError("unreadable video", self.clock.place, f"frame {number} cannot be decoded")


def _rgb(frame: Any) -> Tensor:
    return torch.from_numpy(frame.to_ndarray(format="rgb24")).permute(2, 0, 1)


def _decord_frames(path: Path, index: _Index, wanted: Sequence[int], clock: _Clock) -> Iterator[Tensor]:
    reader = _import_backend("decord").VideoReader(str(path), num_threads=1)
    _same_count(len(reader), index, "decord", clock)
    for number in wanted:
        clock.check()
        yield torch.from_numpy(reader.get_batch([number]).asnumpy()[0]).permute(2, 0, 1)


def _torchcodec_frames(path: Path, index: _Index, wanted: Sequence[int], clock: _Clock) -> Iterator[Tensor]:
    decoder = _import_backend("torchcodec").VideoDecoder(str(path), seek_mode="exact", num_ffmpeg_threads=1)
    _same_count(len(decoder), index, "torchcodec", clock)
    for number in wanted:
        clock.check()
        yield decoder.get_frame_at(number).data


def _same_count(found: int, index: _Index, backend: str, clock: _Clock) -> None:
    if found != len(index.times):
        message = f"{backend} finds {found} frames where the file has {len(index.times)}; backend: av can read it"
        raise BrokenRecordError("unreadable video", clock.place, message)


_BACKENDS: dict[Backend, Callable[[Path, _Index, Sequence[int], _Clock], Any]] = {
    "av": _av_frames,
    "decord": _decord_frames,
    "torchcodec": _torchcodec_frames,
}


def _import_backend(backend: Backend) -> Any:
    """Imported only where it is used: each brings its own FFmpeg."""
    return importlib.import_module("torchcodec.decoders" if backend == "torchcodec" else backend)


def _why_not_loaded(backend: Backend) -> str | None:
    """What an import of the backend says; None where it works."""
    try:
        _import_backend("av")  # indexes the packets for every backend
        _import_backend(backend)
    # torchcodec raises RuntimeError and OSError where it finds no FFmpeg.
    except (ImportError, OSError, RuntimeError) as error:
        return str(error).strip().split("\n")[0][:200]
    return None


def _open(path: Path, clock: _Clock) -> Any:
    return _import_backend("av").open(str(path), timeout=max(0.1, clock.ends - time.monotonic()))


@contextmanager
def _reading(path: Path, place: str) -> Iterator[None]:
    """Turns what the decoding libraries raise, which is of many kinds, into a broken record."""
    try:
        yield
    except (BrokenRecordError, UserError, MemoryError):
        raise
    except ImportError as error:
        raise UserError(f"{place}: {path} is a video file, and {error.name} cannot be loaded; pip install it") from None
    except Exception as error:
        reason = str(error).strip().split("\n")[0][:200] or type(error).__name__
        raise BrokenRecordError("unreadable video", place, f"{path}: {reason}") from None
