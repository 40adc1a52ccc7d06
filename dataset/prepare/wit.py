"""``run.py prepare wit``: records of IGLUE's WIT, with their images as files."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated, Any

from dataset.prepare.official import OutputFlags, write_by_source
from dataset.records.schema import BrokenRecordError, ImageKeys, RawRecord, image_source
from utils.errors import UserError
from utils.files import replacing
from utils.flags import SEVERAL

KEYS = ImageKeys(image_key="image_content", image_is="base64")


def records(source: Path, out: Path) -> Iterator[dict[str, Any]]:
    """``image``, ``caption`` and ``image_id`` of each row of a file; its images are written below ``out``.

    Raises:
        UserError: the file cannot be read, or a row has no image.
    """
    written: set[str] = set()
    try:
        with source.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                place = f"{source}:{number}"
                row = _row(line, place)
                caption = str(row.get("caption_reference_description") or "").strip()
                if not caption:
                    continue
                url = str(row.get("image_url") or "")
                name = f"images/{hashlib.blake2b(url.encode(), digest_size=10).hexdigest()}.jpg"
                if name not in written:
                    written.add(name)
                    (out / name).parent.mkdir(exist_ok=True)
                    content = image_source(RawRecord(row, place, source.parent), KEYS).load()
                    with replacing(out / name) as part:
                        part.write_bytes(content)
                yield {"image": name, "caption": caption, "image_id": url}
    except BrokenRecordError as error:
        raise UserError(
            f"{error}; download each image from its image_url, and put it next to the official keys in base64"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{source} cannot be read, or {out} not written: {error}") from None


def _row(line: str, place: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{place}: not JSON: {error.msg}") from None
    if not isinstance(row, dict) or not row.get("image_url"):
        raise UserError(f"{place}: no image_url; is it a file of IGLUE's WIT?")
    return row


def wit(*, output: OutputFlags, source: Annotated[list[Path], SEVERAL]) -> int:
    """Make records of IGLUE's WIT, with their images as files.

    The sources are test_<language>.jsonl, val_en.jsonl or train_en.jsonl with image_content in addition to the official keys:
    the image in base64, which each user downloads from image_url. Captions with one URL are captions of one image; lines without
    a caption are skipped. Each source becomes a file of its name in the folder of --out, with its images in the folder images.

    Args:
        source: JSON lines with image_content.
    """
    sources = {path.name: path for path in source}
    write_by_source("wit", output, {}, sources, partial(records, out=output.out), "captions", ("images",))
    return 0
