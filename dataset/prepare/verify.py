"""Images, decoded before training: which are broken, and the hash of each. Results are kept, so that this is done once."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import NamedTuple

from dataset.files import IMAGE_BYTES, read_file
from dataset.loaders import LoadingConfig
from dataset.media.encoded import decode
from dataset.prepare.processes import in_order
from dataset.records.broken import BrokenRecordError
from utils.progress import progress_bar

BROKEN = "unreadable image"
MAX_PIXELS: int = LoadingConfig.model_fields["max_pixels"].default
"""Pixels of an image that is decoded, as in a run unless its config says otherwise."""


class Verified(NamedTuple):
    """A verified image: its size in bytes and time of change, by which it is known again; its fault ("" if there is none); and
    the hash of its content."""

    bytes: int
    changed_ns: int
    fault: str
    content: str


def image_fault(content: bytes, place: str) -> str:
    """The reason for which an image cannot be used; "" if it can."""
    try:
        decode(content, MAX_PIXELS, place, "stored")
    except BrokenRecordError as error:
        return error.kind
    return ""


def verify_images(paths: Sequence[Path], notes: Path, workers: int) -> dict[Path, Verified]:
    """Decode images; the result of each by its path.

    Args:
        paths: the images.
        notes: file of the results, to which this run appends; images in it that did not change are not decoded again.
        workers: processes.
    """
    known = _read_notes(notes)
    todo = [path for path in paths if not _is_known(path, known.get(str(path)))]
    notes.parent.mkdir(parents=True, exist_ok=True)
    with notes.open("a", encoding="utf-8") as stream, closing(in_order(_verify, todo, workers, _died)) as results:
        bar = progress_bar(results, total=len(todo), desc="verifying", unit="image")
        for path, result in zip(todo, bar, strict=True):
            known[str(path)] = result
            stream.write(json.dumps([str(path), *result]) + "\n")
    return {path: known[str(path)] for path in paths}


def _verify(path: Path) -> Verified:
    """Decode an image; runs in a worker process."""
    try:
        status = path.stat()
        content = read_file(path, IMAGE_BYTES, str(path))
        digest = hashlib.blake2b(content, digest_size=16).hexdigest()
        return Verified(status.st_size, status.st_mtime_ns, image_fault(content, str(path)), digest)
    except BrokenRecordError as error:
        return Verified(0, 0, error.kind, "")


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
            except (ValueError, TypeError):  # cut when a run was killed: that image is verified again
                continue
    return found
