"""``run.py prepare own``: converts your own CSV file, JSON array, JSON lines or COCO file to records (docs/own_data.md)."""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from batches.base import BrokenRecord
from dataset.broken import BrokenRecordError, broken_record
from dataset.files import RECORD_BYTES
from dataset.formats.annotations import ImageFiles, Row, listed_rows, read_rows, read_text, texts_of
from dataset.formats.csv_rows import CsvFile
from dataset.image_ids import ID_KEYS, id_number
from dataset.prepare.folders import tally, write_records
from dataset.records.box_form import look_like_corners
from dataset.records.boxes import are_relative, place_box
from dataset.records.forms import foreign_form
from dataset.records.schema import element_in
from dataset.tasks.nlvr import LABELS
from dataset.tasks.questions import question_of
from utils.errors import UserError
from utils.files import parse_json, replacing
from utils.flags import OutputFile
from utils.numerals import plain_number
from utils.printing import counted

CORNERS, XYWH = ("x1", "y1", "x2", "y2"), ("x", "y", "width", "height")
KEYS = {"image", "image2", "images", "image_id", "caption", "elems", "bb", "attributes", "grain", "sentence", "label"}
KEYS |= {"question", "answer", "answer_type", "question_id"}
OTHER_TEXTS = ("long_caption", "hard_negatives")
PHOTOGRAPH_KEYS = (*ID_KEYS, "url")
"""Keys that identify the photograph of a record with one image; `run.py leaks` compares them."""
KEYS |= {*OTHER_TEXTS, *PHOTOGRAPH_KEYS}
LABELLED = {label for classes in LABELS.values() for label in classes}
Rows = Iterable[Row | BrokenRecord]


class OwnFile(NamedTuple):
    """A file to convert: its format, "CSV", "COCO" or "JSON", its rows, and the columns of a CSV file."""

    form: str
    rows: Rows
    columns: Sequence[str] = ()


def read_any(path: Path) -> OwnFile:
    """Opens a file of any format.

    Raises:
        UserError: the file cannot be read, is too large, is empty, or has a different format. Iterating over the rows of a CSV
            file raises it if a quotation mark is not closed.
    """
    name = str(path)
    if path.is_file() and path.stat().st_size > RECORD_BYTES:
        raise UserError(f"{path} has more than {RECORD_BYTES:,} bytes (dataset/files.py)", remedy="split it")
    text = read_text(name, "prepare own")
    if path.suffix in (".csv", ".tsv") or (foreign_form(text[:100_000], arrays=True) is not None):
        file = CsvFile(text, name)
        if len(file.columns) < 2:
            raise UserError(
                f"the header is {file.columns[0]}", where=f"{name}:1", remedy="it should name at least two columns"
            )
        return OwnFile("CSV", _csv_rows(file), file.columns)
    if text.lstrip().startswith("{"):
        try:
            content = parse_json(text)
        except ValueError:  # JSON lines
            content = {}
        if isinstance(content.get("images"), list) and isinstance(content.get("annotations"), list):
            return OwnFile("COCO", _coco_rows(content, name))
    return OwnFile("JSON", read_rows(name, "prepare own"))


def _csv_rows(file: CsvFile) -> Rows:
    for location, values in file:
        if isinstance(values, BrokenRecord):
            yield values
        else:
            yield Row({key: value for key, value in values.items() if value.strip()}, location)


def _coco_rows(content: dict[str, Any], name: str) -> Rows:
    """Yields a row for each annotation, with the image file and a caption: the annotation's caption, or the name of its
    category."""

    def by_id(key: str) -> dict[Any, dict[str, Any]]:
        listed = listed_rows(content, key, name, "prepare own", "COCO's file") if key in content else []
        return {row.values.get("id"): row.values for row in listed if isinstance(row, Row)}

    images, categories = by_id("images"), by_id("categories")
    for row in listed_rows(content, "annotations", name, "prepare own", "COCO's file"):
        values = row.values if isinstance(row, Row) else {}
        image, category_id = images.get(values.get("image_id"), {}), values.get("category_id")
        caption = values.get("caption", categories.get(category_id, {}).get("name") if "bbox" in values else None)
        if isinstance(row, BrokenRecord):
            yield row
        elif values.get("iscrowd"):
            yield BrokenRecord(row.location, "crowd", "the box is around a crowd of objects")
        elif image.get("file_name") is None or caption is None:
            yield BrokenRecord(row.location, "missing key", "it needs an image, and a caption or a box with a category")
        else:
            box = {"bb": values["bbox"]} if "bbox" in values else {"image_id": values["image_id"]}
            yield Row({"image": image["file_name"], "caption": caption, **box}, row.location)


