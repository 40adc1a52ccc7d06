"""Making an index of the images in a folder: once for each content, in parts, and only what is new."""

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

from dataset.files import IMAGE_BYTES, read_file
from dataset.records.schema import BrokenRecordError
from engine.manifest import digest_of
from utils.errors import NotRegularError, UserError
from utils.files import check_regular, replacing
from utils.progress import progress_bar
from utils.suffixes import IMAGE_SUFFIXES
from x2vlm.search.encoding import Encoder
from x2vlm.search.files import (
    ABOUT,
    FORMAT,
    LOCK,
    PARTS,
    About,
    IndexedImage,
    check_digests,
    open_embeddings,
    read_about,
    read_images,
    read_part,
    remove_others,
    write_about,
    write_broken,
    write_images,
    write_part,
)
from x2vlm.search.index import ImageIndex

if TYPE_CHECKING:
    from x2vlm.base import LoadedModel
    from x2vlm.inputs import View

PART = 512
"""Images of a part, which is kept when the making is interrupted."""


logger = logging.getLogger(__name__)


class _File(NamedTuple):
    """A file, as it is known again: its path below the folder, its size, and the time of its last change."""

    path: str
    bytes: int
    changed_ns: int


class Made(NamedTuple):
    """What became of the files of a folder: different images, copies of these, files that cannot be read (each with its reason),
    and how many images were embedded now."""

    images: int
    copies: int
    broken: list[tuple[str, str]]
    embedded: int


def index(model: LoadedModel, folder: str | Path, out: str | Path) -> ImageIndex:
    """An index of all images in a folder and the folders in it; it is made in ``out``, or brought up to date. Raises as
    :func:`make`."""
    encoder = Encoder(model)
    make(encoder, Path(folder), Path(out))
    return ImageIndex(out, model, encoder=encoder)


def make(encoder: Encoder, folder: Path, out: Path) -> Made:
    """Index every image in ``folder`` and the folders in it, or bring an index up to date: what it has already is kept.
    Videos are passed over.

    Raises:
        UserError: there is no image; the index is of another model or folder, or cannot be written; another process makes it.
    """
    origin = Path(encoder.model.origin)
    source = os.path.realpath(origin) if origin.exists() else encoder.model.origin
    about = About(os.path.realpath(folder), source, encoder.weights, encoder.width)
    files = _files(folder)
    if not files:
        raise UserError(f"{folder}: no image is in this folder; an index is of images, not of videos")
    try:
        out.mkdir(parents=True, exist_ok=True)
        if not (out / LOCK).exists():
            _check_empty(out)  # before the lock is put into a folder of other files
        with _alone(out):
            _check_empty(out)
            about = _continued(out, about)
            write_about(out, about)
            remove_others(out, about)
            parts = _Parts(out, about)
            broken = _embed(encoder.model, folder, [file for file in files if file not in parts.contents], parts)
            write_broken(out, broken)
            images = parts.join(files)
            shutil.rmtree(out / PARTS, ignore_errors=True)
    except NotRegularError:
        raise
    except OSError as error:
        raise UserError(
            f"{out}: cannot be written: {error.strerror or error}; give another folder, or make room"
        ) from None
    return Made(images, len(files) - len(broken) - images, broken, parts.embedded)


def _files(folder: Path) -> list[_File]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file():
            with suppress(FileNotFoundError):  # it has gone since it was listed
                stat = path.stat()
                found.append(_File(path.relative_to(folder).as_posix(), stat.st_size, stat.st_mtime_ns))
    return found


def _check_empty(out: Path) -> None:
    """Refuse a folder with other files and no index."""
    others = (path.name for path in out.iterdir() if path.name != LOCK and not path.match(f".{ABOUT}.*.tmp"))
    if not (out / ABOUT).exists() and any(others):
        raise UserError(f"{out} holds other files; give an empty folder for the index")


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """Within, no other process makes the index; on disks without locks, nobody knows."""
    check_regular(out / LOCK)
    with (out / LOCK).open("a") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{out}: another process is making this index; wait until it is done") from None
        except OSError as error:
            logger.warning("%s: the disk has no locks (%s); make the index by one process alone", out, error.strerror)
        yield


