"""IGLUE's WIT: images of Wikipedia and their captions in eleven languages.

Each user downloads the images, and adds them in base64 as ``image_content`` to the official files. Captions that share a URL
belong to the same image; lines without a caption are skipped.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dataset.broken import BrokenRecordError
from dataset.prepare.counts import Counts
from dataset.prepare.declarations import DataSet, Files, Splits
from dataset.prepare.options import Options
from dataset.prepare.raw_folder import RawFile, RawFolder
from dataset.records.schema import ImageKeys, RawRecord, image_source
from utils.errors import UserError
from utils.files import replacing

FOLDER = "wit"
KEYS = ImageKeys(image_key="image_content", image_is="base64")
LONGEST_LINE = 1 << 28
"""Maximum size of a line with an image in base64, in bytes."""
_FILE = re.compile(r"(?:train|val|test)_[a-z]{2}\.jsonl")


def _files(raw: RawFolder) -> Files:
    """Finds the files in the given folder, and in folders named after the data set."""
    names = sorted(name for name in raw.files if _FILE.fullmatch(name))
    found = {name.removesuffix(".jsonl"): raw.find(name, below=FOLDER) for name in names}
    files = {name: file for name, file in found.items() if file is not None}
    if not files:
        roots = ", ".join(map(str, raw.roots))
        raise UserError(
            f"no train_en.jsonl, val_en.jsonl or test_<language>.jsonl is in a folder {FOLDER}", where=roots
        )
    return files


def _read(files: Files, folder: Path, options: Options, counts: Counts) -> Mapping[str, Iterator[dict[str, Any]]]:
    return {name: _records(file, folder, counts) for name, file in files.items()}


def _records(file: RawFile, folder: Path, counts: Counts) -> Iterator[dict[str, Any]]:
    """Yields ``image``, ``caption`` and ``image_id`` of each row of a file, and writes the images below ``folder``.

    Raises:
        UserError: the file cannot be read, or a row has no image.
    """
    for location, line in file.lines(LONGEST_LINE):
        if not line.strip():
            continue
        counts.read["captions"] += 1
        row = _row(line, location)
        caption = str(row.get("caption_reference_description") or "").strip()
        if not caption:
            counts.skip("empty text", location)
            continue
        url = str(row["image_url"])
        name = f"images/{hashlib.blake2b(url.encode(), digest_size=10).hexdigest()}.jpg"
        if not (folder / name).exists():
            try:
                content = image_source(RawRecord(row, location, file.path.parent), KEYS).load()
            except BrokenRecordError as error:
                raise UserError(
                    f"{error}",
                    where=location,
                    remedy="download each image from its image_url, and put it next to the official keys in base64",
                ) from None
            (folder / name).parent.mkdir(exist_ok=True)
            with replacing(folder / name) as part:
                part.write_bytes(content)
            counts.written["images"] += 1
        yield {"image": name, "caption": caption, "image_id": url}


def _row(line: str, location: str) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"not JSON: {error}", where=location) from None
    if not isinstance(row, dict) or not row.get("image_url"):
        raise UserError("no image_url", where=location, remedy="is it a file of IGLUE's WIT?")
    return row


WIT = DataSet(
    name="wit",
    title="IGLUE's WIT",
    home="github.com/e-bug/iglue",
    licence="CC BY-SA 3.0; images under their own terms",
    files={
        f"{FOLDER}/train_en.jsonl, {FOLDER}/val_en.jsonl, {FOLDER}/test_<language>.jsonl": "captions and URLs, with the "
        "image in base64 as image_content"
    },
    sizes={},
    makes=Splits("wit", "an image and one of its captions", files=_files, read=_read),
    read_by="configs/retrieval/wit_base.yaml",
)
