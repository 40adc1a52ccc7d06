"""Where the videos of a data set lie, and MSR-VTT's own annotation files as rows."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path

from dataset.formats.annotations import Row, read_json, read_text
from dataset.media.video import LIST_SUFFIX, VideoSource, video_source
from dataset.records.schema import BrokenRecordError
from utils.errors import UserError

VIDEO_SUFFIXES = (".mp4", ".avi", ".webm", ".mkv", ".mov")
NUMBERED = ("video{}", "vid{}", "video_{}", "{}")
"""How files of MSR-VTT and MSVD are called by their number: the official ones, those of a mapping file, the released lists of
frames."""


class Videos:
    """The videos of a data set, by their path or by their id; each is looked for once.

    Args:
        folder: what paths start from.
        names: file names without their suffix by id, where they differ (MSVD).
    """

    def __init__(self, folder: Path, names: Mapping[str, str] | None = None):
        self.folder, self.names = folder, names or {}
        self._found: dict[tuple[str, ...], Path | None] = {}

    def of_row(self, row: Row) -> tuple[str, VideoSource]:
        """The id and the video of a row: under ``video``, a path or a list of pictures, or under ``video_id``.

        Raises:
            BrokenRecordError: "missing key", "wrong type" or "missing video".
        """
        value, identity = row.values.get("video"), row.values.get("video_id", row.values.get("image_id"))
        if identity is not None and not isinstance(identity, str | int):
            raise BrokenRecordError(
                "wrong type", row.place, f"video_id is {identity!r:.80}, neither a text nor a number"
            )
        if isinstance(value, str):
            # A folder of lists made of the files stands for theirs.
            path = self._find((value, os.path.splitext(value)[0] + LIST_SUFFIX))
            if path is None:
                raise self._missing(value, row.place)
            return str(value if identity is None else identity), VideoSource(row.place, path=path)
        if value is not None:
            return str(row.place if identity is None else identity), video_source(
                value, "video", row.place, self.folder
            )
        if identity is None:
            known = ", ".join(sorted(row.values)) or "none"
            raise BrokenRecordError("missing key", row.place, f"no 'video' or 'video_id'; keys: {known[:200]}")
        return str(identity), VideoSource(row.place, path=self.by_id(identity, row.place))

    def by_id(self, identity: str | int, place: str) -> Path:
        """The video file, list of frames or folder of a video that is known by a name or a number.

        Raises:
            BrokenRecordError: "missing video".
        """
        text = str(identity)
        digits = text.removeprefix("video_").removeprefix("video").removeprefix("vid")
        stems = [text, *(form.format(digits) for form in NUMBERED)] if digits.isdigit() else [text]
        stems = [self.names[stem] for stem in stems if stem in self.names] or stems
        endings = (*VIDEO_SUFFIXES, LIST_SUFFIX, "")
        path = self._find(tuple(stem + ending for stem in dict.fromkeys(stems) for ending in endings))
        if path is None:
            raise self._missing(f"{stems[0]} with any of {', '.join(endings[:-1])}", place)
        return path

    def _find(self, names: tuple[str, ...]) -> Path | None:
        """The first of ``names`` that is there. They are the key: a path "7" and an id 7 have different ones."""
        if names not in self._found:
            there = (self.folder / name for name in names)
            self._found[names] = next((path for path in there if _exists(path)), None)
        return self._found[names]

    def _missing(self, what: str, place: str) -> BrokenRecordError:
        return BrokenRecordError("missing video", place, f"{self.folder} has no {what[:200]}")


def is_video_info(path: str, key: str) -> bool:
    """Whether the file is one of MSR-VTT's: a CSV, or a JSON object with videos and sentences."""
    if path.endswith(".csv"):
        return True
    start = read_text(path, key)[:1].strip()
    if start != "{":
        return False
    try:
        content = read_json(path, key)
    except UserError:
        return False  # JSON lines; whatever else is wrong is told when the rows are read
    return isinstance(content, dict) and "sentences" in content


def msrvtt_rows(path: str, listed: str | None, key: str) -> list[Row | BrokenRecordError]:
    """A row of video_id and caption for each sentence.

    Args:
        path: ``MSRVTT_data.json`` (``{"videos", "sentences": [{"video_id", "caption"}]}``), or a CSV with the columns video_id
            and sentence (``MSRVTT_JSFUSION_test.csv``).
        listed: a CSV whose column video_id names the videos that are wanted; None: all.
        key: the config key of ``path``.

    Raises:
        UserError: with ``key``: a file cannot be read, lacks a column, or no sentence is of a listed video.
    """
    wanted = None if listed is None else {row["video_id"] for row in read_table(listed, ("video_id",), f"{key}.listed")}
    rows: list[Row | BrokenRecordError] = []
    if path.endswith(".csv"):
        table = read_table(path, ("video_id", "sentence"), key)
        rows = [
            Row({"video_id": row["video_id"], "caption": row["sentence"]}, f"{path}:{line}")
            for line, row in enumerate(table, start=2)
        ]
    else:
        sentences = read_json(path, key)["sentences"]
        if not isinstance(sentences, list):
            raise UserError(f"{key}: {path}: 'sentences' is no list, as MSR-VTT's is")
        for index, each in enumerate(sentences):
            place = f"{path}: sentences[{index}]"
            if isinstance(each, dict):
                rows.append(Row({name: each.get(name) for name in ("video_id", "caption")}, place))
            else:
                rows.append(BrokenRecordError("wrong type", place, f"{each!r:.80} is no object"))
    kept = [row for row in rows if wanted is None or not isinstance(row, Row) or str(row.values["video_id"]) in wanted]
    if not kept:
        raise UserError(f"{key}: {path} has no sentence" + (f" of a video that {listed} lists" if listed else ""))
    return kept


def read_table(path: str, columns: tuple[str, ...], key: str) -> list[dict[str, str]]:
    """The rows of a CSV file with a header.

    Raises:
        UserError: with the config ``key``: it cannot be read, is empty, or lacks a column.
    """
    reader = csv.DictReader(io.StringIO(read_text(path, key)))
    missing = [column for column in columns if column not in (reader.fieldnames or ())]
    if missing:
        there = ", ".join(reader.fieldnames or ()) or "none"
        raise UserError(f"{key}: {path} has no column {', '.join(missing)}; columns: {there[:200]}")
    rows = [row for row in reader if any(row.values())]
    if not rows:
        raise UserError(f"{key}: {path} has no row below its header")
    short = next((line for line, row in enumerate(rows, start=2) if None in (row[name] for name in columns)), None)
    if short is not None:
        raise UserError(f"{key}: {path}:{short}: a value is missing")
    return rows


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):  # longer than a name may be, or none at all
        return False
