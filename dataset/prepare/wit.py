"""``python run.py prepare wit --source FILE ... --out DIR``: records of IGLUE's WIT, with their images as files.

The sources are ``test_<language>.jsonl``, ``val_en.jsonl`` or ``train_en.jsonl`` with ``image_content`` beside the official keys:
the image in base64, which each user downloads from ``image_url``. Captions with one URL are captions of one image; lines without
a caption are left out. Each source becomes ``DIR/<its name>``, with its images in ``DIR/images``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from dataset.prepare.official import command_parser, write_by_source
from dataset.records.schema import BrokenRecordError, ImageKeys, RawRecord, image_source
from utils.errors import UserError, one_line_errors
from utils.files import replacing

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
            f"{error}; download each image from its image_url, and put it beside the official keys in base64"
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


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments after ``run.py prepare wit``."""
    parser = command_parser("wit", "Records of IGLUE's WIT.")
    add = parser.add_argument
    add("--source", type=Path, required=True, nargs="+", metavar="FILE", help="JSON lines with image_content")
    return parser.parse_args(argv)


@one_line_errors
def main(argv: Sequence[str]) -> int:
    """Make the records and print a line for each source; exit status 2 for a mistake of the user."""
    flags = arguments_of(argv)
    sources = {path.name: path for path in flags.source}
    write_by_source("wit", flags, {}, sources, partial(records, out=flags.out), "captions", ("images",))
    return 0
