"""Builds an index of the images in a folder: embeds each distinct file content once, in parts, and skips files that are already
indexed."""

from __future__ import annotations

import fcntl
import hashlib
import logging
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from batches.base import BrokenRecord
from dataset.broken import BrokenRecordError, broken_record
from dataset.files import IMAGE_BYTES, read_file
from engine.checkpoint import digest_of
from utils.errors import NotRegularError, UserError
from utils.files import check_regular, replacing
from utils.progress import progress_bar
from utils.suffixes import IMAGE_SUFFIXES
from x2vlm.search.files import (
    LOCK,
    METADATA_FILE,
    PARTS,
    IndexedImage,
    Metadata,
    check_digests,
    open_embeddings,
    read_images,
    read_metadata,
    read_part,
    remove_others,
    write_broken,
    write_images,
    write_metadata,
    write_part,
)
from x2vlm.search.index import ImageIndex, check_model

if TYPE_CHECKING:
    from x2vlm.base import LoadedModel
    from x2vlm.inputs import View

PART = 512
"""Number of images in a part; finished parts are kept if the build is interrupted."""


logger = logging.getLogger(__name__)


class _FileId(NamedTuple):
    """The identity of a file: its path relative to the folder, its size, and its modification time."""

    path: str
    bytes: int
    changed_ns: int


class BuildResult(NamedTuple):
    """The result of a build: the number of distinct images, the number of copies, the files that cannot be read, and the number
    of newly embedded images."""

    images: int
    copies: int
    broken: list[BrokenRecord]
    embedded: int


def index(model: LoadedModel, folder: str | Path, out: str | Path) -> ImageIndex:
    """Builds or updates, in the folder ``out``, an index of all images in ``folder`` and its subfolders. Raises the same errors
    as :func:`build_index`."""
    build_index(model, Path(folder), Path(out))
    return ImageIndex(out, model)


def build_index(model: LoadedModel, folder: Path, out: Path) -> BuildResult:
    """Indexes every image in ``folder`` and its subfolders. An existing index is updated, and its embeddings are reused. Videos
    are skipped.

    Raises:
        UserError: the model cannot compare images with texts, the folder contains no images, or the index belongs to a different
            model or folder, cannot be written, or is being built by another process.
    """
    width = check_model(model)
    source = os.path.realpath(model.origin) if Path(model.origin).exists() else model.origin
    metadata = Metadata(os.path.realpath(folder), source, model.runtime.weights, width)
    files = _files(folder)
    if not files:
        raise UserError("there is no image in this folder", where=folder, remedy="an index contains images, not videos")
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not (out / LOCK).exists():
            _check_empty(out)  # do not create a lock file in a folder that contains other files
        with _locked(out):
            _check_empty(out)
            metadata = _continued(out, metadata)
            write_metadata(out, metadata)
            remove_others(out, metadata)
            parts = _Parts(out, metadata)
            broken = _embed(model, folder, [file for file in files if file not in parts.contents], parts)
            write_broken(out, broken)
            images = parts.join(files)
            shutil.rmtree(out / PARTS, ignore_errors=True)
    except NotRegularError:
        raise
    except OSError as error:
        raise UserError(
            f"cannot be written: {error.strerror or error}",
            where=out,
            remedy="pass a different folder, or free some space",
        ) from None
    return BuildResult(images, len(files) - len(broken) - images, broken, parts.embedded)


def _files(folder: Path) -> list[_FileId]:
    if not folder.is_dir():
        raise UserError("no such folder", where=folder, remedy="pass a folder of images")
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            with suppress(FileNotFoundError):  # the file was removed after it was listed
                stat = path.stat()
                found.append(_FileId(path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns))
    return found


def _check_empty(out: Path) -> None:
    """Rejects a folder that contains files but no index."""
    others = (path.name for path in out.iterdir() if path.name != LOCK and not path.match(f".{METADATA_FILE}.*.tmp"))
    if not (out / METADATA_FILE).exists() and any(others):
        raise UserError(f"{out} contains other files", remedy="use an empty folder for the index")


@contextmanager
def _locked(out: Path) -> Iterator[None]:
    """Context manager that prevents other processes from building the same index. This is not possible on file systems without
    locks."""
    check_regular(out / LOCK)
    with (out / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                "another process is building this index", where=out, remedy="wait until it has finished"
            ) from None
        except OSError as error:
            logger.warning(
                "%s: the file system does not support locks (%s); build the index with only one process",
                out,
                error.strerror,
            )
        yield


