"""``python -m dataset.prepare.frames (--records FILE ... | --folder DIR) --out DIR``: videos become lists of frames, once.

A training that reads video files decodes them again in every epoch, at many times the price of a picture. This decodes each of
them once and keeps the frames of whole seconds (X²-VLM, section 3.2) as base64 JPEGs, which is how the released data are.

--records   shards of pre-training (files, patterns or folders): for each shard DIR/<its name>.jsonl, the same records with the
            frames in place of the path. Records that hold base64 pictures stay as they are.
--folder    every video file below a folder: DIR/<its path>.json for each, a list of frames, which is found where the file was
            (by the video_id of MSR-VTT and others) once DIR stands for the folder.

A video that cannot be read is left out, with its record, counted, and named in DIR/_frames/broken.jsonl. A run that was
interrupted goes on with the same command: shards and lists that are whole are not made again, and one that was deleted, or whose
source has another size than before, is. Broken videos of a folder are tried again each time; those of a shard once it is deleted.
One run at a time fills DIR.
"""

from __future__ import annotations

import argparse
import glob
import itertools
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from dataset.formats.video_files import VIDEO_SUFFIXES
from dataset.media.video import VideoReadingConfig, VideoSource, check_backend, video_source
from dataset.prepare.book import BROKEN, Book, Entry, alone_in, cannot_write
from dataset.prepare.folders import LineParser, tally, whole_number
from dataset.prepare.frame_making import MAKING, FrameMaking, Job, Made, killed, work
from dataset.prepare.processes import in_order
from dataset.records.broken import broken_record
from dataset.records.schema import BrokenRecordError, broken_key
from dataset.shards.readers import Shards
from utils import log
from utils.batch import BrokenRecord
from utils.cores import usable_cores
from utils.errors import UserError, one_line_errors
from utils.files import sync_file
from utils.flags import positive_real
from utils.progress import progress_bar

BOOK = "_frames"
"""The folder of what is known of the others. It is not among them, so that the whole can be named as a folder of shards."""

