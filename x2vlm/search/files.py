"""The files of an index of images: embeddings, mapped into memory, and the list of images.

A folder ``I`` has ``embeddings-N.npy`` (rows, E) float32, a row for each content; ``images-N.jsonl``, a line for each file:
line n is an image with row n, and behind these come the copies; ``broken.jsonl``, the files that cannot be read; and
``index.json``: the model, the folder, and N, how often the index was made. It is written last, so that whoever opens an index has
a list and embeddings that belong together. While an index is made, parts of it are in ``I/parts``: an interrupted one goes on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.errors import UserError
from utils.files import replacing

ABOUT, BROKEN, PARTS, LOCK = "index.json", "broken.jsonl", "parts", "lock"
FORMAT = 2
"""Increased when older files can no longer be read."""


@dataclass(frozen=True)
class IndexedImage:
    """A file of an index: its path below the indexed folder, its size and the time of its last change, by which it is known
    again, the hash of its content, and the ``row`` of its embedding."""

    path: str
    bytes: int
    changed_ns: int
    content: str
    row: int


@dataclass(frozen=True)
class About:
    """What an index is of: the images in ``folder``, embedded by ``model``, whose weights have the hash ``weights``; ``made``:
    how often it was made, 0 while it is made for the first time."""

    folder: str
    model: str
    weights: str
    width: int
    made: int = 0
    format: int = FORMAT

    def images_in(self, index: Path) -> Path:
        """The list of images in the folder of the index."""
        return index / f"images-{self.made}.jsonl"

    def embeddings_in(self, index: Path) -> Path:
        """The embeddings in the folder of the index."""
        return index / f"embeddings-{self.made}.npy"


def weights_hash(network: torch.nn.Module) -> str:
    """A hash of all weights of a network: embeddings of two networks cannot be compared."""
    found = hashlib.blake2b(digest_size=16)
    for name, tensor in sorted(network.state_dict().items()):
        found.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        found.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return found.hexdigest()


def read_about(folder: Path) -> About:
    """Description of an index.

    Raises:
        UserError: there is no index, or it is of another version.
    """
    try:
        values = json.loads((folder / ABOUT).read_text(encoding="utf-8"))
        about = About(**values)
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"{folder}: no index of images is there; make one with python run.py index") from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{folder / ABOUT} cannot be read ({error}); remove the folder and make the index again"
        ) from None
    if about.format != FORMAT:
        raise UserError(
            f"{folder}: an index of format {about.format}, this version reads {FORMAT}; remove the folder and make it again"
        )
    return about


def write_about(folder: Path, about: About) -> None:
    """Write what an index is of."""
    _write(folder / ABOUT, [asdict(about)], indent=2)


def read_images(path: Path) -> list[IndexedImage]:
    """The files of an index, or of a part of one.

    Raises:
        UserError: the list is damaged.
    """
    return [image_of(line, path) for line in read_lines(path)]


def read_lines(path: Path) -> list[bytes]:
    """The lines of the list, a million of which take a second to parse; raises as :func:`read_images`."""
    try:
        return path.read_bytes().splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}); make the index again") from None


def image_of(line: bytes, path: Path) -> IndexedImage:
    """The file of a line; raises as :func:`read_images`."""
    try:
        return IndexedImage(**json.loads(line))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error}); make the index again") from None


def write_images(path: Path, images: Iterable[IndexedImage]) -> None:
    """Write the list of images."""
    _write(path, map(asdict, images))


def write_broken(folder: Path, broken: Iterable[tuple[str, str]]) -> None:
    """Write the files that cannot be read, each with its reason."""
    _write(folder / BROKEN, ({"path": path, "reason": reason} for path, reason in broken))


def remove_others(folder: Path, about: About) -> None:
    """Remove lists and embeddings of an index as it was before, and what a killed process has left."""
    kept = about.images_in(folder), about.embeddings_in(folder)
    for pattern in ("images-*.jsonl", "embeddings-*.npy", ".*.tmp"):
        for path in folder.glob(pattern):
            if path not in kept:
                path.unlink(missing_ok=True)


def open_embeddings(folder: Path, about: About, count: int) -> np.ndarray:
    """(N, E) float32, mapped into memory.

    Raises:
        UserError: the file is damaged, or of another number of images.
    """
    if not count:
        return np.zeros((0, about.width), np.float32)
    path = about.embeddings_in(folder)
    try:
        # Of a map that is read-only, torch makes no tensor without a warning; this one is never written either.
        found = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error}); make the index again") from None
    if found.shape != (count, about.width) or found.dtype != np.float32:
        raise UserError(
            f"{path} is {found.shape} {found.dtype}, not {count} x {about.width} float32; make the index again"
        )
    embeddings: np.ndarray = found
    return embeddings


def _write(path: Path, values: Iterable[dict[str, Any]], indent: int | None = None) -> None:
    with replacing(path) as part, part.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as stream:
        for value in values:
            stream.write(json.dumps(value, ensure_ascii=True, indent=indent) + "\n")
