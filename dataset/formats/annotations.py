"""Annotation files that fit into memory, JSON arrays or JSON lines; checked before any work starts.

A split is read as a whole. What is wrong with its rows is counted by kind; too much of it is one line, with the first location
of each kind, before training. A split that is evaluated has to be whole.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from batches.base import BrokenRecord
from dataset.media.encoded import FORMATS, image_fault
from dataset.records.broken import broken_record, json_fault, remedy_for
from dataset.records.forms import convert_hint, foreign_form
from dataset.records.schema import BrokenRecordError, ImageSource, check_text, spoken, texts_in
from dataset.text.processors import clean_caption
from utils.errors import UserError
from utils.files import expanded
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
"""What a file is whose first record has all of these keys, and its format."""


@dataclass(frozen=True)
class Row:
    """One annotation as read, and where: ``file:line``, or ``file[index]`` in an array."""

    values: dict[str, Any]
    location: str

    def get(self, key: str, kind: type[T]) -> T:
        """The value of ``key``.

        Raises:
            BrokenRecordError: "missing key" or "wrong type"; "bad text" as :func:`~dataset.records.schema.check_text`.
        """
        value = self.values.get(key)
        if value is None:
            known = ", ".join(sorted(self.values)) or "none"
            raise BrokenRecordError("missing key", self.location, f"no {key!r}; keys: {known[:200]}")
        if not isinstance(value, kind) or (isinstance(value, bool) and kind in (int, float)):
            raise BrokenRecordError("wrong type", self.location, f"{key} is {value!r:.80}, not of type {kind.__name__}")
        if isinstance(value, str):
            check_text(value, key, self.location)
        return value


def read_json(path: str, key: str) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: with the config ``key``: no such file, or not JSON.
    """
    try:
        return json.loads(read_text(path, key))
    except json.JSONDecodeError as error:
        lines = "; if these are JSON lines, it is no official file: drop format" if error.msg == "Extra data" else ""
        raise UserError(f"{key}: {path}:{error.lineno}: not JSON: {error.msg}{lines}") from None
    except (ValueError, RecursionError) as error:  # an integer with thousands of digits; lists a thousand deep
        raise UserError(f"{key}: {path} cannot be read as JSON: {json_fault(error)}") from None


def read_rows(path: str, key: str) -> list[Row | BrokenRecordError]:
    """The rows of a JSON array of objects or of JSON lines; a line that is no object comes back as its error.

    Raises:
        UserError: with the config ``key``: no such file, empty, or neither format.
    """
    text = read_text(path, key)
    if form := foreign_form(text[:100_000], arrays=True):
        raise UserError(f"{key}: {path} is {form}, not records; {convert_hint(path)}")
    if text.lstrip().startswith("["):
        rows = [_row(value, f"{path}[{index}]") for index, value in enumerate(read_json(path, key))]
    else:
        # Not splitlines(), which also ends a line at separators that JSON allows inside a string.
        lines = enumerate(text.split("\n"), start=1)
        rows = [_parsed_line(line, f"{path}:{number}") for number, line in lines if line.strip()]
    if not rows:
        raise UserError(f"{key}: {path} is empty; it should hold a JSON array or JSON lines")
    return rows


def read_records(path: str, key: str, formats: Collection[str] = ()) -> list[Row | BrokenRecordError]:
    """The rows of a file of our own (:func:`read_rows`).

    Args:
        path: the file.
        key: the config key that names it.
        formats: the official ones that could be named in its place.

    Raises:
        UserError: with the config ``key``: as :func:`read_rows`, or it is an official file.
    """
    rows = read_rows(path, key)
    first = rows[0].values if isinstance(rows[0], Row) else {}
    if isinstance(rows[0], BrokenRecordError) and rows[0].kind == "bad json":
        with suppress(UserError):  # what is no JSON at all is told as broken records
            content = read_json(path, key)
            first = content if isinstance(content, dict) else {}
    for signs, (what, name) in _OFFICIAL.items():
        if all(sign in first for sign in signs):
            remedy = f"set format: {name}" if name in formats else "this task does not read it"
            remedy = convert_hint(path) if what == "COCO's own file" else remedy
            raise UserError(f"{key}: {path} is {what}, not records; {remedy}")
    return rows


def converted(
    rows: Iterable[Row | BrokenRecordError], convert: Callable[[Row], Row]
) -> Iterator[Row | BrokenRecordError]:
    """The rows under other names; one that cannot be converted becomes its error."""
    for row in rows:
        try:
            yield convert(row) if isinstance(row, Row) else row
        except BrokenRecordError as error:
            yield error


def listed_rows(content: Any, name: str, path: str, key: str, what: str) -> list[Row | BrokenRecordError]:
    """The objects of the list ``name`` of a JSON object.

    Raises:
        UserError: with the config ``key``: there is no such list, so that the file is not ``what`` it should be.
    """
    values = content.get(name) if isinstance(content, dict) else None
    if not isinstance(values, list):
        raise UserError(f"{key}: {path} has no list {name!r}, as {what} has; see {key}.format")
    return [_row(value, f"{path}: {name}[{index}]") for index, value in enumerate(values)]


