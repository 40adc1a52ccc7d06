"""``python -m dataset.prepare.wit --source FILE ... --out DIR``: records of IGLUE's WIT, with their pictures as files.

The sources are ``test_<language>.jsonl``, ``val_en.jsonl`` or ``train_en.jsonl`` with ``image_content`` beside the official keys:
the picture in base64, which each user fetches by ``image_url``. Captions of one address are captions of one picture; rows without
a caption are left out. For each source, ``DIR/<its name>`` is made, and its pictures in ``DIR/images``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dataset.prepare.folders import LineParser, write_records
from dataset.records.schema import BrokenRecordError, ImageKeys, RawRecord, image_source
from utils.errors import UserError, one_line_errors

KEYS = ImageKeys(image_key="image_content", image_is="base64")


def records(source: Path, out: Path) -> Iterator[dict[str, Any]]:
    """``image``, ``caption`` and ``image_id`` of each row of a file; its pictures are written below ``out``.

    Raises:
        UserError: the file cannot be read, or a row has no picture.
    """
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
                address = str(row.get("image_url") or "")
                name = f"images/{hashlib.blake2b(address.encode(), digest_size=10).hexdigest()}.jpg"
                if not (out / name).is_file():
                    content = image_source(RawRecord(row, place, source.parent), KEYS).load()
                    (out / name).write_bytes(content)
                yield {"image": name, "caption": caption, "image_id": address}
    except BrokenRecordError as error:
        raise UserError(
            f"{error}; fetch each picture by its image_url, and put it beside the official keys in base64"
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


@one_line_errors
def main() -> int:
    """Make the records and print a line for each source; exit status 2 for a mistake of the user."""
    parser = LineParser(prog="python -m dataset.prepare.wit", description="Records of IGLUE's WIT.")
    parser.add_argument(
        "--source", type=Path, required=True, nargs="+", metavar="FILE", help="JSON lines with image_content"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to fill; made if missing")
    flags: argparse.Namespace = parser.parse_args()
    (flags.out / "images").mkdir(parents=True, exist_ok=True)
    for source in flags.source:
        count = write_records(flags.out / source.name, records(source, flags.out))
        sys.stdout.write(f"{flags.out / source.name}: {count} captions\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
