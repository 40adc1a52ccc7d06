"""WebVid, HowTo100M and YT-Temporal-180M: records of videos with texts, as lists of frames."""

from __future__ import annotations

import csv
import difflib
import itertools
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from batches.base import BrokenRecord
from dataset.prepare.declarations import AnnotatedMedia, DataSet, Files, Records, Source, files_named
from dataset.prepare.finders import MediaNames
from dataset.prepare.json_pieces import official_pieces
from dataset.prepare.options import Options
from dataset.prepare.raw_folder import RawFile, RawFolder
from dataset.prepare.video_clips import Clip, Video, video_records
from utils.errors import UserError
from utils.numerals import plain_number

Videos = Iterator[AnnotatedMedia | BrokenRecord]

WEBVID_CSV = "results_2M_train.csv"
HOWTO_CAPTIONS = ("caption.json", "raw_caption.json")
"""Names of the transcript files: cleaned by the authors, and raw. The first file that exists is used."""

WEBVID_VIDEOS, HOWTO_VIDEOS, YT_VIDEOS = 2_500_000, 1_200_000, 6_000_000
"""Approximate numbers of videos in the official files, for the progress bar."""

MAX_LINES = 20
"""Maximum number of lines in a quoted text. More lines indicate that a quotation mark is not closed."""

LONGEST_VIDEO = 1 << 26
"""Maximum size in bytes of a line in YT-Temporal, which contains all words of a video, some with their times."""

_YT_FILE = re.compile(r"yt-?_?temporal.*\.jsonl(\.gz)?", re.IGNORECASE)
_YT_FOLDER = re.compile(r"yt-?_?temporal.*", re.IGNORECASE)
_LINES = (".jsonl", ".json", ".jsonl.gz")
_WORD = re.compile(r"\W+")


def _read(
    videos: Callable[[Files, Options], Videos], total: int, files: Files, scratch: Path, options: Options
) -> Source:
    return Source(videos(files, options), partial(video_records, options.videos), total)


def _webvid(files: Files, options: Options) -> Videos:
    """Yields the videos with their texts."""
    file = files["texts"]
    rows = _csv_rows(file.lines())
    _, header = next(rows, ("", []))
    columns = [name.strip() for name in header]
    if missing := [name for name in ("videoid", "page_dir", "name") if name not in columns]:
        raise UserError(f"{file} has no column {', '.join(missing)}", remedy="is it WebVid's file?")
    for location, row in rows:
        if len(row) != len(columns):
            yield BrokenRecord(location, "wrong columns", f"{len(row)} columns, not {len(columns)}")
            continue
        values = dict(zip(columns, row, strict=True))
        name = values["videoid"].strip()
        media = MediaNames(frozenset({f"webvid:{name}"}), [name], f"{values['page_dir'].strip()}/{name}.mp4")
        yield AnnotatedMedia(media, location, Video({"video_id": name}, text=values["name"]))


def _csv_rows(lines: Iterator[tuple[str, str]]) -> Iterator[tuple[str, list[str]]]:
    """Yields the rows of a CSV file, each with the location of its first line. A text in quotation marks may have several lines.

    Blank lines are skipped. A line with an unclosed quotation mark is a row without columns.
    """
    ahead = deque[tuple[str, str]]()
    while True:
        ahead.extend(itertools.islice(lines, MAX_LINES - len(ahead)))
        if not ahead:
            return
        location, first = ahead[0]
        reader = csv.reader((line.replace("\r", " ") + "\n" for _, line in ahead), strict=True)
        try:
            row, used = next(reader, []), reader.line_num
        except csv.Error:
            row, used = [], 1
        for _ in range(used):
            ahead.popleft()
        if first.strip():
            yield location, row


def _howto(files: Files, options: Options) -> Videos:
    """Yields the videos, cut into clips according to the times in the transcript."""
    file = files["transcripts"]
    with official_pieces(file, "HowTo100M") as pieces:
        for piece in pieces:
            location = piece.location
            try:
                starts, ends, texts = (piece.value[key] for key in ("start", "end", "text"))
                clips = [
                    Clip(plain_number(start), plain_number(end), _clip_text(text))
                    for start, end, text in zip(starts, ends, texts, strict=True)
                ]
            except (KeyError, TypeError, ValueError, OverflowError) as error:
                detail = f"start, end and text are not lists of the same length ({type(error).__name__}: {error})"
                yield BrokenRecord(location, "wrong type", detail)
            else:
                yield _of_youtube(str(piece.key), clips, location)


def _clip_text(text: Any) -> str:
    """Returns the text of a clip, which may also be a number. A missing text is ``NaN`` or null."""
    return "" if text is None or text != text else str(text)


def _yt_files(raw: RawFolder) -> Files:
    paths = [
        path
        for name, paths in sorted(raw.files.items())
        for path in paths
        if _YT_FILE.fullmatch(name) or (name.endswith(_LINES) and _is_in(_YT_FOLDER, path))
    ]
    # In a folder that is only for this set, the files may have any name.
    paths = paths or [path for root in raw.roots for path in sorted(root.iterdir()) if path.name.endswith(_LINES)]
    if not paths:
        roots = ", ".join(map(str, raw.roots))
        raise UserError("yttemporal*.jsonl of YT-Temporal-180M does not exist, plain or gzipped", where=roots)
    return {os.path.relpath(path, raw.roots[0]): RawFile(path) for path in paths}