def _continued(out: Path, metadata: Metadata) -> Metadata:
    """Returns ``metadata`` with the build number of the existing index. Rejects an index that was built with a different model or
    folder."""
    if not (out / METADATA_FILE).exists():
        return metadata
    previous = read_metadata(out)
    if previous.folder != metadata.folder:
        raise UserError(
            f"{out} is an index of {previous.folder}, not of {metadata.folder}", remedy="pass a different folder"
        )
    if previous.weights != metadata.weights:
        raise UserError(
            f"{out} was built by {previous.model}, whose weights or settings differ from {metadata.model}",
            remedy="pass a different folder",
        )
    return replace(metadata, made=previous.made, digests=previous.digests)


class _Parts:
    """The existing embeddings, from the previous index and from parts that have been written since then.

    Attributes:
        contents: the content hash of each file that does not have to be read again.
        embedded: number of newly embedded images.
    """

    def __init__(self, out: Path, metadata: Metadata):
        self.out, self.metadata, self.embedded = out, metadata, 0
        self.contents: dict[_FileId, str] = {}
        self.rows: dict[str, tuple[int, int]] = {}
        """For each distinct file, the index of its part and its row in the part."""
        self.parts: list[np.ndarray] = []
        if metadata.made:
            try:
                check_digests(out, metadata)
                images = read_images(metadata.images_in(out))
                self._add(images, open_embeddings(out, metadata, 1 + max((image.row for image in images), default=-1)))
            except UserError as error:
                logger.warning("%s: all images are embedded again", error)
        for path in sorted((out / PARTS).glob("*.npy")):
            try:
                self._add(*read_part(path))
            except UserError as error:
                logger.warning("%s; its images are embedded again", error)
                path.unlink()

    def _add(self, images: Sequence[IndexedImage], embeddings: np.ndarray) -> None:
        for image in images:
            self.contents[_FileId(image.path, image.bytes, image.changed_ns)] = image.content
            if image.row >= 0:
                self.rows.setdefault(image.content, (len(self.parts), image.row))
        self.parts.append(embeddings)

    def keep(self, contents: Sequence[tuple[_FileId, str]], embeddings: np.ndarray) -> None:
        """Writes a part: files with their content hashes, and the embeddings of new contents in order."""
        rows: dict[str, int] = {}
        images = []
        for file, content in contents:
            row = -1 if content in self.rows else rows.setdefault(content, len(rows))
            images.append(IndexedImage(*file, content, row))
        write_part(self.out / PARTS, len(self.parts), images, embeddings)
        self._add(images, embeddings)
        self.embedded += len(embeddings)

    def join(self, files: Sequence[_FileId]) -> int:
        """Writes the index of all files that could be read, and returns the number of distinct contents."""
        rows: dict[str, int] = {}
        first: list[IndexedImage] = []
        copies: list[IndexedImage] = []
        for file in files:
            content = self.contents.get(file)
            if content is not None:
                is_new = content not in rows
                (first if is_new else copies).append(IndexedImage(*file, content, rows.setdefault(content, len(rows))))
        metadata, digests = replace(self.metadata, made=self.metadata.made + 1), {}
        if rows:
            with replacing(metadata.embeddings_in(self.out)) as new:
                joined = np.lib.format.open_memmap(new, "w+", np.dtype(np.float32), (len(rows), metadata.width))
                for content, row in rows.items():
                    part, row_in_part = self.rows[content]
                    joined[row] = self.parts[part][row_in_part]
                joined.flush()
                digests[metadata.embeddings_in(self.out).name] = digest_of(new)
        write_images(metadata.images_in(self.out), [*first, *copies])
        digests[metadata.images_in(self.out).name] = digest_of(metadata.images_in(self.out))
        metadata = replace(metadata, digests=digests)
        write_metadata(self.out, metadata)  # from this point on, the new index is valid
        remove_others(self.out, metadata)
        return len(rows)


def _embed(model: LoadedModel, folder: Path, files: Sequence[_FileId], parts: _Parts) -> list[BrokenRecord]:
    """Embeds all new contents, and returns the files that cannot be read."""
    broken: list[BrokenRecord] = []
    with progress_bar(total=len(files), desc="indexing", unit="image") as bar:
        for start in range(0, len(files), PART):
            contents: list[tuple[_FileId, str]] = []
            views: dict[str, View] = {}
            for file in files[start : start + PART]:
                try:
                    path = folder / file.path
                    content = hashlib.blake2b(read_file(path, IMAGE_BYTES), digest_size=16).hexdigest()
                    if content not in parts.rows and content not in views:
                        views[content] = model.read(path)
                    contents.append((file, content))
                except UserError as error:
                    broken.append(BrokenRecord(file.path, "unreadable image", str(error)))
                except BrokenRecordError as error:
                    broken.append(broken_record(error, file.path))
                bar.update()
            embeddings = (
                model.embed_images(list(views.values())) if views else np.zeros((0, parts.metadata.width), np.float32)
            )
            parts.keep(contents, embeddings)
    return broken
