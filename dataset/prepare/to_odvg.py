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
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset.prepare.cleaning import tidy
from dataset.prepare.folders import tally
from dataset.prepare.region_records import stored_size
from dataset.records.broken import BrokenRecordError
from dataset.records.schema import ImageKeys, RawRecord, RegionRecord, Texts, parse_region_record, place_box, spoken
from dataset.shards.tars import parse_object
from utils.errors import UserError
from utils.files import replacing
from utils.progress import progress_bar

LOST = ("long_caption", "hard_negatives", "attributes", "exhaustive")
"""Keys of a record or an element that ODVG lines do not have."""


def odvg_line(
    record: RegionRecord, size: tuple[int, int], filename: str
) -> tuple[dict[str, Any] | None, list[BrokenRecordError]]:
    """Returns a record as an ODVG line, and an error for each part of the record that cannot be written. The line is None if no
    usable phrase has a box.

    Args:
        record: a region record.
        size: width and height of its stored image.
        filename: path of the image, as the line has it.
    """
    errors = [BrokenRecordError(each.kind, each.location, each.message) for each in record.broken]
    captions: list[str] = []
    try:
        captions = _texts(record.captions, "caption", record.location)
    except BrokenRecordError as error:
        errors.append(error)
    caption = captions[0] if captions else ""
    regions, absent = [], []
    for element in record.elements:
        try:
            phrase, *alternatives = _texts(element.captions, f"{element.name}.caption", record.location)
            boxes = [place_box(box, *size, record.location, element.name) for box in element.boxes]
        except BrokenRecordError as error:
            errors.append(error)
            continue
        own: dict[str, Any] = {"grain": element.grain, **({"alternatives": alternatives} if alternatives else {})}
        if not boxes:
            absent.append({"phrase": phrase, **own})
            continue
        start = caption.find(phrase)
        if start < 0:
            caption += f"{' ' if caption else ''}{phrase} ."
            start = len(caption) - len(phrase) - 2
        for x, y, w, h in boxes:
            region = {
                "bbox": [tidy(x), tidy(y), tidy(x + w), tidy(y + h)],
                "phrase": phrase,
                "tokens_positive": [[start, start + len(phrase)]],
            }
            regions.append(region | own)
    if not regions:
        return None, errors or [BrokenRecordError("missing key", record.location, "none of its phrases has a box")]
    line = {"filename": filename, "height": size[1], "width": size[0], "image_caption": captions}
    return {**line, "absent": absent, "grounding": {"caption": caption, "regions": regions}}, errors


def _texts(texts: Texts, name: str, location: str) -> list[str]:
    found = [text for each in texts for text in spoken(each, None)]
    if not all(text.strip() for text in found):
        raise BrokenRecordError("empty text", location, f"{name} has a text without words")
    return found


def _files(paths: tuple[Path, ...]) -> list[Path]:
    files = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path} does not exist; give a file *.jsonl or a folder of them")
        found = sorted(path.glob("*.jsonl")) if path.is_dir() else [path]
        if not found or any(each.suffix != ".jsonl" for each in found):
            raise UserError(
                f"{path}: give a file *.jsonl or a folder of them; the images of tar shards are not files, which ODVG lines name"
            )
        files += found
    return files


def _records(files: list[Path], lost: Counter[str]) -> Iterator[RawRecord | BrokenRecordError]:
    """Yields the records of the files, with an error for each line that is not JSON; counts the keys that are lost."""
    for file in files:
        with file.open("rb") as stream:
            for number, line in enumerate(stream, start=1):
                if not line.strip():
                    continue
                location = f"{file}:{number}"
                try:
                    record = parse_object(line, location)
                except BrokenRecordError as error:
                    yield error
                    continue
                elements = record.get("elems")
                for part in (record, *(elements if isinstance(elements, list) else ())):
                    if isinstance(part, dict):
                        lost.update(key for key in LOST if part.get(key) not in (None, "", []))
                yield RawRecord(record, location, file.parent)


def to_odvg(records: tuple[Path, ...], /, *, out: Path, images: Path | None = None, overwrite: bool = False) -> int:
    """Write region records as ODVG lines.

    Each record becomes a line with the size of its stored image. Records and phrases that cannot be written are skipped and
    counted, and the first one of each kind is shown. The other phrases of the record are written.

    Args:
        records: files *.jsonl of region records, or folders of them, such as `run.py prepare` makes.
        out: file of lines to write, *.jsonl.
        images: folder from which the paths of images start (default: the folder of --out).
        overwrite: replace an existing file.

    Examples:
        python run.py prepare to_odvg data/pretrain/refcoco --out data/refcoco_odvg.jsonl --images data/coco

    Returns:
        0: all records were written; 1: some records or phrases were broken; 2: nothing was written
    """
    if not records:
        raise UserError("give files or folders of region records")
    if out.suffix != ".jsonl":
        raise UserError(f"--out {out}: give a file *.jsonl")
    for flag, folder in (("--out", out.parent), ("--images", images)):
        if folder is not None and not folder.is_dir():
            raise UserError(f"{flag}: the folder {folder} does not exist")
    if out.exists() and not overwrite:
        raise UserError(f"--out {out} already exists; give another name, or --overwrite")
    root = os.path.realpath(images if images is not None else out.parent)
    files = _files(records)
    lost, broken, first = Counter[str](), Counter[str](), dict[str, str]()
    made = 0
    with replacing(out) as part:
        with part.open("w", encoding="utf-8", newline="\n") as stream:
            for raw in progress_bar(_records(files, lost), total=None, desc="to_odvg", unit="record"):
                try:
                    if isinstance(raw, BrokenRecordError):
                        raise raw
                    name = raw.values.get("image")
                    if not isinstance(name, str) or (size := stored_size(raw.folder / name)) is None:
                        message = f"{name!r:.80} is not a readable image file"
                        raise BrokenRecordError("missing image", raw.location, message)
                    record = parse_region_record(raw, ImageKeys(image_is="path"), "caption")
                    filename = Path(os.path.relpath(os.path.realpath(raw.folder / name), root)).as_posix()
                    line, errors = odvg_line(record, size, filename)
                except BrokenRecordError as error:
                    line, errors = None, [error]
                if line is not None:
                    stream.write(json.dumps(line, ensure_ascii=False) + "\n")
                    made += 1
                for each in errors:
                    broken[each.kind] += 1
                    first.setdefault(each.kind, str(each))
        if not made:
            raise UserError(f"no record can be written: {'; '.join(first.values())}")
    sys.stdout.write(f"{out}: {made:,} lines\n")
    if lost:
        sys.stdout.write(f"  ODVG has no place for: {tally(lost)}\n")
    for kind, number in broken.most_common():
        sys.stdout.write(f"  skipped: {number:,} {kind}, first {first[kind]}\n")
    return 1 if broken else 0