class Converter:
    """Converts the rows of a file to records.

    Args:
        rows: the rows, with the column names that this module knows.
        images: finds the images.
        out: folder of the output file; paths in records are relative to it.
        boxes: form of the boxes in ``bb``, "corners" or "xywh". If boxes are given in columns, the column names determine their
            form.
    """

    def __init__(self, rows: Sequence[Row | BrokenRecord], images: ImageFiles, out: Path, boxes: str | None):
        self.rows, self.images, self.out, self.boxes = rows, images, out, boxes
        self.broken: list[tuple[BrokenRecord, dict[str, Any]]] = []
        self._boxes: list[tuple[float, ...]] = []
        self._size_of: dict[str, tuple[int, int]] = {}
        self._sizes: list[tuple[int, int]] = []
        self._ids_of: dict[str, dict[str, Any]] = {}
        self._image_of: dict[str, str] = {}
        keys = {key for row in rows if isinstance(row, Row) for key in row.values}
        self.answered = "answer" in keys
        self._columns = next((columns for columns in (CORNERS, XYWH) if keys.issuperset(columns)), None)
        if self._columns is not None:
            named = "corners" if self._columns == CORNERS else "xywh"
            if boxes not in (None, named):
                raise UserError(
                    f"--boxes {boxes} contradicts the columns {', '.join(self._columns)}", remedy="remove the flag"
                )
            self.boxes = named
        self._nested = "elems" in keys
        has_boxes = bool({"elems", "bb"} & keys) or self._columns is not None
        kinds = {"questions": "question" in keys, "statements": "sentence" in keys, "regions": has_boxes}
        kinds |= {"captions": "caption" in keys}
        self.kind = next((kind for kind, found in kinds.items() if found), "")
        if not self.kind:
            listed = ", ".join(sorted(map(str, keys)))[:200] or "none"
            raise UserError(
                "the rows need one of the columns question, sentence, caption, or the columns x1, y1, x2, y2; found "
                f"columns: {listed}",
                remedy="see --help, and --rename OLD=NEW",
            )
        unused = set(PHOTOGRAPH_KEYS) if self.kind == "statements" else set()
        self.dropped = sorted(keys - (KEYS - unused) - {*CORNERS, *XYWH})

    def records(self) -> list[dict[str, Any]]:
        """Returns the records. Unusable rows and boxes are added to :attr:`broken`.

        Raises:
            UserError: all boxes lie within 0 and 1, or boxes look like corners but are read as x, y, width, height.
        """
        made: dict[Any, dict[str, Any]] = {}
        for index, row in enumerate(self.rows):
            if isinstance(row, BrokenRecord):
                self.broken.append((row, {}))
                continue
            try:
                if self.kind == "regions" and self._nested:
                    made[index] = self._record_of_regions(row)
                elif self.kind == "regions":
                    self._add_box(row, made)
                elif self.kind == "captions":
                    self._add_captions(row, made)
                else:
                    made[index] = getattr(self, f"_{self.kind}")(row)
            except BrokenRecordError as error:
                self.broken.append((broken_record(error, row.location), row.values))
        boxes = np.array(self._boxes)
        if are_relative(boxes):
            raise UserError(
                f"all {len(boxes):,} boxes lie within 0 and 1",
                remedy="multiply x and width by the image's width, y and height by its height",
            )
        if self.boxes != "corners" and look_like_corners(boxes, np.array(self._sizes)):
            raise UserError(
                f"boxes look like x1, y1, x2, y2, such as {boxes[0].tolist()}",
                remedy=f"pass --boxes corners, or call their columns {', '.join(CORNERS)}",
            )
        for record in made.values() if self.kind == "captions" else ():
            if len(record["caption"]) == 1:
                (record["caption"],) = record["caption"]
            record.update(self._ids_of[record["image"]])
        return list(made.values())

    def _image(self, row: Row, key: str = "image") -> str:
        source = self.images.find(row.get(key, str), row.location)
        return os.path.relpath(os.path.abspath(source.path or ""), os.path.abspath(self.out))

    def _add_captions(self, row: Row, made: dict[Any, dict[str, Any]]) -> None:
        """Adds the captions of a row to the record of its image, unless the rows differ in their other texts."""
        for key in ("caption", *(key for key in OTHER_TEXTS if row.values.get(key) is not None)):
            texts_of(row, key)
        image, others = self._image(row), _kept(row, *OTHER_TEXTS)
        self._add_ids(image, {**_kept(row, "image_id"), **_photograph(row)})
        record = made.setdefault((image, json.dumps(others)), {"image": image, "caption": [], **others})
        captions = row.values["caption"]
        record["caption"] += captions if isinstance(captions, list) else [captions]

    def _add_ids(self, image: str, ids: dict[str, Any]) -> None:
        """Adds the ids in a row to the ids of its image.

        Raises:
            BrokenRecordError: if an earlier row has another id of the image, or another image with its ``image_id``.
        """
        known = self._ids_of.setdefault(image, {})
        for key, value in ids.items():
            if str(known.get(key, value)) != str(value):
                raise BrokenRecordError(
                    "wrong id", f"{key} is {value}, but {known[key]} in an earlier row of the same image"
                )
        other = self._image_of.setdefault(str(ids["image_id"]), image) if "image_id" in ids else image
        if other != image:
            raise BrokenRecordError("wrong id", f"image_id {ids['image_id']} is also the id of {other}")
        known.update({key: value for key, value in ids.items() if key not in known})

    def _questions(self, row: Row) -> dict[str, Any]:
        question_of(row, self.images.find(row.get("image", str), row.location), answered=self.answered)
        texts = _kept(row, "question", "answer", "answer_type", "question_id")
        return {"image": self._image(row), **texts, **_photograph(row)}

    def _statements(self, row: Row) -> dict[str, Any]:
        texts_of(row, "sentence")
        if str(row.get("label", object)).lower() not in LABELLED:
            raise BrokenRecordError("wrong type", f"label is {row.values['label']!r:.40}; known: {sorted(LABELLED)}")
        names = row.values.get("images") or [row.values[key] for key in ("image", "image2") if key in row.values]
        if not isinstance(names, list) or len(names) not in (1, 2):
            raise BrokenRecordError("wrong type", f"{names!r:.80} are not one or two images")
        images = [self._image(Row({"image": name}, row.location)) for name in names]
        return {"images": images, **_kept(row, "sentence", "label")}

    def _record_of_regions(self, row: Row) -> dict[str, Any]:
        """Returns the record of a row that lists its phrases in ``elems``, or has only texts about the whole image. Unusable
        elements are added to :attr:`broken`."""
        record: dict[str, Any] = {"image": self._image(row), **_kept(row, "image_id"), **_photograph(row)}
        for key in ("caption", *OTHER_TEXTS):
            if row.values.get(key) not in (None, []):
                with self._keeping_broken(row.values, row.location):
                    texts_of(row, key)
                    record[key] = row.values[key]
        listed = row.values.get("elems")
        if listed is not None and not isinstance(listed, list):
            raise BrokenRecordError("wrong type", f"elems is {str(listed)[:40]}, not a list")
        elements = []
        for index, value in enumerate(listed or ()):
            with self._keeping_broken(value if isinstance(value, dict) else row.values, row.location):
                elements.append(self._element(value, f"elems[{index}]", row))
        if elements:
            record["elems"] = elements
        elif "caption" not in record:
            raise BrokenRecordError("missing key", "no phrase and no caption to use")
        return record

    def _add_box(self, row: Row, made: dict[Any, dict[str, Any]]) -> None:
        """Adds the box of a row to the record of its image."""
        image, photograph = self._image(row), _photograph(row)
        record = made.get(image, {"image": image})
        for key, value in photograph.items():
            if record.get(key, value) != value:
                message = f"{key} is {value}, but {record[key]} in an earlier row of the same image"
                raise BrokenRecordError("wrong id", message)
        element = self._element(row.values, "the row", row)
        record.update(photograph)
        record.setdefault("elems", []).append(element)
        made[image] = record

    @contextmanager
    def _keeping_broken(self, values: dict[str, Any], location: str) -> Iterator[None]:
        """Context manager that adds an unusable element to :attr:`broken`, together with the ``values`` that contain it."""
        try:
            yield
        except BrokenRecordError as error:
            self.broken.append((broken_record(error, location), values))

    def _element(self, value: Any, name: str, row: Row) -> dict[str, Any]:
        """Returns a phrase with its boxes as x, y, width, height."""
        if not isinstance(value, dict):
            raise BrokenRecordError("wrong type", f"{name} is {value!r:.40}, not an object")
        own, source = Row(value, row.location), self.images.find(row.get("image", str), row.location)
        image = str(source.path)
        size = self._size_of.setdefault(image, self._size_of.get(image) or self.images.size(source))
        listed = {**value, "bb": self._listed_boxes(own)}
        boxes = element_in(listed, name).boxes
        self._boxes += boxes
        self._sizes += [size] * len(boxes)
        if self.boxes == "corners":
            boxes = tuple((x, y, right - x, bottom - y) for x, y, right, bottom in boxes)
        bb = [list(place_box(box, *size, name)) for box in boxes]
        texts_of(own, "caption")
        texts = _kept(own, "caption", *OTHER_TEXTS, "attributes", "grain")
        return {"bb": bb[0] if len(bb) == 1 else bb, **texts}

    def _listed_boxes(self, row: Row) -> Any:
        """Returns the value of ``bb``, or the numbers in separate columns."""
        try:
            value = (
                [plain_number(row.values[name]) for name in self._columns] if self._columns else row.get("bb", object)
            )
            return parse_json(value) if isinstance(value, str) else value
        except (KeyError, TypeError, ValueError, OverflowError):
            raise BrokenRecordError("wrong type", "the box is not four numbers") from None


