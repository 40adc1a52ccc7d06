"""``run.py prepare to_odvg``: writes region records as ODVG lines, which Grounding DINO and its successors are trained on.

Each box becomes a region with its phrase, since not every reader takes several boxes of a region. The caption contains every
phrase, and ``tokens_positive`` tells where. What ODVG has no place for is written under keys that its readers ignore, and that
``run.py prepare odvg`` reads: ``alternatives`` and ``grain`` of a region, ``image_caption`` and ``absent`` of a line.
"""

from __future__ import annotations

import json
import os
import sys
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dataset.prepare.cleaning import tidy
from dataset.prepare.folders import tally
from dataset.prepare.region_records import stored_size
from dataset.records.broken import BrokenRecordError
from dataset.records.schema import Box, box_in, place_box, spoken, texts_in
from dataset.shards.tars import parse_object
from utils.errors import UserError
from utils.files import replacing
from utils.progress import progress_bar

LOST = ("long_caption", "hard_negatives", "attributes")
"""Keys of a record or an element that ODVG lines do not have."""


def odvg_line(record: Mapping[str, Any], size: tuple[int, int], filename: str, location: str) -> dict[str, Any]:
    """Returns a record as an ODVG line.

    Args:
        record: a region record.
        size: width and height of its stored image.
        filename: path of the image, as the line has it.
        location: location of the record, for messages.

    Raises:
        BrokenRecordError: an element has no box or text of the right form, or a box outside the image; or no element has a box.
    """
    elements = record.get("elems")
    if not isinstance(elements, list) or not elements:
        raise BrokenRecordError("missing key", location, "it has no elems")
    captions = _texts(record["caption"], "caption", location) if record.get("caption") is not None else []
    caption = captions[0] if captions else ""
    regions, absent = [], []
    for index, element in enumerate(elements):
        name = f"elems[{index}]"
        if not isinstance(element, dict) or element.get("bb") is None or element.get("caption") is None:
            raise BrokenRecordError("missing key", location, f"{name} has no bb or no caption")
        phrase, *alternatives = _texts(element["caption"], f"{name}.caption", location)
        boxes = _boxes(element["bb"], size, name, location)
        if not boxes:
            absent.append(phrase)
            continue
        start = caption.find(phrase)
        if start < 0:
            caption += f"{' ' if caption else ''}{phrase} ."
            start = len(caption) - len(phrase) - 2
        for x, y, w, h in boxes:
            region: dict[str, Any] = {
                "bbox": [tidy(x), tidy(y), tidy(x + w), tidy(y + h)],
                "phrase": phrase,
                "tokens_positive": [[start, start + len(phrase)]],
                "grain": str(element.get("grain", "object")),
            }
            regions.append(region | ({"alternatives": alternatives} if alternatives else {}))
    if not regions:
        raise BrokenRecordError("missing key", location, "none of its phrases has a box")
    line = {"filename": filename, "height": size[1], "width": size[0], "image_caption": captions}
    return {**line, "absent": absent, "grounding": {"caption": caption, "regions": regions}}


def _texts(value: Any, name: str, location: str) -> list[str]:
    found = [text for each in texts_in(value, name, location) for text in spoken(each, None)]
    if not all(text.strip() for text in found):
        raise BrokenRecordError("empty text", location, f"{name} has a text without words")
    return found


def _boxes(value: Any, size: tuple[int, int], name: str, location: str) -> list[Box]:
    several = isinstance(value, list) and all(isinstance(each, list) for each in value)
    return [
        place_box(box_in(each, f"{name}.bb", location), *size, location, name)
        for each in (value if several else [value])
    ]


def _files(paths: tuple[Path, ...]) -> list[Path]:
    files = []
    for path in paths:
        found = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not found or any(each.suffix != ".jsonl" for each in found):
            raise UserError(
                f"{path}: give a file *.jsonl or a folder of them; the images of tar shards are not files, which ODVG lines name"
            )
        files += found
    return files


def _records(files: list[Path], lost: Counter[str]) -> Iterator[tuple[str, Path, dict[str, Any] | BrokenRecordError]]:
    """Yields the location, the folder and the values of each record; counts the keys that are lost."""
    for file in files:
        with file.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                location = f"{file}:{number}"
                try:
                    record = parse_object(line, location)
                except BrokenRecordError as error:
                    yield location, file.parent, error
                    continue
                elements = record.get("elems")
                for part in (record, *(elements if isinstance(elements, list) else ())):
                    if isinstance(part, dict):
                        lost.update(key for key in LOST if part.get(key))
                yield location, file.parent, record


def to_odvg(records: tuple[Path, ...], /, *, out: Path, images: Path | None = None, overwrite: bool = False) -> int:
    """Write region records as ODVG lines.

    Each record becomes a line with the size of its stored image. Records that cannot be written are counted, and the first one of
    each kind is shown.

    Args:
        records: files *.jsonl of region records, or folders of them, such as `run.py prepare` makes.
        out: file of lines to write, *.jsonl.
        images: folder from which the paths of images start (default: the folder of --out).
        overwrite: replace an existing file.

    Examples:
        python run.py prepare to_odvg data/pretrain/refcoco --out data/refcoco_odvg.jsonl --images data/coco

    Returns:
        0: all records were written; 1: some records were broken; 2: nothing was written
    """
    if not records:
        raise UserError("give files or folders of region records")
    if out.suffix != ".jsonl" or not out.parent.is_dir():
        raise UserError(f"--out {out}: give a file *.jsonl in a folder that exists")
    if out.exists() and not overwrite:
        raise UserError(f"--out {out} already exists; give another name, or --overwrite")
    root = os.path.realpath(images if images is not None else out.parent)
    lost, broken, first = Counter[str](), Counter[str](), dict[str, str]()
    made = 0
    with replacing(out) as part:
        with part.open("w", encoding="utf-8", newline="\n") as stream:
            for location, folder, record in progress_bar(
                _records(_files(records), lost), total=None, desc="to_odvg", unit="record"
            ):
                try:
                    if isinstance(record, BrokenRecordError):
                        raise record
                    name = record.get("image")
                    if not isinstance(name, str) or (size := stored_size(folder / name)) is None:
                        raise BrokenRecordError("missing image", location, f"{name!r:.80} is not a readable image file")
                    filename = os.path.relpath(os.path.realpath(folder / name), root)
                    line = odvg_line(record, size, Path(filename).as_posix(), location)
                except BrokenRecordError as error:
                    broken[error.kind] += 1
                    first.setdefault(error.kind, str(error))
                    continue
                stream.write(json.dumps(line, ensure_ascii=False) + "\n")
                made += 1
        if not made:
            raise UserError(f"none of {sum(broken.values()):,} records can be written: {'; '.join(first.values())}")
    sys.stdout.write(f"{out}: {made:,} lines\n")
    if lost:
        sys.stdout.write(f"  ODVG has no place for: {tally(lost)}\n")
    for kind, number in broken.most_common():
        sys.stdout.write(f"  skipped: {number:,} {kind}, first {first[kind]}\n")
    return 1 if broken else 0
