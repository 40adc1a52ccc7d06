"""``run.py prepare frames``: videos become lists of frames."""

from __future__ import annotations

import itertools
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from batches.base import BrokenRecord
from dataset.media.video import VideoReadingConfig
from dataset.prepare.folders import tally
from dataset.prepare.frame_files import OutputFile, outputs_of_folder, outputs_of_shards
from dataset.prepare.frame_making import MAKING, FrameMaking, RecordLine, killed, work
from dataset.prepare.official import OutputFlags, manifest_of
from dataset.prepare.output import Entry, OutputFolder
from dataset.prepare.processes import in_order
from utils import log
from utils.cores import usable_cores
from utils.errors import UserError
from utils.files import sync_file
from utils.flags import SEVERAL, PositiveReal, read_by, whole_number
from utils.progress import progress_bar

MANIFEST, BROKEN = manifest_of("frames"), "_frames/broken.jsonl"

USUAL = FrameMaking()
"""How frames are made if no flag says otherwise."""

NAMED = 3
"""Broken videos of a kind that are logged; the file has all."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Summary:
    """Totals of a folder; ``tried`` files were missing before this run, which made ``made`` videos in ``seconds``."""

    videos: int
    frames: int
    bytes: int
    broken: Counter[str]
    tried: int
    made: int
    seconds: float

    def line(self) -> str:
        """ "12 videos, 90 frames, 0.010 GB; 1 broken (1 missing video); 3.2 s, 3.8 videos a second"."""
        content = f"{self.videos} videos, {self.frames} frames, {self.bytes / 1e9:.3f} GB"
        content += f"; {self.broken.total()} broken ({tally(self.broken)})" if self.broken else "; none broken"
        if not self.made:
            return f"{content}; none of them new"
        new = "" if self.made == self.videos else f"{self.made} of them new, "
        return f"{content}; {new}{self.seconds:.1f} s, {self.made / max(self.seconds, 1e-9):.1f} videos a second"


def build(
    out: Path,
    outputs: Sequence[OutputFile],
    arguments: Mapping[str, Any],
    *,
    workers: int,
    overwrite: bool = False,
    progress: bool = False,
) -> Summary:
    """Make the files of ``outputs`` that are not yet in ``out``, by ``workers`` processes.

    Raises:
        UserError: as :class:`~dataset.prepare.output.OutputFolder`; or no video could be read.
    """
    sources = {output.source.resolve() for output in outputs}
    for output in outputs:
        if (out / output.name).resolve() in sources:
            raise UserError(f"{out}: {output.name} would replace what it is made from; give another folder")
    names = [output.name for output in outputs]
    with OutputFolder(out, MANIFEST, arguments, names, overwrite=overwrite) as folder:
        summary = _fill(folder, outputs, workers, progress)
        folder.close()
    if summary.broken and not summary.videos:
        first = next(broken for entry in folder.entries.values() for broken in entry.broken)
        raise UserError(
            f"{out}: no video could be read: {tally(summary.broken)} (first: {first['place']}: {first['detail']}); "
            "check the paths (--overwrite makes everything anew)"
        )
    return summary


def _fill(folder: OutputFolder, outputs: Sequence[OutputFile], workers: int, progress: bool) -> Summary:
    started = time.monotonic()
    missing = [output for output in outputs if folder.finished(output.name, output.source) is None]
    total, left = sum(output.count for output in outputs), sum(output.count for output in missing)
    jobs = (job for output in missing for job in output.jobs())
    results = in_order(work, jobs, min(workers, max(left, 1)), killed)
    logged: Counter[str] = Counter()
    made = 0
    try:
        with progress_bar(
            total=total, initial=total - left, quiet=not progress or not missing, desc="frames", unit="video"
        ) as bar:
            for output in missing:
                entry = _make(folder.out, output, results, lambda broken: _log(broken, logged), bar.update)
                folder.add(entry)
                made += entry.counts["videos"]
    finally:
        results.close()
        folder.write_broken(BROKEN)
    entries = [folder.entries[output.name] for output in outputs]
    counts: Counter[str] = Counter()
    for entry in entries:
        counts.update(entry.counts)
    kinds = Counter(broken["reason"] for entry in entries for broken in entry.broken)
    size = sum(entry.bytes for entry in entries)
    seconds = time.monotonic() - started
    return Summary(counts["videos"], counts["frames"], size, kinds, len(missing), made, seconds)


def _make(
    out: Path,
    output: OutputFile,
    results: Iterator[RecordLine | BrokenRecord],
    on_broken: Callable[[BrokenRecord], None],
    on_result: Callable[[], object],
) -> Entry:
    """Make one file from the next ``output.count`` results; it gets its name once it is whole."""
    path = out / output.name
    part = path.with_name(path.name + ".part")
    broken: list[dict[str, str]] = []
    videos = frames = 0
    source_bytes = output.source.stat().st_size
    path.parent.mkdir(parents=True, exist_ok=True)
    with part.open("wb") as stream:
        for result in itertools.islice(results, output.count):
            if isinstance(result, BrokenRecord):
                broken.append({"place": result.location, "reason": str(result.kind), "detail": result.message})
                on_broken(result)
            else:
                stream.write(result.content)
                videos, frames = videos + result.videos, frames + result.frames
            on_result()
        size = stream.tell()
    if output.bare and broken:
        part.unlink()
    else:
        sync_file(part)
        os.replace(part, path)
    counts = {"videos": videos, "frames": frames}
    return Entry(output.name, str(output.source.resolve()), source_bytes, size, counts, tuple(broken))


def _log(broken: BrokenRecord, logged: Counter[str]) -> None:
    logged[broken.kind] += 1
    if logged[broken.kind] <= NAMED:
        more = f" (more of this kind are only written to {BROKEN})" if logged[broken.kind] == NAMED else ""
        logger.warning("left out: %s: %s: %s%s", broken.location, broken.kind, broken.message, more)


def frames(
    *,
    output: OutputFlags,
    records: Annotated[tuple[str, ...], SEVERAL] = (),
    folder: Path | None = None,
    video_key: str = "video",
    video_root: Path | None = None,
    frames_per_second: PositiveReal = 1.0,
    short_side: Annotated[int, read_by(whole_number(16, 4096))] = USUAL.short_side,
    quality: Annotated[int, read_by(whole_number(1, 100))] = USUAL.quality,
    max_frames: Annotated[int | None, read_by(whole_number(1, 1_000_000))] = None,
    backend: Literal["av", "decord"] = "av",
    time_limit: PositiveReal = USUAL.reading.time_limit_s,
    max_pixels: Annotated[int, read_by(whole_number(1, 2**31))] = USUAL.max_pixels,
    workers: Annotated[int, read_by(whole_number(1, 1024))] = usable_cores(),
) -> int:
    """Turn videos into lists of frames.

    Training on video files decodes them again in every epoch, which costs many times as much as images. This command decodes each
    video once and keeps the frames of whole seconds (X²-VLM, section 3.2) as base64 JPEGs, the form of the released data.

    With --records, it reads shards of pre-training, and writes for each shard <its name>.jsonl to the folder of --out: the same
    records with frames instead of the path. Records that hold base64 images stay as they are. With --folder, it writes for every
    video file <its path>.json, a list of frames. With the folder of --out in place of the folder of videos in a config, the lists
    are found as the files were (by the video_id of MSR-VTT and others).

    A video that cannot be read is skipped with its record, counted, and named in _frames/broken.jsonl in the folder of --out.
    The same command resumes an interrupted run: finished files are kept, and made again only if they were deleted or their source
    has another size. Broken videos of a folder are tried again each time; broken videos of a shard, when the shard is deleted.
    Only one run at a time can fill a folder.

    Args:
        records: shards, patterns, or folders of shards.
        folder: every video file below it (.mp4 .avi .mov .mkv .webm .m4v .mpg .mpeg).
        video_key: key of the video in a record.
        video_root: folder of relative paths (default: the shard's folder).
        frames_per_second: frames of each second; 1 is the paper's.
        short_side: of a frame in pixels, at most. The default is the largest input of any config of videos; smaller frames stay
            as they are. 256 is enough for pre-training at 224, and takes less than half the space and the time to decode it.
        quality: of JPEGs.
        max_frames: of a video, at even distances (default: all). A list is read whole whenever some of its frames are needed: set
            it where videos last many minutes.
        backend: av is PyAV.
        time_limit: a video that takes more seconds is broken.
        max_pixels: a video of larger frames is broken, too.
        workers: processes (default: one a core).
    """
    if bool(records) == (folder is not None):
        raise UserError("give --records FILE ... or --folder DIR, and not both; see run.py prepare frames --help")
    out = output.out
    log.set_up()
    reading = VideoReadingConfig(backend=backend, frames_per_second=frames_per_second, time_limit_s=time_limit)
    making = FrameMaking(reading, short_side, quality, max_frames, max_pixels)
    if folder is not None:
        if video_root is not None:
            raise UserError("--video-root is for --records; videos of --folder are found below it")
        if out.resolve() == folder.resolve():
            raise UserError(
                f"--out: {out} is the folder of the videos, which are found before their lists; give another"
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
        "making": MAKING,
    }
    try:
        summary = build(out, outputs, arguments, workers=workers, overwrite=output.overwrite, progress=True)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command resumes\n")
        return 130
    if summary.tried:
        sys.stdout.write(f"{out}: {summary.line()}\n")
    else:
        sys.stdout.write(f"{out} is already complete with these arguments; nothing to do\n")
    if summary.broken:
        sys.stdout.write(f"broken videos: {out / BROKEN}\n")
    return 0
