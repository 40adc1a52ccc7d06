"""The output files of ``run.py prepare frames``: a new shard for each shard, or a list of frames for each video file."""

from __future__ import annotations

import glob
import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from dataset.broken import BrokenRecordError, broken_record
from dataset.media.sources import VideoSource, video_source
from dataset.media.video import check_backend
from dataset.prepare.frame_making import FrameMaking, Job
from dataset.records.schema import broken_key
from dataset.shards.finding import PARQUET_SUFFIX
from dataset.shards.readers import Shards
from utils.addresses import is_hub, is_url
from utils.errors import UserError
from utils.files import path_remedy
from utils.suffixes import VIDEO_SUFFIXES


@dataclass(frozen=True)
class OutputFile:
    """An output file to build.

    Attributes:
        name: path of the file below the output folder.
        source: the file that it is built from.
        count: number of records in the source.
        jobs: returns a job for each record.
        only_frames: whether the file is only the list of frames of one video. It is not written if the video is broken.
    """

    name: str
    source: Path
    count: int
    jobs: Callable[[], Iterable[Job]]
    only_frames: bool = False


def outputs_of_shards(
    files: Sequence[str], making: FrameMaking, *, video_key: str = "video", video_root: Path | None = None
) -> list[OutputFile]:
    """Returns the shards of JSON lines to build, one for each source shard.

    Raises:
        UserError: a shard cannot be read or is a URL, two shards have the same name, or the decoder cannot be loaded.
    """
    for entry in files:
        if is_url(entry) or is_hub(entry):
            raise UserError(
                "frames can only be extracted from shards on this machine",
                where=f"--records {entry}",
                remedy="copy the shards first",
            )
    shards = Shards(files, key="--records")
    local = [path for path in shards.paths if isinstance(path, Path)]
    if parquet := [path for path in local if path.suffix == PARQUET_SUFFIX]:
        raise UserError(
            "frames cannot be extracted from Parquet files",
            where=f"--records {parquet[0]}",
            remedy="write the records as JSON lines",
        )

    def job(index: int) -> Job:
        try:
            raw = shards.read(index)
            if raw.values.get(video_key) is None:
                raise broken_key(raw, video_key)
        except Exception as error:
            broken = broken_record(error, shards.exact_location(index))
            return Job(making, broken.place, Path(), {}, broken=broken)
        return Job(making, raw.location, video_root or raw.folder, raw.values, video_key)

    outputs = [
        OutputFile(path.stem + ".jsonl", path, size, partial(map, job, range(end - size, end)))
        for path, size, end in zip(local, shards.sizes, itertools.accumulate(shards.sizes), strict=True)
    ]
    _check_names(outputs, "--records", "rename one of them, or convert it to another folder")
    _check_decoder((source for first in shards.first_records for source in _sources(job(first))), making)
    return outputs


def outputs_of_folder(folder: Path, making: FrameMaking) -> list[OutputFile]:
    """Returns the lists of frames to build, one for each video file below ``folder``. Hidden files are ignored.

    Raises:
        UserError: the folder does not contain a video file, two videos would have the same list, or the decoder cannot be loaded.
    """
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder", where="--folder", remedy=path_remedy(folder))
    paths = glob.glob("**/*", root_dir=folder, recursive=True)
    names = sorted(name for name in paths if Path(name).suffix.lower() in VIDEO_SUFFIXES and (folder / name).is_file())
    if not names:
        raise UserError(
            f"{folder} does not contain a video file ({', '.join(VIDEO_SUFFIXES)})",
            where="--folder",
            remedy="check the path",
        )

    def output(name: str) -> OutputFile:
        job = Job(making, str(folder / name), folder, {"video": name}, only_frames=True)
        return OutputFile(Path(name).with_suffix(".json").as_posix(), folder / name, 1, lambda: [job], only_frames=True)

    outputs = [output(name) for name in names]
    _check_names(outputs, "--folder", "move one of them")
    _check_decoder([VideoSource(str(folder / names[0]), path=folder / names[0])], making)
    return outputs


def _sources(job: Job) -> Iterator[VideoSource]:
    try:
        if job.broken is None:
            yield video_source(job.values[job.key], job.key, job.location, job.folder)
    except BrokenRecordError:
        return  # the video is a list of clips, which needs no decoder, or is broken, which is reported later


def _check_names(outputs: Sequence[OutputFile], flag: str, remedy: str) -> None:
    first: dict[str, Path] = {}
    for output in outputs:
        other = first.setdefault(output.name, output.source)
        if other is not output.source:
            raise UserError(f"{other} and {output.source} would both become {output.name}", where=flag, remedy=remedy)


def _check_decoder(sources: Iterable[VideoSource], making: FrameMaking) -> None:
    try:
        check_backend(sources, making.reading, "")
    except UserError as error:
        raise UserError(f"--{str(error).removeprefix('.')}") from None
