"""``run.py prepare frames``: converts videos to lists of frames."""

from __future__ import annotations

import itertools
import logging
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from batches.base import BrokenRecord
from dataset.config import VideoReadingConfig
from dataset.prepare.file_jobs import FileJob, FinishedFile, fill_with_files
from dataset.prepare.folders import tally
from dataset.prepare.frame_files import OutputFile, outputs_of_folder, outputs_of_shards
from dataset.prepare.frame_making import FRAMES_VERSION, FrameMaking, RecordLine, killed, work
from dataset.prepare.output_flags import OutputFlags, manifest_of
from dataset.prepare.output_folder import OutputFolder
from dataset.prepare.processes import in_order
from utils import log
from utils.cores import usable_cores
from utils.errors import UserError
from utils.files import replacing
from utils.flags import SEVERAL, PositiveReal, read_by, whole_number

MANIFEST, BROKEN = manifest_of("frames"), "_frames/broken.jsonl"

DEFAULTS = FrameMaking()
"""The default values of the command's options."""

MAX_LOGGED = 3
"""Maximum number of broken videos of each kind that are logged. The file :data:`BROKEN` lists all of them."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """The result of a run.

    Attributes:
        videos: number of videos in the folder.
        frames: number of frames in the folder.
        bytes: size of the folder.
        broken: number of broken videos by kind.
        tried: number of output files that were missing before this run.
        made: number of videos that this run converted.
        seconds: duration of this run.
    """

    videos: int
    frames: int
    bytes: int
    broken: Counter[str]
    tried: int
    made: int
    seconds: float

    def line(self) -> str:
        """Formats the result, such as "12 videos, 90 frames, 0.010 GB; 1 broken (1 missing video); 3.2 s, 3.8 videos per
        second"."""
        content = f"{self.videos} videos, {self.frames} frames, {self.bytes / 1e9:.3f} GB"
        content += f"; {self.broken.total()} broken ({tally(self.broken)})" if self.broken else "; none broken"
        if not self.made:
            return f"{content}; none of them new"
        new = "" if self.made == self.videos else f"{self.made} of them new, "
        return f"{content}; {new}{self.seconds:.1f} s, {self.made / max(self.seconds, 1e-9):.1f} videos per second"


def build(
    out: Path,
    outputs: Sequence[OutputFile],
    arguments: Mapping[str, Any],
    *,
    workers: int,
    overwrite: bool = False,
    progress: bool = False,
) -> Summary:
    """Builds the files of ``outputs`` that are missing in ``out`` with ``workers`` processes.

    Raises:
        UserError: the folder cannot be used (:class:`~dataset.prepare.output_folder.OutputFolder`), or no video could be read.
    """
    sources = {output.source.resolve() for output in outputs}
    for output in outputs:
        if (out / output.name).resolve() in sources:
            raise UserError(f"{output.name} would replace its own source", where=out, remedy="use another folder")
    names = [output.name for output in outputs]
    with OutputFolder(out, MANIFEST, arguments, names, overwrite=overwrite) as folder:
        summary = _fill(folder, outputs, workers, progress)
        folder.close()
    if summary.broken and not summary.videos:
        first = next(broken for entry in folder.entries.values() for broken in entry.broken)
        raise UserError(
            f"no video could be read: {tally(summary.broken)} (first: {first['place']}: {first['detail']})",
            where=out,
            remedy="check the paths (--overwrite rebuilds everything)",
        )
    return summary


def _fill(folder: OutputFolder, outputs: Sequence[OutputFile], workers: int, progress: bool) -> Summary:
    started = time.monotonic()
    jobs = [FrameFile(output.source, folder.out / output.name, output) for output in outputs]
    for job in jobs:  # a file that does not exist is built again, even if none of its videos could be read
        if not job.target.exists():
            folder.entries.pop(job.output.name, None)
    tried = made = 0
    logged: Counter[str] = Counter()

    def run(left: Sequence[FrameFile], advance: Callable[[int], object]) -> Generator[FinishedFile, None, None]:
        nonlocal tried, made
        tried = len(left)
        videos = (video for job in left for video in job.output.jobs())
        processes = min(workers, max(sum(job.size for job in left), 1))
        with closing(in_order(work, videos, processes, killed)) as results:
            for job in left:
                finished = _write_file(job, results, lambda broken: _log(broken, logged), advance)
                made += finished.counts["videos"]
                yield finished

    try:
        entries = fill_with_files(folder, jobs, run, quiet=not progress, desc="frames", unit="video")
    finally:
        folder.write_broken(BROKEN)
    counts: Counter[str] = Counter()
    for entry in entries:
        counts.update(entry.counts)
    kinds = Counter(broken["reason"] for entry in entries for broken in entry.broken)
    size = sum(entry.bytes for entry in entries)
    return Summary(counts["videos"], counts["frames"], size, kinds, tried, made, time.monotonic() - started)


@dataclass(frozen=True)
class FrameFile(FileJob):
    """The job that builds an output file."""

    output: OutputFile

    @property
    def size(self) -> int:
        """Number of records in the source."""
        return self.output.count


def _write_file(
    job: FrameFile,
    results: Iterator[RecordLine | BrokenRecord],
    on_broken: Callable[[BrokenRecord], None],
    advance: Callable[[int], object],
) -> FinishedFile:
    """Writes a file from the results of the next ``job.size`` videos."""
    broken: list[BrokenRecord] = []
    videos = frames = 0
    job.target.parent.mkdir(parents=True, exist_ok=True)
    with replacing(job.target) as part, part.open("wb") as stream:
        for result in itertools.islice(results, job.size):
            if isinstance(result, BrokenRecord):
                broken.append(result)
                on_broken(result)
            else:
                stream.write(result.content)
                videos, frames = videos + result.videos, frames + result.frames
            advance(1)
    if job.output.only_frames and broken:
        job.target.unlink()
    return FinishedFile({"videos": videos, "frames": frames}, broken)


