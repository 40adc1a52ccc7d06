"""Declarations of the pre-training data sets.

The module of a data set declares its official files and the folders that are built from them. The code for each folder consists
of two functions: one reads the official files and yields the images with their annotations, and the other converts an image to
records.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from batches.base import BrokenRecord
from dataset.prepare.counts import Counts
from dataset.prepare.finders import ImageFiles, MediaNames
from dataset.prepare.img2dataset import ListFormat
from dataset.prepare.line_shards import Convert
from dataset.prepare.options import Options
from dataset.prepare.raw_folder import RawFile, RawFolder

Files = Mapping[str, RawFile]
"""Official files, under the names that the data set's module uses for them."""


class AnnotatedMedia(NamedTuple):
    """An image or video that the official files describe at ``location``. ``values`` is sent to a worker process, which converts
    it to records."""

    names: MediaNames
    location: str
    values: Any


class Found(NamedTuple):
    """An annotated image or video whose ``file`` was found. ``path`` is the file's path as written to records."""

    path: str
    file: Path
    location: str
    values: Any


@dataclass(frozen=True)
class Source:
    """The annotated images or videos of a data set.

    Attributes:
        items: the images or videos in a fixed order, with a broken record in place of each unusable image or video.
        convert: function that yields the records of an image or video, which it gets as :class:`Found`.
        total: number of images or videos, for the progress bar.
        counts: counts for the entries that are read before the first image or video.
    """

    items: Iterable[AnnotatedMedia | BrokenRecord]
    convert: Convert
    total: int
    counts: Counts = field(default_factory=Counts)


@dataclass(frozen=True)
class Records:
    """A folder of records that is built from a data set.

    Attributes:
        folder: name of the folder, as in the configs.
        content: what a record is.
        files: function that finds the official files.
        read: function that reads the official files; its second argument is a folder for temporary files.
        image_files: the image files of the data set, or None if its files are videos.
        batch: number of images that a process converts at a time.
        held_out_split: name of the held-out split that the folder consists of, or None if the folder is for training.
    """

    folder: str
    content: str
    files: Callable[[RawFolder], Files]
    read: Callable[[Files, Path, Options], Source]
    image_files: ImageFiles | None
    batch: int = 200
    held_out_split: str | None = None


class Pair(NamedTuple):
    """The published URL and caption of an image, with their location."""

    location: str
    url: str
    caption: str


RowToRecord = Callable[[Mapping[str, Any], tuple[int, int], Counts, str], "dict[str, Any] | None"]
"""Function that converts the annotations of an image to a record without the image. It returns None, after counting the reason,
if nothing can be used. Its arguments are the official columns by name, the size of the stored image in pixels, the counts, and
the location."""


@dataclass(frozen=True)
class Annotations:
    """The annotations in each row of a list, next to a URL and a caption.

    Attributes:
        content: what a record is.
        columns: official names of the columns that are converted, in lower case.
        convert: function that converts the columns; it must be a top-level function, because worker processes call it.
        has_boxes: whether the annotations have boxes, which would be wrong for cropped or padded images.
        needs: column without which a row cannot become a record; rows in which this column is null or blank are omitted from
            lists.
    """

    content: str
    columns: tuple[str, ...]
    convert: RowToRecord
    has_boxes: bool = True
    needs: str | None = None


@dataclass(frozen=True)
class Urls:
    """URLs and captions, from which each user downloads the images with img2dataset. Official lists are tables (Parquet files,
    JSON lines, or shards that img2dataset built from them), unless ``read`` is given.

    Attributes:
        columns: maps our name for each column of a table to its official names in lower case; the first name that exists is used.
        in_shards: like ``columns``, for the JSON files in shards, whose width and height describe the resized image.
        annotations: additional columns that become part of the records; if None, a record is an image and its caption.
        files: function that finds the files of a list that is not a table.
        read: function that yields the pairs of a list that is not a table, and counts them. Such lists are small enough to
            compare the URLs and images with each other.
    """

    columns: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    in_shards: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    annotations: Annotations | None = None
    files: Callable[[RawFolder], Files] | None = None
    read: Callable[[Files, Counts], Iterator[Pair]] | None = None

    @property
    def are_compared(self) -> bool:
        """True if each URL and each image is used only once, and URLs without an image are listed as missing."""
        return self.read is not None

    @property
    def list_format(self) -> ListFormat:
        """File format of the lists for img2dataset."""
        return "tsv" if self.are_compared else "parquet"


