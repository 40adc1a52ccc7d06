"""``run.py prepare to_odvg``: writes region records as ODVG lines, which Grounding DINO and its successors are trained on.

Each box becomes a region with its phrase, because not every reader accepts several boxes per region. The caption contains every
phrase, and ``tokens_positive`` contains the positions of the phrases. Some content that ODVG cannot represent is written under
keys that other readers ignore and ``run.py prepare odvg`` reads: ``alternatives`` and ``grain`` of a region, ``image_caption``
and ``absent`` of a line.
"""

from __future__ import annotations

import io
import json
import os
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from dataset.broken import BrokenRecordError, broken_record
from dataset.media.encoded import FORMATS
from dataset.prepare.cleaning import tidy
from dataset.prepare.folders import tally
from dataset.prepare.region_records import stored_size
from dataset.records.boxes import place_box
from dataset.records.schema import (
    ImageKeys,
    ImageRecord,
    RawRecord,
    Texts,
    image_source,
    parse_region_record,
    texts_in_language,
)
from dataset.shards.readers import Shards
from utils.errors import UserError
from utils.files import replacing
from utils.flags import OutputFile
from utils.progress import progress_bar

LOST_KEYS = ("long_caption", "hard_negatives", "attributes", "exhaustive")
"""Keys of a record or an element that are lost in ODVG lines."""


def odvg_line(
    record: ImageRecord, size: tuple[int, int], filename: str
) -> tuple[dict[str, Any] | None, list[BrokenRecordError]]:
    """Returns a record as an ODVG line, and an error for each part of the record that cannot be written. The line is None if no
    usable phrase has a box.

    Args:
        record: a region record.
        size: width and height of the stored image.
        filename: path of the image in the line.
    """
    errors = list(record.broken)
    captions: list[str] = []
    try:
        captions = _texts(record.captions, "caption")
    except BrokenRecordError as error:
        errors.append(error)
    caption = captions[0] if captions else ""
    regions, absent = [], []
    for element in record.elements:
        try:
            phrase, *alternatives = _texts(element.captions, f"{element.name}.caption")
            boxes = [place_box(box, *size, element.name) for box in element.boxes]
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
        return None, errors or [BrokenRecordError("missing key", "none of its phrases has a box")]
    line = {"filename": filename, "height": size[1], "width": size[0], "image_caption": captions}
    return {**line, "absent": absent, "grounding": {"caption": caption, "regions": regions}}, errors


def _texts(texts: Texts, name: str) -> list[str]:
    found = [text for each in texts for text in texts_in_language(each, None)]
    if not all(text.strip() for text in found):
        raise BrokenRecordError("empty text", f"{name} has a text without words")
    return found


def _stored(raw: RawRecord, folder: Path, number: int) -> tuple[Path, tuple[int, int]]:
    """Returns the file of a record's image, and its size. An image inside a shard is written to ``folder`` first.

    Raises:
        BrokenRecordError: if the image is missing or cannot be read.
    """
    source = image_source(raw, ImageKeys())
    path = source.path
    if path is None:
        content = source.load()
        try:
            suffix = str(Image.open(io.BytesIO(content), formats=FORMATS).format).lower()
        except Exception as error:  # Pillow's readers raise many types of errors on malformed bytes
            raise BrokenRecordError("unreadable image", f"{type(error).__name__}") from None
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{number:09d}.{suffix}"
        path.write_bytes(content)
    size = stored_size(path)
    if size is None:
        raise BrokenRecordError("missing image", f"{str(path)!r:.80} is not a readable image file")
    return path, size


def _count_lost(values: Mapping[str, Any], lost: Counter[str]) -> None:
    """Counts the keys of a record and of its phrases that ODVG lines do not have."""
    elements = values.get("elems")
    for part in (values, *(elements if isinstance(elements, list) else ())):
        if isinstance(part, dict):
            lost.update(key for key in LOST_KEYS if part.get(key) not in (None, "", []))


def to_odvg(
    records: tuple[str, ...], /, *, out: OutputFile, images: Path | None = None, overwrite: bool = False
) -> int:
    """Write region records as ODVG lines.

    Each record becomes a line with the size of its stored image. ODVG lines name image files, so images inside tars and Parquet
    files are written to a folder next to --out, such as refcoco_images for refcoco.jsonl. Records and phrases that cannot be
    written are skipped and counted, and the first one of each kind is shown. The other phrases of the record are written.

    Args:
        records: shards of region records: JSON lines, tars or Parquet files, or folders of them, such as `run.py prepare` makes.
        out: file of lines to write, *.jsonl.
        images: folder that image paths are relative to (default: the folder of --out).
        overwrite: replace an existing file.

    Examples:
        python run.py prepare to_odvg data/pretrain/refcoco --out data/refcoco_odvg.jsonl --images data/coco

    Returns:
        0: all records were written; 1: some records or phrases were broken; 2: nothing was written
    """
    if not records:
        raise UserError("pass files or folders of region records")
    if out.suffix != ".jsonl":
        raise UserError("name a file *.jsonl", where=f"--out {out}")
    if images is not None and not images.is_dir():
        raise UserError(f"the folder {images} does not exist", where="--images")
    if out.exists() and not overwrite:
        raise UserError(f"--out {out} already exists", remedy="use another name, or --overwrite")
    shards = Shards(records, key="RECORDS", in_order=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    root = os.path.realpath(images if images is not None else out.parent)
    lost, broken, first = Counter[str](), Counter[str](), dict[str, str]()
    made = 0
    with replacing(out) as part:
        with part.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as stream:
            for number in progress_bar(range(len(shards)), total=len(shards), desc="to_odvg", unit="record"):
                try:
                    raw = shards.read(number)
                    _count_lost(raw.values, lost)
                    path, size = _stored(raw, out.with_name(f"{out.stem}_images"), number)
                    record = parse_region_record(raw, ImageKeys(), "caption")
                    filename = Path(os.path.relpath(os.path.realpath(path), root)).as_posix()
                    line, errors = odvg_line(record, size, filename)
                except BrokenRecordError as error:
                    line, errors = None, [error]
                if line is not None:
                    stream.write(json.dumps(line, ensure_ascii=False) + "\n")
                    made += 1
                for each in errors:
                    broken[each.reason] += 1
                    first.setdefault(each.reason, str(broken_record(each, shards.exact_location(number))))
        if not made:
            raise UserError(f"no record can be written: {'; '.join(first.values())}")
    sys.stdout.write(f"{out}: {made:,} lines\n")
    if lost:
        sys.stdout.write(f"  keys that ODVG cannot represent: {tally(lost)}\n")
    for kind, number in broken.most_common():
        sys.stdout.write(f"  skipped: {number:,} {kind}, first {first[kind]}\n")
    return 1 if broken else 0
