"""Annotation files that fit into memory, as JSON arrays or JSON lines. They are checked before any work starts.

A split is read completely, and its broken rows are counted by kind of fault. If too many rows are broken, training does not
start, and a one-line message reports the counts with the first location of each kind. A split for evaluation must not have broken
rows.
"""

from __future__ import annotations

import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from batches.base import BrokenRecord
from dataset.broken import BrokenRecordError, broken_record, json_fault, printable, remedy_for
from dataset.media.encoded import FORMATS, image_fault
from dataset.media.sources import ImageSource
from dataset.records.forms import convert_hint, foreign_form
from dataset.records.schema import check_text, texts_in, texts_in_language
from dataset.text.processors import clean_caption
from utils.errors import UserError
from utils.events import BrokenReason, CountedRecords
from utils.files import expanded, path_remedy
from utils.files import read_text as read_regular

logger = logging.getLogger(__name__)

T = TypeVar("T")

_OFFICIAL = {
    ("images", "dataset"): ("Karpathy's file", "karpathy"),
    ("images", "annotations"): ("COCO's own file", None),
    ("annotations", "data_subtype"): ("VQA v2's file of answers", None),
    ("videos", "sentences"): ("MSR-VTT's file", "msrvtt"),
    ("questions", "data_subtype"): ("VQA v2's file of questions", "vqa2"),
    ("qas",): ("Visual Genome's file", "visual_genome"),
    ("sent", "img_id"): ("LXMERT's file of GQA", "gqa_lxmert"),
    ("img_path", "sentences"): ("a file of xFlickr&CO", "xflickrco"),
    ("left_img", "right_img"): ("a file of MaRVL", "marvl"),
    ("identifier", "left_url", "right_url"): ("NLVR2's file", "nlvr2"),
    ("gold_label", "sentence2"): ("a file of XVNLI", "xvnli"),
}
"""Descriptions and formats of official files, by the keys that identify them in the first record of a file."""


@dataclass(frozen=True)
class Row:
    """One entry of an annotation file, as read, and its location: ``file:line``, or ``file[index]`` in an array."""

    values: dict[str, Any]
    location: str

    def get(self, key: str, kind: type[T]) -> T:
        """Returns the value of ``key``, which must be of type ``kind``.

        Raises:
            BrokenRecordError: "missing key" or "wrong type"; "bad text" for the reasons listed in
                :func:`~dataset.records.schema.check_text`.
        """
        value = self.values.get(key)
        if value is None:
            known = ", ".join(sorted(self.values)) or "none"
            raise BrokenRecordError("missing key", f"no {key!r}; keys: {known[:200]}")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind in (int, float)):
            raise BrokenRecordError("wrong type", f"{key} is {value!r:.80}, not of type {kind.__name__}")
        if isinstance(value, str):
            check_text(value, key)
        return value


def read_json(path: str, key: str) -> Any:
    """Reads a JSON file.

    Raises:
        UserError: if the file does not exist or is not JSON. The message names the config ``key``.
    """
    try:
        return json.loads(read_text(path, key))
    except json.JSONDecodeError as error:
        lines = (
            "; if these are JSON lines, remove format, since the file is not an official one"
            if error.msg == "Extra data"
            else ""
        )
        raise UserError(f"{path}:{error.lineno}: not JSON: {error.msg}{lines}", where=key) from None
    except (ValueError, RecursionError) as error:  # an integer with thousands of digits; a thousand nested lists
        raise UserError(f"{path} cannot be read as JSON: {json_fault(error)}", where=key) from None


def read_rows(path: str, key: str) -> list[Row | BrokenRecord]:
    """Reads the rows of a JSON array of objects or of JSON lines. A line that is not an object is returned as an error.

    Raises:
        UserError: if the file does not exist, is empty, or has a different format. The message names the config ``key``.
    """
    text = read_text(path, key)
    if form := foreign_form(text[:100_000], arrays=True):
        raise UserError(f"{path} is {form}, not records", where=key, remedy=convert_hint(path))
    if text.lstrip().startswith("["):
        rows = [_row(value, f"{path}[{index}]") for index, value in enumerate(read_json(path, key))]
    else:
        # Not splitlines(), which also ends a line at separators that JSON allows inside a string.
        lines = enumerate(text.split("\n"), start=1)
        rows = [_parsed_line(line, f"{path}:{number}") for number, line in lines if line.strip()]
    if not rows:
        raise UserError(f"{path} is empty", where=key, remedy="it should contain a JSON array or JSON lines")
    return rows