def _continued(out: Path, about: About) -> About:
    """``about`` with the number of the index that is there; refuse one of another model or folder."""
    if not (out / ABOUT).exists():
        return about
    before = read_about(out)
    if before.folder != about.folder:
        raise UserError(f"{out} is an index of {before.folder}, not of {about.folder}; give another folder")
    if before.weights != about.weights:
        raise UserError(
            f"{out} was made by {before.model}, whose weights are not those of {about.model}; give another folder"
        )
    return replace(about, made=before.made, format=before.format, digests=before.digests)


class _Parts:
    """The embeddings that there are, of the index as it was and of parts that came since.

    Attributes:
        contents: the hash of the content of each file that needs no reading.
        embedded: images that were embedded now.
    """

    def __init__(self, out: Path, about: About):
        self.out, self.about, self.embedded = out, about, 0
        self.contents: dict[_File, str] = {}
        self.places: dict[str, tuple[int, int]] = {}
        """Number of the part, and row in it, of each content."""
        self.parts: list[np.ndarray] = []
        if about.made:
            try:
                check_digests(out, about)
                images = read_images(about.images_in(out))
                self._add(images, open_embeddings(out, about, 1 + max((image.row for image in images), default=-1)))
            except UserError as error:
                logger.warning("%s: all images are embedded anew", error)
        for path in sorted((out / PARTS).glob("*.npy")):
            try:
                self._add(*read_part(path))
            except UserError as error:
                logger.warning("%s; its images are embedded again", error)
                path.unlink()

    def _add(self, images: Sequence[IndexedImage], embeddings: np.ndarray) -> None:
        for image in images:
            self.contents[_File(image.path, image.bytes, image.changed_ns)] = image.content
            if image.row >= 0:
                self.places.setdefault(image.content, (len(self.parts), image.row))
        self.parts.append(embeddings)

    def keep(self, contents: Sequence[tuple[_File, str]], embeddings: np.ndarray) -> None:
        """Write a part: files with their contents, and the embeddings of those contents that are new, in their order."""
        rows: dict[str, int] = {}
        images = []
        for file, content in contents:
            row = -1 if content in self.places else rows.setdefault(content, len(rows))
            images.append(IndexedImage(*file, content, row))
        write_part(self.out / PARTS, len(self.parts), images, embeddings)
        self._add(images, embeddings)
        self.embedded += len(embeddings)

    def join(self, files: Sequence[_File]) -> int:
        """Write the index of those files that could be read, and return the number of contents."""
        rows: dict[str, int] = {}
        first: list[IndexedImage] = []
        copies: list[IndexedImage] = []
        for file in files:
            content = self.contents.get(file)
            if content is not None:
                is_new = content not in rows
                (first if is_new else copies).append(IndexedImage(*file, content, rows.setdefault(content, len(rows))))
        about, digests = replace(self.about, made=self.about.made + 1, format=FORMAT), {}
        if rows:
            with replacing(about.embeddings_in(self.out)) as new:
                joined = np.lib.format.open_memmap(new, "w+", np.dtype(np.float32), (len(rows), about.width))
                for content, row in rows.items():
                    part, place = self.places[content]
                    joined[row] = self.parts[part][place]
                joined.flush()
                digests[about.embeddings_in(self.out).name] = digest_of(new)
        write_images(about.images_in(self.out), [*first, *copies])
        digests[about.images_in(self.out).name] = digest_of(about.images_in(self.out))
        about = replace(about, digests=digests)
        write_about(self.out, about)  # from here on the index is the new one
        remove_others(self.out, about)
        return len(rows)


def _embed(model: LoadedModel, folder: Path, files: Sequence[_File], parts: _Parts) -> list[tuple[str, str]]:
    """Embed what is not known yet; returns the files that cannot be read, each with its reason."""
    broken: list[tuple[str, str]] = []
    with progress_bar(total=len(files), desc="indexing", unit="image") as bar:
        for start in range(0, len(files), PART):
            contents: list[tuple[_File, str]] = []
            views: dict[str, View] = {}
            for file in files[start : start + PART]:
                try:
                    path = folder / file.path
                    content = hashlib.blake2b(read_file(path, IMAGE_BYTES, str(path)), digest_size=16).hexdigest()
                    if content not in parts.places and content not in views:
                        views[content] = model.read(path)
                    contents.append((file, content))
                except (UserError, BrokenRecordError) as error:
                    broken.append((file.path, str(error)))
                bar.update()
            embeddings = (
                model.embed_images(list(views.values())) if views else np.zeros((0, parts.about.width), np.float32)
            )
            parts.keep(contents, embeddings)
    return broken