NAMED = 3
"""Broken videos of a kind that are told at once; all are in the file."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Output:
    """A file to be made of ``count`` records, which ``jobs`` gives; ``source`` is what they come from. ``bare``: a list of
    frames, which is not there where its video is broken."""

    name: str
    source: Path
    count: int
    jobs: Callable[[], Iterable[Job]]
    bare: bool = False


def outputs_of_shards(
    files: Sequence[str], making: FrameMaking, *, video_key: str = "video", video_root: Path | None = None
) -> list[Output]:
    """A shard of JSON lines for each shard.

    Raises:
        UserError: as :class:`~dataset.shards.readers.Shards`; two shards have one name; the decoder cannot be loaded.
    """
    shards = Shards(files, key="--records")

    def job(number: int) -> Job:
        try:
            raw = shards.read(number)
            if raw.values.get(video_key) is None:
                raise broken_key(raw, video_key)
        except Exception as error:
            broken = broken_record(error, partial(shards.place, number))
            return Job(making, broken.place, Path(), {}, broken=broken)
        return Job(making, raw.place, video_root or raw.folder, raw.values, video_key)

    outputs = [
        Output(path.stem + ".jsonl", path, size, partial(map, job, range(end - size, end)))
        for path, size, end in zip(shards.paths, shards.sizes, itertools.accumulate(shards.sizes), strict=True)
    ]
    _check_names(outputs, "--records", "rename one, or make it in a folder of its own")
    _check_decoder((source for start in shards.starts for source in _sources(job(start))), making)
    return outputs


def outputs_of_folder(folder: Path, making: FrameMaking) -> list[Output]:
    """A list of frames for each video file below ``folder``; hidden files are none.

    Raises:
        UserError: there is no video file, two would become one list, or the decoder cannot be loaded.
    """
    if not folder.is_dir():
        raise UserError(f"--folder: {folder} is no folder; check the path (it is relative to {Path.cwd()})")
    found = glob.glob("**/*", root_dir=folder, recursive=True)
    names = sorted(name for name in found if Path(name).suffix.lower() in VIDEO_SUFFIXES and (folder / name).is_file())
    if not names:
        raise UserError(f"--folder: {folder} holds no video file ({', '.join(VIDEO_SUFFIXES)}); check the path")

    def output(name: str) -> Output:
        job = Job(making, str(folder / name), folder, {"video": name}, bare=True)
        return Output(Path(name).with_suffix(".json").as_posix(), folder / name, 1, lambda: [job], bare=True)

    outputs = [output(name) for name in names]
    _check_names(outputs, "--folder", "move one of them")
    _check_decoder([VideoSource(str(folder / names[0]), path=folder / names[0])], making)
    return outputs


def _sources(job: Job) -> Iterator[VideoSource]:
    try:
        if job.broken is None:
            yield video_source(job.values[job.key], job.key, job.place, job.folder)
    except BrokenRecordError:
        return  # several clips, which are no files, or broken: told when its turn comes


def _check_names(outputs: Sequence[Output], flag: str, remedy: str) -> None:
    first: dict[str, Path] = {}
    for output in outputs:
        other = first.setdefault(output.name, output.source)
        if other is not output.source:
            raise UserError(f"{flag}: {other} and {output.source} would both become {output.name}; {remedy}")


def _check_decoder(sources: Iterable[VideoSource], making: FrameMaking) -> None:
    try:
        check_backend(sources, making.reading, "")
    except UserError as error:
        raise UserError(f"--{str(error).removeprefix('.')}") from None


@dataclass(frozen=True)
class Summary:
    """What a folder holds, and what of it this run made in which time. ``tried``: files that were not there before."""

    videos: int
    frames: int
    bytes: int
    broken: Counter[str]
    tried: int
    made: int
    seconds: float

    def line(self) -> str:
        """ "12 videos, 90 frames, 0.010 GB; 1 broken (1 missing video); 3.2 s, 3.8 videos a second"."""
        said = f"{self.videos} videos, {self.frames} frames, {self.bytes / 1e9:.3f} GB"
        said += f"; {self.broken.total()} broken ({tally(self.broken)})" if self.broken else "; none broken"
        if not self.made:
            return f"{said}; none of them new"
        some = "" if self.made == self.videos else f"{self.made} of them new, "
        return f"{said}; {some}{self.seconds:.1f} s, {self.made / max(self.seconds, 1e-9):.1f} videos a second"


def build(
    out: Path,
    outputs: Sequence[Output],
    arguments: Mapping[str, Any],
    *,
    workers: int,
    overwrite: bool = False,
    progress: bool = False,
) -> Summary:
    """Make those of ``outputs`` in ``out`` that are not there yet, by ``workers`` processes.

    Raises:
        UserError: as :class:`Book` and :func:`~dataset.prepare.book.alone_in`; or no video could be read.
    """
    taken = {output.source.resolve(): output.name for output in outputs}
    for output in outputs:
        if (out / output.name).resolve() in taken:
            raise UserError(f"{out}: {output.name} would replace what it is made from; give another folder")
    with alone_in(out, BOOK):
        return _build(out, outputs, arguments, workers, overwrite, progress)


def _build(
    out: Path, outputs: Sequence[Output], arguments: Mapping[str, Any], workers: int, overwrite: bool, progress: bool
) -> Summary:
    started = time.monotonic()
    book = Book(out, BOOK, arguments, (output.name for output in outputs), overwrite=overwrite)
    left = [output for output in outputs if book.whole(output.name, output.source) is None]
    count, before = sum(output.count for output in left), sum(output.count for output in outputs)
    results = in_order(work, (job for output in left for job in output.jobs()), min(workers, max(count, 1)), killed)
    told: Counter[str] = Counter()
    made = 0
    try:
        with progress_bar(
            total=before, initial=before - count, quiet=not progress or not left, desc="frames", unit="video"
        ) as bar:
            for output in left:
                entry = _make(out, output, results, lambda broken: _tell(broken, told), bar.update)
                book.add(entry)
                made += entry.videos
    except OSError as error:
        raise cannot_write(error, out) from None
    finally:
        results.close()
        book.tell_broken()
    entries = [book.entries[output.name] for output in outputs]
    broken = Counter(each["reason"] for entry in entries for each in entry.broken)
    videos, frames, size = (sum(getattr(entry, name) for entry in entries) for name in ("videos", "frames", "bytes"))
    if broken and not videos:
        first = next(each for entry in entries for each in entry.broken)
        raise UserError(
            f"{out}: no video could be read: {tally(broken)} (first: {first['place']}: {first['detail']}); check the paths "
            "(--overwrite makes everything anew)"
        )
    return Summary(videos, frames, size, broken, len(left), made, time.monotonic() - started)


def _make(
    out: Path,
    output: Output,
    results: Iterator[Made | BrokenRecord],
    tell: Callable[[BrokenRecord], None],
    passed: Callable[[], object],
) -> Entry:
    """One file, from as many results as it has records; it has its name once it is whole."""
    path = out / output.name
    part = path.with_name(path.name + ".part")
    broken: list[BrokenRecord] = []
    videos = frames = 0
    source_bytes = output.source.stat().st_size
    path.parent.mkdir(parents=True, exist_ok=True)
    with part.open("wb") as stream:
        for made in itertools.islice(results, output.count):
            if isinstance(made, BrokenRecord):
                broken.append(made)
                tell(made)
            else:
                stream.write(made.content)
                videos, frames = videos + made.videos, frames + made.frames
            passed()
        size = stream.tell()
    if output.bare and broken:
        part.unlink()
    else:
        sync_file(part)
        os.replace(part, path)
    named = tuple({"place": each.place, "reason": str(each.kind), "detail": each.message} for each in broken)
    return Entry(output.name, str(output.source.resolve()), source_bytes, videos, frames, size, named)


def _tell(broken: BrokenRecord, told: Counter[str]) -> None:
    told[broken.kind] += 1
    if told[broken.kind] <= NAMED:
        more = f" (more of this kind are only written to {BOOK}/{BROKEN})" if told[broken.kind] == NAMED else ""
        logger.warning("left out: %s: %s: %s%s", broken.place, broken.kind, broken.message, more)


def _parser() -> LineParser:
    parser = LineParser(
        prog="python -m dataset.prepare.frames", description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    made = FrameMaking()
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--records", nargs="+", metavar="FILE", help="shards, patterns, or folders of shards")
    source.add_argument(
        "--folder", type=Path, metavar="DIR", help=f"every video file below it ({' '.join(VIDEO_SUFFIXES)})"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to fill; made if missing")
    parser.add_argument("--video-key", default="video", metavar="KEY", help="of the video in a record (default: video)")
    parser.add_argument(
        "--video-root", type=Path, metavar="DIR", help="of relative paths (default: the shard's folder)"
    )
    parser.add_argument(
        "--frames-per-second", type=positive_real, default=1.0, metavar="N", help="default 1, the paper's"
    )
    parser.add_argument(
        "--short-side",
        type=whole_number(16, 4096),
        default=made.short_side,
        metavar="PIXELS",
        help=f"""of a frame at most (default {made.short_side}: the largest input of any config of videos; smaller
frames stay as they are). 256 is enough for pre-training at 224, and takes less than half the
space and the time to decode it""",
    )
    parser.add_argument(
        "--quality",
        type=whole_number(1, 100),
        default=made.quality,
        metavar="N",
        help=f"of the JPEGs (default {made.quality})",
    )
    parser.add_argument(
        "--max-frames",
        type=whole_number(1, 1_000_000),
        metavar="N",
        help="""of a video, at even distances (default: all). A list is read whole whenever some of its
