"""The official files of MSR-VTT: ``MSRVTT_data.json``, and lists of pairs such as ``MSRVTT_JSFUSION_test.csv``."""

from __future__ import annotations

import re

from batches.base import BrokenRecord
from dataset.formats.annotations import Row, listed_rows, read_json, read_text
from dataset.formats.csv_rows import CsvFile
from utils.errors import UserError

_YOUTUBE = re.compile(r"(?:[?&]v=|youtu\.be/|/embed/)([\w-]{11})")


def split_of_clip(row: Row) -> tuple[str, str | None]:
    """Returns the split of an entry of ``videos``, and the id of its video on YouTube; None if its URL has no id.

    Raises:
        BrokenRecordError: if the entry has no split or no URL.
    """
    found = _YOUTUBE.search(row.get("url", str))
    return row.get("split", str), found[1] if found else None


def captioned_rows(path: str, listed: str | None, key: str) -> list[Row | BrokenRecord]:
    """Returns a row of video_id and caption for each sentence.

    Args:
        path: ``MSRVTT_data.json`` (``{"videos", "sentences": [{"video_id", "caption"}]}``), or a CSV file with the columns
            video_id and sentence (``MSRVTT_JSFUSION_test.csv``).
        listed: a CSV file whose column video_id lists the videos to read; if None, all videos are read.
        key: config key of ``path``, to name in error messages.

    Raises:
        UserError: if a file cannot be read or lacks a column, or no sentence belongs to a listed video. The message names
            ``key``.
    """
    wanted = (
        None
        if listed is None
        else {row["video_id"] for row in read_table(listed, ("video_id",), f"{key}.listed").values()}
    )
    rows: list[Row | BrokenRecord] = []
    if path.endswith(".csv"):
        table = read_table(path, ("video_id", "sentence"), key)
        rows = [
            Row({"video_id": row["video_id"], "caption": row["sentence"]}, location) for location, row in table.items()
        ]
    else:
        rows = listed_rows(read_json(path, key), "sentences", path, key, "MSR-VTT's file")
    kept = [
        row for row in rows if wanted is None or not isinstance(row, Row) or str(row.values.get("video_id")) in wanted
    ]
    if not kept:
        raise UserError(f"{path} has no sentence" + (f" of a video that {listed} lists" if listed else ""), where=key)
    return kept


def read_table(path: str, columns: tuple[str, ...], key: str) -> dict[str, dict[str, str]]:
    """Reads a CSV file with a header, and returns each row under its location, ``file:line``.

    Raises:
        UserError: if the file cannot be read, is empty, is not valid CSV, lacks a column, or has a row with more or fewer values
            than the header. The message names the config ``key``.
    """
    file = CsvFile(read_text(path, key), f"{key}: {path}")
    missing = [column for column in columns if column not in file.columns]
    if missing:
        raise UserError(
            f"{path} has no column {', '.join(missing)}", where=key, remedy=f"columns: {', '.join(file.columns)[:200]}"
        )
    rows: dict[str, dict[str, str]] = {}
    for location, row in file:
        if isinstance(row, BrokenRecord):
            raise UserError(f"{row.detail}", where=location, remedy="correct the row")
        rows[location.removeprefix(f"{key}: ")] = row
    if not rows:
        raise UserError(f"{path} has a header but no rows", where=key)
    return rows