def read_records(path: str, key: str, formats: Collection[str] = ()) -> list[Row | BrokenRecord]:
    """Reads the rows of a file in our own format; see :func:`read_rows`.

    Args:
        path: the file.
        key: config key of the file, to name in error messages.
        formats: official formats that the config supports. If the file has one of them, the error message suggests it.

    Raises:
        UserError: for the reasons listed in :func:`read_rows`, or if the file is an official file.
    """
    rows = read_rows(path, key)
    first = rows[0].values if isinstance(rows[0], Row) else {}
    if isinstance(rows[0], BrokenRecord) and rows[0].reason == "bad json":
        with suppress(UserError):  # a file that is not JSON at all is reported as broken records
            content = read_json(path, key)
            first = content if isinstance(content, dict) else {}
    for signs, (what, name) in _OFFICIAL.items():
        if all(sign in first for sign in signs):
            remedy = f"set format: {name}" if name in formats else "this task does not read it"
            remedy = convert_hint(path) if what == "COCO's own file" else remedy
            raise UserError(f"{path} is {what}, not records", where=key, remedy=remedy)
    return rows


def converted(rows: Iterable[Row | BrokenRecord], convert: Callable[[Row], Row]) -> Iterator[Row | BrokenRecord]:
    """Converts rows, for example to other key names. A row that cannot be converted is returned as an error."""
    for row in rows:
        if isinstance(row, BrokenRecord):
            yield row
            continue
        try:
            yield convert(row)
        except BrokenRecordError as error:
            yield broken_record(error, row.location)


def listed_rows(content: Any, name: str, path: str, key: str, what: str) -> list[Row | BrokenRecord]:
    """Returns the objects of the list ``name`` in a JSON object as rows.

    Args:
        content: the JSON object.
        name: key of the list.
        path: path of the file, to name in error messages.
        key: config key of the file, to name in error messages.
        what: the expected kind of file, to name in error messages.

    Raises:
        UserError: if there is no list ``name``, because this is then not the expected file. The message names the config ``key``.
    """
    values = content.get(name) if isinstance(content, dict) else None
    if not isinstance(values, list):
        raise UserError(f"{path} has no list {name!r}, so it is not {what}", where=key, remedy=f"see {key}.format")
    return [_row(value, f"{path}: {name}[{index}]") for index, value in enumerate(values)]


def parse_rows(
    rows: Iterable[Row | BrokenRecord], parse: Callable[[Row], T], key: str, max_broken: float, paths_from: str = ""
) -> list[T]:
    """Parses all rows with ``parse``, and returns the results without broken rows.

    Args:
        rows: the rows, and the rows that could not be read.
        parse: parses a row.
        key: config key of the split, to name in error messages.
        max_broken: maximum fraction of broken rows.
        paths_from: see :func:`~dataset.broken.remedy_for`.

    Raises:
        UserError: if more than the fraction ``max_broken`` of the rows is broken, or no row is left. The message is one line with
            the count and the first location of each kind.
    """
    parsed: list[T] = []
    broken: list[BrokenRecord] = []
    for row in rows:
        if isinstance(row, BrokenRecord):
            broken.append(row)
            continue
        try:
            parsed.append(parse(row))
        except Exception as error:  # a record must never stop a run
            broken.append(broken_record(error, row.location))
    if not broken:
        return parsed
    for unforeseen in {record.reason: record.traceback for record in reversed(broken) if record.traceback}.values():
        logger.warning("%s", unforeseen)
    total = len(parsed) + len(broken)
    reasons = Counter(record.reason for record in broken)
    first = {record.reason: record for record in reversed(broken)}
    counted = CountedRecords(
        key=key,
        read=total,
        broken=len(broken),
        reasons=[
            BrokenReason(reason=reason, count=count, place=first[reason].place, detail=first[reason].detail)
            for reason, count in reasons.most_common()
        ],
    )
    if len(broken) > max_broken * total or not parsed:
        can_be_raised = key.startswith("data.") and len(broken) <= total / 2
        remedy = remedy_for(reasons, "data.max_broken" if can_be_raised else None, paths_from)
        if key.startswith("evaluation."):
            remedy = f"a held-out set must not contain broken records; {remedy}"
        raise UserError(str(counted.model_copy(update={"key": None})), where=key, remedy=remedy)
    logger.warning(counted)
    return parsed


