"""``python run.py prepare frames (--records FILE ... | --folder DIR) --out DIR``: videos become lists of frames.

Training on video files decodes them again in every epoch, which costs many times as much as images. This command decodes each
video once and keeps the frames of whole seconds (X²-VLM, section 3.2) as base64 JPEGs, the form of the released data.

--records   shards of pre-training (files, patterns or folders): for each shard DIR/<its name>.jsonl, the same records with
            frames instead of the path. Records that hold base64 images stay as they are.
--folder    every video file below a folder: DIR/<its path>.json for each, a list of frames. With DIR in place of the
            folder in a config, the lists are found as the files were (by the video_id of MSR-VTT and others).

A video that cannot be read is left out with its record, counted, and named in DIR/_frames/broken.jsonl. The same command resumes
an interrupted run: finished files are kept, and made again only if they were deleted or their source has another size. Broken
videos of a folder are tried again each time; those of a shard once the shard is deleted. One run at a time fills DIR.
"""

from __future__ import annotations

import argparse
import itertools
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batches.base import BrokenRecord
from dataset.media.video import VideoReadingConfig
from dataset.prepare.folders import LineParser, tally, whole_number
from dataset.prepare.frame_files import OutputFile, outputs_of_folder, outputs_of_shards
from dataset.prepare.frame_making import MAKING, FrameMaking, RecordLine, killed, work
from dataset.prepare.official import command_parser, manifest_of
from dataset.prepare.output import Entry, OutputFolder
from dataset.prepare.processes import in_order
from utils import log
from utils.cores import usable_cores
from utils.errors import UserError, one_line_errors
from utils.files import sync_file
from utils.flags import positive_real
from utils.progress import progress_bar
from utils.suffixes import VIDEO_SUFFIXES

MANIFEST, BROKEN = manifest_of("frames"), "_frames/broken.jsonl"

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
    """Make those of ``outputs`` in ``out`` that are not there yet, by ``workers`` processes.

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
                broken.append({"place": result.place, "reason": str(result.kind), "detail": result.message})
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
        logger.warning("left out: %s: %s: %s%s", broken.place, broken.kind, broken.message, more)


def _parser() -> LineParser:
    parser = command_parser("frames", __doc__)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--records", nargs="+", metavar="FILE", help="shards, patterns, or folders of shards")
    suffixes = " ".join(VIDEO_SUFFIXES)
    source.add_argument("--folder", type=Path, metavar="DIR", help=f"every video file below it ({suffixes})")
    add = parser.add_argument
    add("--video-key", default="video", metavar="KEY", help="of the video in a record (default: video)")
    add("--video-root", type=Path, metavar="DIR", help="of relative paths (default: the shard's folder)")
    _add_making(parser)
    cores = usable_cores()
    add("--workers", type=whole_number(1, 1024), default=cores, metavar="N", help="default: one a core, %(default)d")
    return parser


def _add_making(parser: argparse.ArgumentParser) -> None:
    """Flags that decide the content of a file."""
    making = FrameMaking()
    add = parser.add_argument
    add("--frames-per-second", type=positive_real, default=1.0, metavar="N", help="default 1, the paper's")
    side = """of a frame at most (default %(default)d: the largest input of any config of videos; smaller
frames stay as they are). 256 is enough for pre-training at 224, and takes less than half the
space and the time to decode it"""
    add("--short-side", type=whole_number(16, 4096), default=making.short_side, metavar="PIXELS", help=side)
    add(
        "--quality",
        type=whole_number(1, 100),
        default=making.quality,
        metavar="N",
        help="of JPEGs (default %(default)d)",
    )
    limit = """of a video, at even distances (default: all). A list is read whole whenever some of its
frames are wanted: set it where videos last many minutes"""
    add("--max-frames", type=whole_number(1, 1_000_000), metavar="N", help=limit)
    add("--backend", choices=("av", "decord"), default="av", help="default av (PyAV)")
    seconds = "a video that takes longer is broken (default %(default)g)"
    add("--time-limit", type=positive_real, default=making.reading.time_limit_s, metavar="SECONDS", help=seconds)
    pixels = "a video of larger frames, too (default %(default)d)"
    add("--max-pixels", type=whole_number(1, 2**31), default=making.max_pixels, metavar="N", help=pixels)


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments after ``run.py prepare frames``."""
    return _parser().parse_args(argv)


@one_line_errors
def main(argv: Sequence[str]) -> int:
    """Make the frames and print one line of what there is; exit status 2 for a mistake of the user."""
    flags = arguments_of(argv)
    log.set_up()
    reading = VideoReadingConfig(
        backend=flags.backend, frames_per_second=flags.frames_per_second, time_limit_s=flags.time_limit
    )
    making = FrameMaking(reading, flags.short_side, flags.quality, flags.max_frames, flags.max_pixels)
    if flags.folder is not None:
        if flags.video_root is not None:
            raise UserError("--video-root is for --records; videos of --folder are found below it")
        if flags.out.resolve() == flags.folder.resolve():
            raise UserError(
                f"--out: {flags.out} is the folder of the videos, which are found before their lists; give another"
            )
        outputs = outputs_of_folder(flags.folder, making)
        arguments: dict[str, Any] = {"folder": str(flags.folder.resolve())}
    else:
        outputs = outputs_of_shards(flags.records, making, video_key=flags.video_key, video_root=flags.video_root)
        root = None if flags.video_root is None else str(flags.video_root.resolve())
        arguments = {"video_key": flags.video_key, "video_root": root}
    names = ("frames_per_second", "short_side", "quality", "max_frames", "backend", "time_limit", "max_pixels")
    arguments |= {**{name: getattr(flags, name) for name in names}, "making": MAKING}
    try:
        summary = build(flags.out, outputs, arguments, workers=flags.workers, overwrite=flags.overwrite, progress=True)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command resumes\n")
        return 130
    if summary.tried:
        sys.stdout.write(f"{flags.out}: {summary.line()}\n")
    else:
        sys.stdout.write(f"{flags.out} is already complete with these arguments; nothing to do\n")
    if summary.broken:
        sys.stdout.write(f"broken videos: {flags.out / BROKEN}\n")
    return 0
