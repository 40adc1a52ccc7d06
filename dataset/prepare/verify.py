"""Decodes images before training, to detect broken images and copies. The results are stored, so that each image is decoded only
once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from dataset.broken import BrokenRecordError
from dataset.config import LoadingConfig
from dataset.files import IMAGE_BYTES, read_file
from dataset.media.encoded import decode
from dataset.prepare.processes import in_order
from utils.progress import progress_bar

BROKEN = "unreadable image"
MAX_PIXELS: int = LoadingConfig.model_fields["max_pixels"].default
"""Maximum number of pixels of an image: the default of training configs."""


class Verified(NamedTuple):
    """The result of decoding an image.

    Attributes:
        bytes: size of the file.
        changed_ns: modification time. An image whose size and modification time are unchanged is not decoded again.
        fault: why the image is broken; "" if the image can be used.
        content: hash of the file's content.
    """

    bytes: int
    changed_ns: int
    fault: str
    content: str


def image_fault(content: bytes, location: str) -> str:
    """Returns the reason why an image cannot be used; "" if it can be used."""
    try:
        decode(content, MAX_PIXELS, "stored")
    except BrokenRecordError as error:
        return error.reason
    return ""


def verify_images(paths: Sequence[Path], notes: Path, workers: int) -> dict[Path, Verified]:
    """Decodes images and returns the result for each path.

    Args:
        paths: the images.
        notes: file with previous results, to which new results are appended. Images in this file are not decoded again unless
            they have changed.
        workers: number of processes.
    """
    known = _read_notes(notes)
    unverified = [path for path in paths if not _is_known(path, known.get(str(path)))]
    notes.parent.mkdir(parents=True, exist_ok=True)
    with notes.open("a", encoding="utf-8") as stream, closing(in_order(_verify, unverified, workers, _died)) as results:
        bar = progress_bar(results, total=len(unverified), desc="verifying", unit="image")
        for path, result in zip(unverified, bar, strict=True):
            known[str(path)] = result
            stream.write(json.dumps([str(path), *result]) + "\n")
    return {path: known[str(path)] for path in paths}


def _verify(path: Path) -> Verified:
    """Decodes an image; runs in a worker process."""
    try:
        status = path.stat()
        content = read_file(path, IMAGE_BYTES)
        digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        return Verified(status.st_size, status.st_mtime_ns, image_fault(content, str(path)), digest)
    except BrokenRecordError as error:
        return Verified(0, 0, error.reason, "")


def _died(path: Path) -> Verified:
    return Verified(path.stat().st_size, path.stat().st_mtime_ns, BROKEN, "")


def _is_known(path: Path, result: Verified | None) -> bool:
    status = path.stat()
    return result is not None and (result.bytes, result.changed_ns) == (status.st_size, status.st_mtime_ns)


def _read_notes(path: Path) -> dict[str, Verified]:
    found: dict[str, Verified] = {}
    if path.exists():
        for line in path.read_text(encoding="utf-8").split("\n"):
            try:
                name, *values = json.loads(line)
                found[name] = Verified(*values)
            except (
                ValueError,
                TypeError,
            ):  # the line is incomplete because a run was killed; the image is decoded again
                continue
    return found