def parse_rows(
    rows: Iterable[Row | BrokenRecordError], parse: Callable[[Row], T], key: str, max_broken: float
) -> list[T]:
    """``parse`` of every row that it takes.

    Raises:
        UserError: if more than the share ``max_broken`` of the rows are broken, or none is left: one line that counts them by
            kind, with the first location of each.
    """
    parsed: list[T] = []
    broken: list[BrokenRecord] = []
    for row in rows:
        try:
            if isinstance(row, BrokenRecordError):
                raise row
            parsed.append(parse(row))
        except Exception as error:  # nothing in a record ends a run
            broken.append(broken_record(error, row.location))
    if not broken:
        return parsed
    for unforeseen in {record.kind: record.traceback for record in reversed(broken) if record.traceback}.values():
        logger.warning("%s", unforeseen)
    total = len(parsed) + len(broken)
    kinds = Counter(record.kind for record in broken)
    first = {record.kind: record for record in reversed(broken)}
    counts = "; ".join(f"{n} {kind} ({first[kind].location}: {first[kind].message})" for kind, n in kinds.most_common())
    line = f"{key}: {len(broken)} of {total} records are broken: {counts}"
    if len(broken) > max_broken * total or not parsed:
        remedy = remedy_for(kinds, "data.max_broken" if len(broken) <= total / 2 else None)
        if key.startswith("evaluation."):
            remedy = "a held-out set has to be whole"
        raise UserError(f"{line}; {remedy}")
    logger.warning("%s; they are left out of the run", line)
    return parsed


def wanted_splits(found: Sequence[str], wanted: Sequence[str], key: str, path: str) -> None:
    """Check that every wanted split names a record.

    Raises:
        UserError: naming the splits that there are.
    """
    counts = Counter(found)
    missing = [name for name in wanted if not counts[name]]
    if missing:
        there = ", ".join(f"{name} ({count})" for name, count in counts.items()) or "none"
        raise UserError(f"{key}: no record of {path} is in split {', '.join(missing)}; splits there: {there}")


class ImageFiles:
    """The images of a data set by their relative path; each is looked for once."""

    def __init__(self, folder: Path):
        self.folder = folder
        self._there: dict[str, bool] = {}

    def find(self, name: str, location: str) -> ImageSource:
        """Raises :class:`BrokenRecordError` ("missing image")."""
        path = self.folder / name
        if not self.has(name):
            reason = "is no regular file" if _exists(path) else "does not exist"
            raise BrokenRecordError("missing image", location, f"{str(path)[:200]} {reason}")
        return ImageSource(location, path=path)

    def has(self, name: str) -> bool:
        """Whether there is such an image."""
        if name not in self._there:
            self._there[name] = _is_file(self.folder / name)
        return self._there[name]

    def size(self, source: ImageSource) -> tuple[int, int]:
        """Width and height in pixels, from the header alone.

        Raises:
            BrokenRecordError: "unreadable image".
        """
        assert source.path is not None
        try:
            with source.path.open("rb") as file, Image.open(file, formats=FORMATS) as header:
                return header.size
        except Exception as error:  # Pillow's readers raise many kinds on malformed bytes
            raise BrokenRecordError(
                "unreadable image", source.location, f"{source.path}: {image_fault(error)}"
            ) from None


def images_folder(images: str | None, annotations: str) -> Path:
    """Where relative image paths start: ``images``, or the folder of the annotation file."""
    return expanded(images) if images is not None else expanded(annotations).parent


def texts_of(row: Row, key: str, language: str | None = None) -> list[str]:
    """The texts under ``key`` (:func:`~dataset.records.schema.texts_in`), none of them empty; by language, those in
    ``language``, or with None all.

    Raises:
        BrokenRecordError: "missing key", "wrong type" or "empty text".
    """
    texts: list[str] = []
    for found in texts_in(row.get(key, object), key, row.location):
        if not isinstance(found, str) and language is not None and language not in found:
            raise BrokenRecordError("missing key", row.location, f"{key} has no text in language {language!r}")
        texts += spoken(found, language)
    for text in texts:
        try:
            clean_caption(text, 1)
        except ValueError:
            raise BrokenRecordError(
                "empty text", row.location, f"{key} holds {text[:80]!r}, a text without words"
            ) from None
    return texts


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except (OSError, ValueError):  # longer than a name may be, as an image in base64 is; or no name at all
        return False


def _exists(path: Path) -> bool:
    try:
        return path.exists()
    except (OSError, ValueError):
        return False


def _parsed_line(line: str, location: str) -> Row | BrokenRecordError:
    try:
        return _row(json.loads(line), location)
    except (ValueError, RecursionError) as error:
        return BrokenRecordError("bad json", location, json_fault(error))


def _row(value: Any, location: str) -> Row | BrokenRecordError:
    if isinstance(value, dict):
        return Row(value, location)
    return BrokenRecordError("wrong type", location, f"{value!r:.80} is no object")


def read_text(path: str, key: str) -> str:
    """The content of a text file.

    Raises:
        UserError: with the config ``key``: there is none, or it cannot be read.
    """
    try:
        return read_regular(expanded(path), "utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{key}: {path} does not exist; check the path (it is relative to {Path.cwd()})") from None
    except UnicodeDecodeError:
        raise UserError(f"{key}: {path} is not UTF-8 text; give a file of annotations, or save it as UTF-8") from None
    except OSError as error:
        raise UserError(f"{key}: {path} cannot be read: {error.strerror}; check the path") from None
