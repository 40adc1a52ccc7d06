"""Images or videos with captions, for retrieval and captioning, in all supported formats."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from batches.base import BrokenRecord
from dataset.columns import SourceColumn, TextColumn
from dataset.config import CaptionedSplitConfig
from dataset.formats import karpathy, msrvtt
from dataset.formats.annotations import ImageFiles, Row, images_folder, parse_rows, read_records, texts_of
from dataset.formats.iglue import xflickrco_rows
from dataset.formats.video_files import Videos
from dataset.media.sources import ImageSource, VideoSource
from utils.errors import UserError

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageCaption:
    """A caption, and the image or video that it describes; ``image`` is the index of the latter."""

    caption: str
    image: int
    source: ImageSource | VideoSource

    @property
    def location(self) -> str:
        return self.source.location


@dataclass(frozen=True)
class CaptionedImages:
    """Images or videos with their captions, in columns that worker processes share. Item n is caption n with its image.

    Attributes:
        images: the images or videos.
        captions: all captions; the captions of an image are consecutive.
        image_of_caption: index of the image of each caption.
        ids: image_id of each image, or its path.
    """

    images: SourceColumn
    captions: TextColumn
    image_of_caption: np.ndarray
    ids: TextColumn

    def __len__(self) -> int:
        """Returns the number of captions."""
        return len(self.captions)

    def __getitem__(self, caption: int) -> ImageCaption:
        image = int(self.image_of_caption[caption])
        return ImageCaption(self.captions[caption], image, self.images[image])

    @property
    def captions_per_image(self) -> np.ndarray:
        """Number of captions of each image, (I,)."""
        return np.bincount(self.image_of_caption, minlength=len(self.images))

    def captions_of(self, image: int) -> tuple[str, ...]:
        """Returns the captions of an image, in order."""
        start, end = np.searchsorted(self.image_of_caption, [image, image + 1])
        return tuple(self.captions[start:end])

    def only(self, images: Sequence[int]) -> CaptionedImages:
        """Returns the given images, in ascending order, with their captions."""
        captions = [self.captions_of(image) for image in images]
        return CaptionedImages(
            images=SourceColumn([self.images[image] for image in images]),
            captions=TextColumn(caption for image_captions in captions for caption in image_captions),
            image_of_caption=np.repeat(np.arange(len(captions)), list(map(len, captions))),
            ids=TextColumn(self.ids[image] for image in images),
        )

    def references(self) -> list[tuple[str, ...]]:
        """Returns the captions of each image, in order."""
        return [self.captions_of(image) for image in range(len(self.images))]


def read_captioned_images(config: CaptionedSplitConfig, key: str, max_broken: float) -> CaptionedImages:
    """Reads and checks a split. Every image or video must exist.

    Raises:
        UserError: if the file cannot be used, a split has no record, more than the fraction ``max_broken`` of the rows is broken,
            or two images have the same image_id. The message names the config ``key``.
    """
    folder = images_folder(config.images, config.annotations)
    images, videos = ImageFiles(folder), Videos(folder)
    rows = _rows(config, key)
    if config.language is not None:
        rows = _rows_in_language(config.language, rows, key, config.annotations)
    parsed = parse_rows(
        rows,
        lambda row: _parse(row, images, videos, config.language),
        key,
        max_broken,
        f"{folder} ({key}.images)",
    )
    by_image: dict[str, tuple[ImageSource | VideoSource, list[str]]] = {}
    for identity, source, captions in parsed:
        first, known = by_image.setdefault(identity, (source, []))
        if first.path != source.path:
            raise UserError(
                f"image_id {identity} is {first.path} ({first.location}) and {source.path} ({source.location})",
                where=key,
                remedy="give each image a different id",
            )
        known.extend(captions)
    counts = [len(captions) for _, captions in by_image.values()]
    return CaptionedImages(
        images=SourceColumn([source for source, _ in by_image.values()]),
        captions=TextColumn(caption for _, captions in by_image.values() for caption in captions),
        image_of_caption=np.repeat(np.arange(len(counts)), counts),
        ids=TextColumn(by_image),
    )


def _rows(config: CaptionedSplitConfig, key: str) -> Iterable[Row | BrokenRecord]:
    if config.format == "karpathy":
        return karpathy.captioned_rows(config.annotations, config.splits or (), key)
    if config.format == "msrvtt":
        return msrvtt.captioned_rows(config.annotations, config.listed, key)
    if config.format == "xflickrco":
        return xflickrco_rows(config.annotations, key)
    return read_records(config.annotations, key, ("karpathy", "msrvtt", "xflickrco"))


def _rows_in_language(
    language: str, all_rows: Iterable[Row | BrokenRecord], key: str, path: str
) -> list[Row | BrokenRecord]:
    """Drops the rows whose captions have no text in ``language``. Captions must be dictionaries by language."""
    rows, kept = list(all_rows), list[Row | BrokenRecord]()
    languages: dict[str, None] = {}
    for row in rows:
        value = row.values.get("caption") if isinstance(row, Row) else None
        spoken = [
            name for each in (value if isinstance(value, list) else [value]) if isinstance(each, dict) for name in each
        ]
        languages |= dict.fromkeys(map(str, spoken))
        if not spoken or language in spoken:
            kept.append(row)
    if rows and not languages:
        raise UserError(
            f"the captions of {path} are plain texts, not by language", where=key, remedy="remove `language`"
        )
    if rows and not kept:
        raise UserError(
            f"{path} has no text in language {language!r}", where=key, remedy=f"its languages: {', '.join(languages)}"
        )
    if len(kept) < len(rows):
        logger.info(
            "%s: %d of %d records of %s have no text in %r", key, len(rows) - len(kept), len(rows), path, language
        )
    return kept


def _parse(
    row: Row, images: ImageFiles, videos: Videos, language: str | None
) -> tuple[str, ImageSource | VideoSource, list[str]]:
    if "image" not in row.values and ("video" in row.values or "video_id" in row.values):
        return *videos.of_row(row), texts_of(row, "caption", language)
    name = row.get("image", str)
    captions = texts_of(row, "caption", language)
    identity = row.values.get("image_id")
    return str(name if identity is None else identity), images.find(name, row.location), captions