def _log(broken: BrokenRecord, logged: Counter[str]) -> None:
    logged[broken.reason] += 1
    if logged[broken.reason] <= MAX_LOGGED:
        more = f" (more for this reason are only written to {BROKEN})" if logged[broken.reason] == MAX_LOGGED else ""
        logger.warning("skipped: %s: %s: %s%s", broken.place, broken.reason, broken.detail, more)


def frames(
    *,
    output: OutputFlags,
    records: Annotated[tuple[str, ...], SEVERAL] = (),
    folder: Path | None = None,
    video_key: str = "video",
    video_root: Path | None = None,
    frames_per_second: PositiveReal = 1.0,
    short_side: Annotated[int, read_by(whole_number(16, 4096))] = DEFAULTS.short_side,
    quality: Annotated[int, read_by(whole_number(1, 100))] = DEFAULTS.quality,
    max_frames: Annotated[int | None, read_by(whole_number(1, 1_000_000))] = None,
    backend: Literal["av", "decord"] = "av",
    time_limit: PositiveReal = DEFAULTS.reading.time_limit_s,
    max_pixels: Annotated[int, read_by(whole_number(1, 2**31))] = DEFAULTS.max_pixels,
    workers: Annotated[int, read_by(whole_number(1, 1024))] = usable_cores(),
) -> int:
    """Convert videos to lists of frames.

    Training on video files decodes them in every epoch, which is much slower than reading images. This command decodes each
    video once and stores one frame per second (section 3.2 of the paper) as base64-encoded JPEGs, like the authors' data.

    With --records, the command reads shards for pre-training and writes <name of the shard>.jsonl to --out for each shard. The
    new records contain frames instead of the video's path; records that already have base64 images are not changed. With
    --folder, the command writes <path of the video>.json, a list of frames, for each video file. If a config's folder of videos
    is set to --out, training finds each list in the way it would find the video, for example by MSR-VTT's video_id.

    A video that cannot be read is skipped with its record, counted, and listed in _frames/broken.jsonl in --out. Rerun the same
    command to resume an interrupted run. Finished files are kept; they are rebuilt only if they were deleted or if the size
    of their source has changed. Broken videos of a folder are retried by each run, broken videos of a shard only after its output
    is deleted. Only one run at a time can fill a folder.

    Args:
        records: shards, patterns, or folders of shards.
        folder: folder that is searched for video files (.mp4 .avi .mov .mkv .webm .m4v .mpg .mpeg), including its subfolders.
        video_key: key of the video in a record.
        video_root: folder that relative paths start from (default: the folder of the shard).
        frames_per_second: number of frames per second; the paper uses 1.
        short_side: maximum length of the shorter side of a frame in pixels. Smaller frames are not enlarged. The default is the
            largest input size of all video configs. 256 is enough for pre-training at 224, and needs less than half the space
            and decoding time.
        quality: JPEG quality.
        max_frames: maximum number of frames of a video, evenly spaced (default: all). Set it if videos last many minutes,
            because a list is read completely even if only some of its frames are needed.
        backend: decoder; av is PyAV.
        time_limit: maximum time to decode a video in seconds; a video that takes longer counts as broken.
        max_pixels: maximum number of pixels in a frame; a video with larger frames counts as broken.
        workers: number of processes (default: number of cores).
    """
    if bool(records) == (folder is not None):
        raise UserError(
            "pass --records FILE ... or --folder DIR, but not both", remedy="see run.py prepare frames --help"
        )
    out = output.out
    log.set_up()
    reading = VideoReadingConfig(backend=backend, frames_per_second=frames_per_second, time_limit_s=time_limit)
    making = FrameMaking(reading, short_side, quality, max_frames, max_pixels)
    if folder is not None:
        if video_root is not None:
            raise UserError(
                "--video-root can only be used with --records", remedy="with --folder, the paths are complete"
            )
        if out.resolve() == folder.resolve():
            raise UserError(
                f"{out} is the folder of the videos, where training would find the videos before their lists",
                where="--out",
                remedy="use another",
            )
        outputs = outputs_of_folder(folder, making)
        arguments: dict[str, Any] = {"folder": str(folder.resolve())}
    else:
        outputs = outputs_of_shards(records, making, video_key=video_key, video_root=video_root)
        root = None if video_root is None else str(video_root.resolve())
        arguments = {"video_key": video_key, "video_root": root}
    arguments |= {
        "frames_per_second": frames_per_second,
        "short_side": short_side,
        "quality": quality,
        "max_frames": max_frames,
        "backend": backend,
        "time_limit": time_limit,
        "max_pixels": max_pixels,
        "making": FRAMES_VERSION,
    }
    try:
        summary = build(out, outputs, arguments, workers=workers, overwrite=output.overwrite, progress=True)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; rerun the same command to resume\n")
        return 130
    if summary.tried:
        sys.stdout.write(f"{out}: {summary.line()}\n")
    else:
        sys.stdout.write(f"{out} is already complete with these arguments; nothing to do\n")
    if summary.broken:
        sys.stdout.write(f"broken videos: {out / BROKEN}\n")
    return 0