@dataclass(frozen=True)
class Splits:
    """A folder with an annotation file for each split, built from a data set that is not for pre-training on images.

    Attributes:
        folder: name of the folder.
        content: what a record is.
        files: function that finds the official files.
        read: function that returns the records of each split. It gets the official files, the folder, the user's options, and the
            counts, and may write images to ``images/`` in the folder.
        options: names of the options of :class:`~dataset.prepare.options.Options` that only this data set uses.
    """

    folder: str
    content: str
    files: Callable[[RawFolder], Files]
    read: Callable[[Files, Path, Options, Counts], Mapping[str, Iterator[Mapping[str, Any]]]]
    options: tuple[str, ...] = ()


@dataclass(frozen=True)
class DataSet:
    """A public data set. ``run.py prepare --list``, its help and the table in docs/pretraining_data.md are generated from these
    declarations.

    Attributes:
        name: name of the data set on the command line.
        title: official name of the data set.
        home: website of the data set.
        licence: licence as stated on the website; not verified here.
        files: official files, and what each contains.
        sizes: official counts by unit, from the website; the result is compared with them.
        makes: what is built from the data set: folders of records for pre-training, URLs from which each user downloads the
            images, or annotation files of splits.
        required: names of held-out splits whose files must exist (:data:`dataset.prepare.held_out.SPLITS`).
        group: name of the group that the data set belongs to (:data:`dataset.prepare.catalogue.READERS`); "" if it has none.
        read_by: the configs that read the data set, if it has no group.
        paper: the numbers in table 1 of the paper.
    """

    name: str
    title: str
    home: str
    licence: str
    files: Mapping[str, str]
    sizes: Mapping[str, int]
    makes: tuple[Records, ...] | Urls | Splits
    required: tuple[str, ...] = ()
    group: str = ""
    read_by: str = ""
    paper: str = ""

    @property
    def has_videos(self) -> bool:
        return isinstance(self.makes, tuple) and any(records.image_files is None for records in self.makes)

    @property
    def options(self) -> tuple[str, ...]:
        """Names of the options of :class:`~dataset.prepare.options.Options` that only some data sets use, including this one."""
        if isinstance(self.makes, Splits):
            return self.makes.options
        if isinstance(self.makes, Urls):
            return ("verify", "ray") if self.makes.are_compared else ("filters", "ray")
        return ("videos",) if self.has_videos else ("verify",)

    @property
    def folders(self) -> list[tuple[str, str]]:
        """The folders that are built from the data set, and what a record in each folder contains."""
        if isinstance(self.makes, Splits):
            return [(self.makes.folder, self.makes.content)]
        if isinstance(self.makes, tuple):
            return [(records.folder, records.content) for records in self.makes]
        annotations = self.makes.annotations
        return [(self.name, annotations.content if annotations is not None else "an image and its caption")]


def files_named(**names: str | tuple[str, ...]) -> Callable[[RawFolder], Files]:
    """Returns a function that finds official files by name. If a file may have several names, the first that exists is used.

    The function raises :class:`UserError` with the names of all missing files.
    """
    return partial(_find_files, names)


def _find_files(names: Mapping[str, str | tuple[str, ...]], raw: RawFolder) -> Files:
    choices = {key: (each,) if isinstance(each, str) else each for key, each in names.items()}
    names_by_key = {key: next(filter(raw.find, each), each[0]) for key, each in choices.items()}
    return dict(zip(names_by_key, raw.need(*names_by_key.values()), strict=True))
