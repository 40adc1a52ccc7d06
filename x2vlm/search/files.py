"""The files of an index of images: memory-mapped embeddings, and the list of images.

A folder ``I`` contains the following files, where N is the number of completed builds:

- ``embeddings-N.npy`` (rows, E) float32, with a row for each distinct file content.
- ``images-N.jsonl``, with a line for each file: line n describes the image whose embedding is in row n. Copies come
  after all distinct images.
- ``broken.jsonl``, which lists the files that cannot be read.
- ``index.json``, with the model, the indexed folder, and N.

``index.json`` is written last, so that readers always see a list and embeddings that belong together. It contains the SHA-256
digests of the list and the embeddings, which are checked when an index is opened. While an index is being built, its parts are
stored in ``I/parts``, from which an interrupted build continues.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from batches.base import BrokenRecord
from engine.checkpoint import digest_of
from utils.errors import UserError
from utils.files import check_regular, open_regular, parse_json, read_json, replacing

METADATA_FILE, BROKEN, PARTS, LOCK = "index.json", "broken.jsonl", "parts", "lock"
FORMAT = 3
"""Incremented when the file format changes."""


@dataclass(frozen=True)
class IndexedImage:
    """A file in an index: its path relative to the indexed folder, its size and modification time, which identify it, the hash of
    its content, and the ``row`` of its embedding."""

    path: str
    bytes: int
    changed_ns: int
    content: str
    row: int


@dataclass(frozen=True)
class Metadata:
    """Describes an index of the images in ``folder``, which were embedded by ``model``. ``weights`` is the digest of its weights
    and hyperparameters.
    ``made`` is the number of completed builds, which is 0 during the first build. ``digests`` contains the SHA-256 digests of the
    list and of the embeddings, by file name."""

    folder: str
    model: str
    weights: str
    width: int
    made: int = 0
    format: int = FORMAT
    digests: Mapping[str, str] = field(default_factory=dict)

    def images_in(self, index: Path) -> Path:
        """Returns the path of the list of images in the index folder."""
        return index / f"images-{self.made}.jsonl"

    def embeddings_in(self, index: Path) -> Path:
        """Returns the path of the embeddings in the index folder."""
        return index / f"embeddings-{self.made}.npy"


def read_metadata(folder: Path) -> Metadata:
    """Reads the description of an index.

    Raises:
        UserError: the index does not exist, or has a different format.
    """
    try:
        metadata = Metadata(**read_json(folder / METADATA_FILE))
        if (
            type(metadata.made) is not int
            or not isinstance(metadata.folder, str)
            or not isinstance(metadata.digests, dict)
        ):
            raise TypeError("a value has the wrong type")
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(
            "there is no index of images in this folder", where=folder, remedy="build one with python run.py index"
        ) from None
    except (OSError, ValueError, TypeError) as error:
        raise UserError(
            f"{folder / METADATA_FILE} cannot be read ({error})", remedy="remove the folder and rebuild the index"
        ) from None
    if metadata.format != FORMAT:
        raise UserError(
            f"an index of format {metadata.format}, but this version reads {FORMAT}",
            where=folder,
            remedy="remove the folder and rebuild the index",
        )
    return metadata


def write_metadata(folder: Path, metadata: Metadata) -> None:
    """Writes the description of an index."""
    _write(folder / METADATA_FILE, [asdict(metadata)], indent=2)


def read_images(path: Path) -> list[IndexedImage]:
    """Reads the list of files in an index or a part of an index.

    Raises:
        UserError: the list is damaged.
    """
    return [image_of(line, path) for line in read_lines(path)]


def read_lines(path: Path) -> list[bytes]:
    """Returns the lines of the list without parsing them, because parsing a million lines takes a second. Raises the same errors
    as :func:`read_images`."""
    try:
        with open_regular(path) as file:
            return file.read().splitlines()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})", remedy="rebuild the index") from None


def check_digests(folder: Path, metadata: Metadata) -> None:
    """Checks that the list and the embeddings of an index are unchanged.

    This reads both files once, which is 1 GB for a million images with 256-dimensional embeddings.

    Raises:
        UserError: a file is damaged.
    """
    embeddings = metadata.embeddings_in(folder)
    for path in (metadata.images_in(folder), *([embeddings] if embeddings.name in metadata.digests else [])):
        try:
            digest = digest_of(path)
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror})", remedy="rebuild the index") from None
        if digest != metadata.digests.get(path.name):
            raise UserError(f"{path} is damaged: its hash does not match the index", remedy="rebuild the index")


def image_of(line: bytes, path: Path) -> IndexedImage:
    """Parses a line of the list. Raises the same errors as :func:`read_images`."""
    try:
        return IndexedImage(**parse_json(line))
    except (ValueError, TypeError) as error:
        raise UserError(f"{path} cannot be read ({error})", remedy="rebuild the index") from None


def write_images(path: Path, images: Iterable[IndexedImage]) -> None:
    """Writes the list of images."""
    _write(path, map(asdict, images))


def write_broken(folder: Path, broken: Iterable[BrokenRecord]) -> None:
    """Writes the list of files that cannot be read."""
    _write(folder / BROKEN, (each.to_values() for each in broken))


def remove_others(folder: Path, metadata: Metadata) -> None:
    """Removes the lists and embeddings of previous builds, and files left behind by killed processes."""
    kept = metadata.images_in(folder), metadata.embeddings_in(folder)
    for pattern in ("images-*.jsonl", "embeddings-*.npy", ".*.tmp"):
        for path in folder.glob(pattern):
            if path not in kept:
                path.unlink(missing_ok=True)


def open_embeddings(folder: Path, metadata: Metadata, count: int) -> np.ndarray:
    """Returns the embeddings (N, E) float32, memory-mapped.

    Raises:
        UserError: the file is damaged, or does not match the number of images.
    """
    if not count:
        return np.zeros((0, metadata.width), np.float32)
    path = metadata.embeddings_in(folder)
    try:
        check_regular(path)
        # torch warns about tensors that share read-only memory. This map is copy-on-write instead, and is never written to.
        found = np.load(path, mmap_mode="c", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise UserError(f"{path} cannot be read ({error})", remedy="rebuild the index") from None
    if found.shape != (count, metadata.width) or found.dtype != np.float32:
        raise UserError(
            f"{path} is {found.shape} {found.dtype}, not {count} x {metadata.width} float32", remedy="rebuild the index"
        )
    embeddings: np.ndarray = found
    return embeddings


def write_part(folder: Path, number: int, images: Sequence[IndexedImage], embeddings: np.ndarray) -> None:
    """Writes a part of an index that is being built. The names of the part's two files contain a digest of both files."""
    folder.mkdir(exist_ok=True)
    listed, array = "".join(map(_line, map(asdict, images))).encode("utf-8"), io.BytesIO()
    np.save(array, embeddings)
    path = folder / f"{number:06}-{hashlib.sha256(listed + array.getvalue()).hexdigest()}.npy"
    for file, content in ((path.with_suffix(".jsonl"), listed), (path, array.getvalue())):
        with replacing(file) as temporary:
            temporary.write_bytes(content)


def read_part(path: Path) -> tuple[list[IndexedImage], np.ndarray]:
    """Returns the images and the embeddings of a part, given the path of its embeddings.

    Raises:
        UserError: the part is damaged.
    """
    total = hashlib.sha256()
    try:
        for file in (path.with_suffix(".jsonl"), path):
            with open_regular(file) as stream:
                while content := stream.read(1 << 20):
                    total.update(content)
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    if path.stem.partition("-")[2] != total.hexdigest():
        raise UserError(f"{path} is damaged: its hash does not match its name")
    return read_images(path.with_suffix(".jsonl")), np.load(path, mmap_mode="r", allow_pickle=False)


def _line(value: dict[str, Any], indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=True, indent=indent) + "\n"


def _write(path: Path, values: Iterable[dict[str, Any]], indent: int | None = None) -> None:
    with replacing(path) as part, part.open("w", encoding="utf-8", errors="surrogateescape", newline="\n") as stream:
        for value in values:
            stream.write(_line(value, indent))