def check_unique(ids: Iterable[Any], file: str | Path, what: str, remedy: str = "correct the file") -> None:
    """Checks that the ids of the entries of a file are unique.

    Args:
        ids: the ids, in the order of the entries.
        file: the file, for the message.
        what: what it means that an id occurs twice, such as "two cases have the same id".
        remedy: what the user can do.

    Raises:
        UserError: if an id occurs twice. The message says which entries have it, counted from 1.
    """
    seen: dict[Any, int] = {}
    for number, each in enumerate(ids, 1):
        if (first := seen.setdefault(each, number)) != number:
            raise UserError(
                f"{what} {each!r} (numbers {first} and {number}, counted from 1)", where=file, remedy=remedy
            )


def check_splits(found: Sequence[str], wanted: Sequence[str], key: str, path: str) -> None:
    """Checks that at least one record belongs to each requested split.

    Args:
        found: split of each record.
        wanted: requested splits.
        key: config key, to name in error messages.
        path: path of the file, to name in error messages.

    Raises:
        UserError: if a requested split has no record. The message lists the splits in the file.
    """
    counts = Counter(found)
    missing = [name for name in wanted if not counts[name]]
    if missing:
        listed = ", ".join(f"{name} ({count})" for name, count in counts.items()) or "none"
        raise UserError(
            f"no record of {path} is in split {', '.join(missing)}", where=key, remedy=f"splits in the file: {listed}"
        )


class ImageFiles:
    """Looks up a data set's images by relative path. The file system is queried once for each image."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._there: dict[str, bool] = {}

    def find(self, name: str, location: str) -> ImageSource:
        """Returns the image with a relative path; raises :class:`BrokenRecordError` ("missing image") if it does not exist."""
        path = self.folder / name
        if not self.has(name):
            reason = "is not a regular file" if os.path.exists(path) else "does not exist"
            raise BrokenRecordError("missing image", f"{str(path)[:200]} {reason}")
        return ImageSource(location, path=path)

    def has(self, name: str) -> bool:
        """Returns True if the image exists."""
        if name not in self._there:
            # Path.is_file raises an error for a name that is too long, such as an image in base64.
            self._there[name] = os.path.isfile(self.folder / name)
        return self._there[name]

    def size(self, source: ImageSource) -> tuple[int, int]:
        """Reads the width and height of an image in pixels from its header.

        Raises:
            BrokenRecordError: "unreadable image".
        """
        assert source.path is not None
        try:
            with source.path.open("rb") as file, Image.open(file, formats=FORMATS) as header:
                return header.size
        except Exception as error:  # Pillow's readers raise many kinds of errors on malformed bytes
            raise BrokenRecordError("unreadable image", f"{source.path}: {image_fault(error)}") from None


def images_folder(images: str | None, annotations: str) -> Path:
    """Returns the folder that relative image paths start from: ``images``, or by default the annotation file's folder."""
    return expanded(images) if images is not None else expanded(annotations).parent


def texts_of(row: Row, key: str, language: str | None = None) -> list[str]:
    """Returns the texts under ``key`` (see :func:`~dataset.records.schema.texts_in`).

    If the texts are given by language, the texts in ``language`` are returned, or all texts if it is None.

    Raises:
        BrokenRecordError: "missing key" or "wrong type"; "empty text" if a text is empty.
    """
    texts: list[str] = []
    for found in texts_in(row.get(key, object), key):
        if not isinstance(found, str) and language is not None and language not in found:
            raise BrokenRecordError("missing key", f"{key} has no text in language {language!r}")
        texts += texts_in_language(found, language)
    for text in texts:
        try:
            clean_caption(text, 1)
        except ValueError:
            raise BrokenRecordError("empty text", f"{key} contains {text[:80]!r}, a text without words") from None
    return texts


def _parsed_line(line: str, location: str) -> Row | BrokenRecord:
    try:
        return _row(json.loads(line), location)
    except (ValueError, RecursionError) as error:
        return BrokenRecord(location, "bad json", json_fault(error))


def _row(value: Any, location: str) -> Row | BrokenRecord:
    if isinstance(value, dict):
        return Row(value, location)
    return BrokenRecord(printable(location), "wrong type", printable(f"{value!r:.80} is not an object"))


def read_text(path: str, key: str) -> str:
    """Reads a text file.

    Raises:
        UserError: if the file does not exist or cannot be read. The message names the config ``key``.
    """
    try:
        return read_regular(expanded(path), "utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path} does not exist", where=key, remedy=path_remedy(path)) from None
    except UnicodeDecodeError:
        raise UserError(
            f"{path} is not UTF-8 text", where=key, remedy="set it to an annotation file, or save the file as UTF-8"
        ) from None
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}", where=key, remedy="check the path") from None