def _kept(row: Row, *keys: str) -> dict[str, Any]:
    return {key: row.values[key] for key in keys if row.values.get(key) is not None}


def _photograph(row: Row) -> dict[str, Any]:
    """Returns the ids and the URL of a row's image, as far as it has them."""
    found = _kept(row, *PHOTOGRAPH_KEYS)
    for key in found.keys() & ID_KEYS.keys():
        number = id_number(found[key])
        if number is None:
            raise BrokenRecordError("wrong type", f"{key} is {found[key]!r:.40}, not a whole number")
        found[key] = number
    return found


def _renamed(rows: Rows, names: dict[str, str]) -> Iterator[Row | BrokenRecord]:
    for row in rows:
        yield Row({names.get(k, k): v for k, v in row.values.items()}, row.location) if isinstance(row, Row) else row


def _check_columns(file: Path, columns: Sequence[str], rows: Sequence[Row | BrokenRecord]) -> None:
    """Raises :class:`UserError` if a column of a CSV file that records have does not contain any value."""
    used = {key for row in rows if isinstance(row, Row) for key in row.values}
    known = [column for column in columns if column in KEYS | {*CORNERS, *XYWH, "bbox"}]
    if empty := [column for column in known if column not in used]:
        raise UserError(
            f"{', '.join(empty)} has no value in any row",
            where=file,
            remedy="fill the column, or remove it from the file",
        )


