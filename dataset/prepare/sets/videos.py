"""WebVid, HowTo100M and YT-Temporal-180M: videos with texts, as lists of frames."""

from __future__ import annotations

import csv
import difflib
import itertools
import json
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dataset.prepare.building import Job, Work
from dataset.prepare.counts import Counts
from dataset.prepare.json_pieces import json_pieces
from dataset.prepare.raw_folder import RawFile
from dataset.prepare.sets.base import DataSet, Opened, Product, Request
from dataset.prepare.sets.web import lines_of
from dataset.prepare.video_clips import Clip, Video, VideoFinder, job_of, video_records
from utils.errors import UserError

WEBVID_CSV = "results_2M_train.csv"
HOWTO_CAPTIONS = ("caption.json", "raw_caption.json")
"""Transcripts, cleaned by the authors and raw. The first that is there is taken."""

WEBVID_VIDEOS, HOWTO_VIDEOS, YT_VIDEOS = 2_500_000, 1_200_000, 6_000_000
"""About as many videos as the official files name, for the progress bar."""

MOST_LINES = 20
"""Lines of a text in quotation marks; more speak of a mark that is not closed."""

LONGEST_VIDEO = 1 << 26
"""Bytes of a line of YT-Temporal, which has every word of a video, some with their times."""

_YT_FILE = re.compile(r"yt-?_?temporal.*\.jsonl(\.gz)?", re.IGNORECASE)
_YT_FOLDER = re.compile(r"yt-?_?temporal.*", re.IGNORECASE)
_LINES = (".jsonl", ".json", ".jsonl.gz")
_WORD = re.compile(r"\W+")


def open_webvid(request: Request) -> Opened:
    """A record for each video, with its text."""
    [file] = request.raw.need(WEBVID_CSV)
    return _opened(request, [file], _webvid_jobs, WEBVID_VIDEOS)


def _webvid_jobs(files: Sequence[RawFile], finder: VideoFinder, request: Request) -> Iterator[Job]:
    rows = _csv_rows(lines_of(files[0]))
    _, header = next(rows, ("", []))
    columns = [name.strip() for name in header]
    if missing := [name for name in ("videoid", "page_dir", "name") if name not in columns]:
        raise UserError(f"{files[0]} has no column {', '.join(missing)}; is it WebVid's file?")
    for place, row in rows:
        counts = Counts()
        if len(row) != len(columns):
            counts.leave_out("wrong columns", place, f"{len(row)} columns, not {len(columns)}")
            yield job_of(None, counts)
            continue
        values = dict(zip(columns, row, strict=True))
        name = values["videoid"].strip()
        path = finder.find(name, frozenset({f"webvid:{name}"}), counts, place, values["page_dir"].strip())
        video = None if path is None else Video(path, place, {"video_id": name}, whole=values["name"])
        yield job_of(video, counts)