frames are wanted: set it where videos last many minutes""",
    )
    parser.add_argument("--backend", choices=("av", "decord", "torchcodec"), default="av", help="default av (PyAV)")
    parser.add_argument(
        "--workers",
        type=whole_number(1, 1024),
        default=usable_cores(),
        metavar="N",
        help="processes (default: one a core, %(default)d)",
    )
    parser.add_argument(
        "--time-limit",
        type=positive_real,
        default=made.reading.time_limit_s,
        metavar="SECONDS",
        help="a video that takes longer is broken (default %(default)g)",
    )
    parser.add_argument(
        "--max-pixels",
        type=whole_number(1, 2**31),
        default=made.max_pixels,
        metavar="N",
        help="a video of larger frames, too (default %(default)d)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what this command made in DIR")
    return parser


@one_line_errors
def main() -> int:
    """Make the frames and print one line of what there is; exit status 2 for a mistake of the user."""
    flags = _parser().parse_args()
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
        given: dict[str, str | None] = {"folder": str(flags.folder.resolve())}
    else:
        outputs = outputs_of_shards(flags.records, making, video_key=flags.video_key, video_root=flags.video_root)
        root = None if flags.video_root is None else str(flags.video_root.resolve())
        given = {"video_key": flags.video_key, "video_root": root}
    names = ("frames_per_second", "short_side", "quality", "max_frames", "backend", "time_limit", "max_pixels")
    arguments = {**given, **{name: getattr(flags, name) for name in names}, "making": MAKING}
    try:
        made = build(flags.out, outputs, arguments, workers=flags.workers, overwrite=flags.overwrite, progress=True)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; the same command goes on\n")
        return 130
    if made.tried:
        sys.stdout.write(f"{flags.out}: {made.line()}\n")
    else:
        sys.stdout.write(f"{flags.out} is already complete with these arguments; nothing to do\n")
    if made.broken:
        sys.stdout.write(f"all that is broken: {flags.out / BOOK / BROKEN}\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