def _is_in(folder: re.Pattern[str], path: Path) -> bool:
    return any(folder.fullmatch(part) for part in path.parts[:-1])


def _yt_temporal(files: Files, options: Options) -> Videos:
    """Yields the videos with clips, which are built from the words of the transcript and their times."""
    for location, line in itertools.chain.from_iterable(file.lines(LONGEST_VIDEO) for file in files.values()):
        if not line.strip():
            continue
        try:
            value = json.loads(line)
            name = str(value["info"]["id"])
            times = [(str(each["word"]), plain_number(each["time"])) for each in value["subtitles"]]
            cleaned = " ".join(str(each["cleanasr"]) for each in value.get("denoised") or [])
            length = plain_number(value["info"].get("duration") or 0)
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            detail = f"the line does not have the form of YT-Temporal-180M ({type(error).__name__}: {error})"
            yield BrokenRecord(location, "wrong type", detail)
            continue
        words = with_times(cleaned.split(), times) if cleaned else times
        if cleaned and not words:
            yield BrokenRecord(location, "transcript without times", repr(cleaned[:40]))
        else:
            yield _of_youtube(name, clips_of_words(words, length, options.videos.words), location)


def with_times(cleaned: Sequence[str], words: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
    """Returns the words of a cleaned transcript with times from the raw transcript.

    A word that is matched in the raw transcript has the time of the raw word. Other words have the time of the last matched word
    before them, or of the first matched word. If no word is matched, the times are unknown, and the list is empty.
    """
    plain = [_WORD.sub("", word.lower()) for word in cleaned]
    raw_words = [_WORD.sub("", word.lower()) for word, _ in words]
    blocks = difflib.SequenceMatcher(None, raw_words, plain, autojunk=False).get_matching_blocks()
    known = {block.b + n: words[block.a + n][1] for block in blocks for n in range(block.size)}
    if not known:
        return []
    time, timed = known[min(known)], []
    for index, word in enumerate(cleaned):
        time = known.get(index, time)
        timed.append((word, time))
    return timed


def clips_of_words(words: Sequence[tuple[str, float]], length: float, max_words: int) -> list[Clip]:
    """Returns clips of ``max_words`` words. Each clip ends where the next begins. The last clip ends with the video, whose
    ``length`` is given in seconds; if the length is unknown (0), it ends a second after the last word."""
    parts = [words[start : start + max_words] for start in range(0, len(words), max_words)]
    begins = [part[0][1] for part in parts]
    ends = [*begins[1:], max(length, words[-1][1] + 1)] if words else []
    return [
        Clip(begin, following, " ".join(word for word, _ in part))
        for part, begin, following in zip(parts, begins, ends, strict=True)
    ]


def _of_youtube(name: str, clips: list[Clip], location: str) -> AnnotatedMedia:
    media = MediaNames(frozenset({f"youtube:{name}"}), [name], f"{name}.mp4")
    return AnnotatedMedia(media, location, Video({"video_id": name}, clips))


WEBVID = DataSet(
    name="webvid",
    title="WebVid-2.5M",
    home="maxbain.com/webvid-dataset",
    licence="withdrawn by its authors; videos under the terms of Shutterstock",
    files={
        WEBVID_CSV: "ids and texts",
        "<page_dir>/<videoid>.mp4": "videos, in any folders",
    },
    sizes={},
    makes=(
        Records(
            "webvid",
            "the frames of a video and its text",
            files=files_named(texts=WEBVID_CSV),
            read=partial(_read, _webvid, WEBVID_VIDEOS),
            image_files=None,
            batch=1,
        ),
    ),
    group="videos",
    paper="2.5M clips",
)

HOWTO100M = DataSet(
    name="howto100m",
    title="HowTo100M",
    home="www.di.ens.fr/willow/research/howto100m",
    licence="none known; videos under the terms of YouTube",
    files={
        f"{HOWTO_CAPTIONS[0]}, or {HOWTO_CAPTIONS[1]}": "transcripts by video, with times",
        "<video_id>.mp4 (.webm, .mkv)": "videos, in any folders",
    },
    sizes={},
    makes=(
        Records(
            "howto100m",
            "the frames of neighbouring clips of a video, and what is said in each",
            files=files_named(transcripts=HOWTO_CAPTIONS),
            read=partial(_read, _howto, HOWTO_VIDEOS),
            image_files=None,
            batch=1,
        ),
    ),
    group="videos",
    paper="1.7M clips, filtered",
)

YT_TEMPORAL = DataSet(
    name="yt_temporal",
    title="YT-Temporal-180M",
    home="rowanzellers.com/merlot",
    licence="none known; videos under the terms of YouTube",
    files={
        "yttemporal*.jsonl": "one video per line: transcript with word times, and cleaned transcript; plain or gzipped",
        "<id>.mp4 (.webm, .mkv)": "videos, in any folders",
    },
    sizes={},
    makes=(
        Records(
            "yttemporal",
            "the frames of neighbouring clips of a video, and what is said in each",
            files=_yt_files,
            read=partial(_read, _yt_temporal, YT_VIDEOS),
            image_files=None,
            batch=1,
        ),
    ),
    group="videos",
    paper="5.3M clips, filtered",
)