def _csv_rows(lines: Iterator[tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """The rows of a CSV file, each with the place of its first line; a text in quotation marks may have several lines.

    Blank lines are passed over. A line whose mark is not closed is a row without columns.
    """
    ahead = deque[tuple[str, str]]()
    while True:
        ahead.extend(itertools.islice(lines, MOST_LINES - len(ahead)))
        if not ahead:
            return
        place, first = ahead[0]
        reader = csv.reader((line.replace("\r", " ") + "\n" for _, line in ahead), strict=True)
        try:
            row, used = next(reader, []), reader.line_num
        except csv.Error:
            row, used = [], 1
        for _ in range(used):
            ahead.popleft()
        if first.strip():
            yield place, row


def open_howto100m(request: Request) -> Opened:
    """Records of neighbouring clips, cut by the times of the transcript."""
    there = [file for name in HOWTO_CAPTIONS if (file := request.raw.find(name)) is not None]
    file = there[0] if there else request.raw.need(HOWTO_CAPTIONS[0])[0]
    return _opened(request, [file], _howto_jobs, HOWTO_VIDEOS)


def _howto_jobs(files: Sequence[RawFile], finder: VideoFinder, request: Request) -> Iterator[Job]:
    with files[0].open() as stream:
        for piece in json_pieces(stream, str(files[0])):
            place, counts = f"{files[0]}: {piece.key}", Counts()
            clips = _transcript(piece.value, counts, place)
            yield job_of(None if clips is None else _youtube(str(piece.key), clips, finder, counts, place), counts)


def _transcript(value: Any, counts: Counts, place: str) -> list[Clip] | None:
    """The clips of ``{"start": […], "end": […], "text": […]}``; None, and counted, if it is no such object."""
    try:
        starts, ends, texts = (value[key] for key in ("start", "end", "text"))
        return [
            Clip(float(start), float(end), _said(text)) for start, end, text in zip(starts, ends, texts, strict=True)
        ]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        counts.leave_out(
            "wrong type", place, f"no lists start, end and text of one length ({type(error).__name__}: {error})"
        )
        return None


def _said(text: Any) -> str:
    """The text of a clip, which may be a number; that of a clip without one may be ``NaN`` or null."""
    return "" if text is None or text != text else str(text)


def open_yt_temporal(request: Request) -> Opened:
    """Records of neighbouring clips, cut from the words of the transcript and their times."""
    files = [
        RawFile(path)
        for name, paths in sorted(request.raw.files.items())
        for path in paths
        if _YT_FILE.fullmatch(name) or (name.endswith(_LINES) and _is_in(_YT_FOLDER, path))
    ]
    # In a folder that was given for this set alone, the files may have any name.
    files = files or [
        RawFile(path) for root in request.raw.roots for path in sorted(root.iterdir()) if path.name.endswith(_LINES)
    ]
    if not files:
        raise UserError(
            f"{', '.join(map(str, request.raw.roots))}: yttemporal*.jsonl of YT-Temporal-180M is not there, plain or gzipped"
        )
    return _opened(request, files, _yt_jobs, YT_VIDEOS)


def _is_in(folder: re.Pattern[str], path: Path) -> bool:
    return any(folder.fullmatch(part) for part in path.parts[:-1])


def _yt_jobs(files: Sequence[RawFile], finder: VideoFinder, request: Request) -> Iterator[Job]:
    for place, line in itertools.chain.from_iterable(lines_of(file, LONGEST_VIDEO) for file in files):
        if not line.strip():
            continue
        counts = Counts()
        try:
            value = json.loads(line)
            name = str(value["info"]["id"])
            times = [(str(each["word"]), float(each["time"])) for each in value["subtitles"]]
            cleaned = " ".join(str(each["cleanasr"]) for each in value.get("denoised") or [])
            length = float(value["info"].get("duration") or 0)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
            counts.leave_out("wrong type", place, f"not as in YT-Temporal-180M ({type(error).__name__}: {error})")
            yield job_of(None, counts)
            continue
        words = with_times(cleaned.split(), times) if cleaned else times
        if cleaned and not words:
            counts.leave_out("transcript without times", place, repr(cleaned[:40]))
            yield job_of(None, counts)
            continue
        clips = clips_of_words(words, length, request.videos.words)
        yield job_of(_youtube(name, clips, finder, counts, place), counts)


def with_times(cleaned: Sequence[str], words: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """The words of a cleaned transcript with the times of the raw one: equal words have theirs, a word between has that of the
    equal one before it. Before the first, that of the first. None where no word is equal: their times are not known."""
    plain = [_WORD.sub("", word.lower()) for word in cleaned]
    said = [_WORD.sub("", word.lower()) for word, _ in words]
    blocks = difflib.SequenceMatcher(None, said, plain, autojunk=False).get_matching_blocks()
    known = {block.b + n: words[block.a + n][1] for block in blocks for n in range(block.size)}
    if not known:
        return []
    time, timed = known[min(known)], []
    for number, word in enumerate(cleaned):
        time = known.get(number, time)
        timed.append((word, time))
    return timed


def clips_of_words(words: Sequence[tuple[str, float]], length: float, most: int) -> list[Clip]:
    """Clips of ``most`` words: each ends where the next begins, the last with the video, whose ``length`` is in seconds (0: not
    known, then a second after its last word)."""
    parts = [words[start : start + most] for start in range(0, len(words), most)]
    begins = [part[0][1] for part in parts]
    ends = [*begins[1:], max(length, words[-1][1] + 1)] if words else []
    return [
        Clip(begin, following, " ".join(word for word, _ in part))
        for part, begin, following in zip(parts, begins, ends, strict=True)
    ]


def _youtube(name: str, clips: list[Clip], finder: VideoFinder, counts: Counts, place: str) -> Video | None:
    path = finder.find(name, frozenset({f"youtube:{name}"}), counts, place)
    return None if path is None else Video(path, place, {"video_id": name}, clips)


def _opened(
    request: Request,
    files: list[RawFile],
    jobs: Callable[[Sequence[RawFile], VideoFinder, Request], Iterator[Job]],
    total: int,
) -> Opened:
    finder = VideoFinder(request.raw, request.held_out, request.excluded)

    def work(_: Path) -> Work:
        convert = partial(video_records, request.videos)
        return Work(convert, jobs(files, finder, request), total, "video", deadly="unreadable video")

    return Opened(files, work, finder)


WEBVID = DataSet(
    title="WebVid-2.5M",
    home="maxbain.com/webvid-dataset",
    licence="withdrawn by its authors; videos under the terms of Shutterstock",
    files={
        WEBVID_CSV: "ids and texts",
        "<page_dir>/<videoid>.mp4": "videos, in any folders",
    },
    sizes={},
    products=(Product("webvid", "the frames of a video and its text", open_webvid),),
    required=(),
)

HOWTO100M = DataSet(
    title="HowTo100M",
    home="www.di.ens.fr/willow/research/howto100m",
    licence="none known; videos under the terms of YouTube",
    files={
        f"{HOWTO_CAPTIONS[0]}, or {HOWTO_CAPTIONS[1]}": "transcripts by video, with times",
        "<video_id>.mp4 (.webm, .mkv)": "videos, in any folders",
    },
    sizes={},
    products=(
        Product("howto100m", "the frames of neighbouring clips of a video, and what is said in each", open_howto100m),
    ),
    required=(),
)

YT_TEMPORAL = DataSet(
    title="YT-Temporal-180M",
    home="rowanzellers.com/merlot",
    licence="none known; videos under the terms of YouTube",
    files={
        "yttemporal*.jsonl": "a video a line: transcript, word by word with times, and cleaned; plain or gzipped",
        "<id>.mp4 (.webm, .mkv)": "videos, in any folders",
    },
    sizes={},
    products=(
        Product(
            "yttemporal", "the frames of neighbouring clips of a video, and what is said in each", open_yt_temporal
        ),
    ),
    required=(),
)