def _check_form(file: Path, out: Path, rows: Sequence[Row | BrokenRecord]) -> None:
    """Raises :class:`UserError` if the rows are ODVG lines, which another command converts."""
    for row in rows:
        if isinstance(row, Row) and "filename" in row.values and {"detection", "grounding"} & row.values.keys():
            command = (
                f"python run.py prepare odvg --raw {shlex.quote(str(file.parent))} --out {shlex.quote(str(out.parent))}"
            )
            raise UserError(
                "contains ODVG lines",
                where=file,
                remedy=f"convert them with `{command}`; the folder of --raw must also contain the images",
            )


def _unusable(file: Path, errors: Sequence[BrokenRecord], rows: int) -> UserError:
    """Returns the error for a file of which no row can be used."""
    return UserError(
        f"none of {rows:,} rows can be used", where=file, remedy=f"fix the rows or the column flags: {_reasons(errors)}"
    )


def _reasons(errors: Sequence[BrokenRecord]) -> str:
    """Returns the number of errors of each kind, and the first error."""
    return f"{tally(Counter(error.reason for error in errors))}; first {errors[0]}"


def own(
    file: Path,
    /,
    *,
    out: OutputFile,
    images: Path | None = None,
    boxes: Literal["corners", "xywh"] | None = None,
    rename: tuple[str, ...] = (),
    overwrite: bool = False,
) -> int:
    """Convert your own CSV file, JSON array, JSON lines or COCO file to records.

    The names of the columns determine which type of record is written (docs/own_data.md):

      question   questions:  image, question; optionally answer, answer_type, question_id
      sentence   statements: image, sentence, label; image2 for the right image of a pair
      boxes      regions:    image, caption, and a row for each box: x1, y1, x2, y2 (corners), or x, y, width, height
      caption    captions:   image, caption; optionally image_id

    Questions, regions and captions keep coco_id, flickr_id, vg_id and url, which `run.py leaks` compares.

    JSON objects may have the same keys, or the keys of records (elems, bb, images, lists of captions and answers). COCO's caption
    and instance files are converted as well. Give --rename OLD=NEW if your columns have different names.

    Every image must exist, and every box must be inside its image. CSV files are read strictly: every quotation mark must be
    closed, and numbers must be decimal. Rows and boxes that cannot be used are written with the reason
    to <name of --out>_broken.jsonl.

    Args:
        file: CSV file with a header, JSON array, JSON lines, or COCO's JSON file.
        out: file of records to write, *.jsonl.
        images: folder that relative image paths start from (default: the folder of FILE).
        boxes: form of boxes in bb or bbox: x1, y1, x2, y2, or x, y, width, height.
        rename: OLD=NEW: read the column OLD as NEW; may be repeated.
        overwrite: replace existing files.

    Examples:
        python run.py prepare own captions.csv --out data/own/captions_train.jsonl
        python run.py prepare own boxes.csv --images photos --out data/own/regions.jsonl --rename text=caption

    Returns:
        0: all rows were used; 1: some rows or boxes were broken; 2: nothing was written
    """
    broken_file = out.with_name(f"{out.stem}_broken.jsonl")
    if out.suffix != ".jsonl":
        raise UserError("name a file *.jsonl", where=f"--out {out}")
    if out.exists() and (not overwrite or out.samefile(file)):
        raise UserError(
            f"--out {out} already exists", remedy="use another name, or --overwrite unless it is FILE itself"
        )
    if wrong := [each for each in rename if not all(each.partition("=")[::2])]:
        raise UserError("write OLD=NEW", where=f"--rename {wrong[0]}")
    names = dict(each.split("=", 1) for each in rename)
    read = read_any(file)
    rows = list(_renamed(read.rows, names))
    if not rows:
        raise UserError(f"{file} contains no rows", remedy="check that the file is complete")
    if all(isinstance(row, BrokenRecord) for row in rows):
        raise _unusable(file, [row for row in rows if isinstance(row, BrokenRecord)], len(rows))
    _check_form(file, out, rows)
    _check_columns(file, [names.get(column, column) for column in read.columns], rows)
    if any("bbox" in row.values for row in rows if isinstance(row, Row)):
        if boxes is None:
            raise UserError(
                "the form of bbox is unknown",
                where=file,
                remedy="pass --boxes xywh (x, y, width, height) or --boxes corners",
            )
        rows = list(_renamed(rows, {"bbox": "bb"}))
    folder = images if images is not None else file.parent
    converter = Converter(rows, ImageFiles(folder), out.parent, boxes)
    records = converter.records()
    if not records:
        raise _unusable(file, [error for error, _ in converter.broken], len(rows))
    broken = [{**error.to_values(), "record": values} for error, values in converter.broken]
    out.parent.mkdir(parents=True, exist_ok=True)
    for path, lines in ((out, records), (broken_file, broken)):
        if lines:
            with replacing(path) as part:
                write_records(part, lines)
        else:
            path.unlink(missing_ok=True)
    number = sum(len(record.get("elems", ())) for record in records)
    if converter.kind == "captions":
        number = sum(len(record["caption"]) if isinstance(record["caption"], list) else 1 for record in records)
    counts = counted(number or len(records), converter.kind.removesuffix("s"), converter.kind)
    if number and (number != len(records) or converter.kind == "regions"):
        counts += f" in {counted(len(records), 'record', 'records')}"
    sys.stdout.write(f"{out}: {counts} of {counted(len(rows), 'row', 'rows')} ({read.form})\n")
    if converter.dropped:
        sys.stdout.write(
            f"  dropped columns that records do not have: {', '.join(map(str, converter.dropped))[:300]}\n"
        )
    if broken:
        reasons = _reasons([error for error, _ in converter.broken])
        sys.stdout.write(f"{broken_file}: {len(broken):,} broken: {reasons}\n")
    return 1 if broken else 0
