"""Images or videos with captions, as retrieval and captioning read them: Karpathy's files, MSR-VTT's, lists of pairs, or records
of our own."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from pydantic import Field

from dataset.formats.annotations import (
    Pictures,
    Row,
    images_folder,
    parse_rows,
    read_json,
    read_rows,
    texts_of,
    wanted_splits,
)
from dataset.formats.iglue import retrieval_row
from dataset.formats.video_files import Videos, is_video_info, msrvtt_rows
from dataset.media.video import VideoSource
from dataset.records.schema import BrokenRecordError, ImageSource
from utils.config import Config
from utils.errors import UserError

logger = logging.getLogger(__name__)


class CaptionedSplitConfig(Config):
    """A split of an image-text data set.

    ``annotations`` is Karpathy's ``dataset_coco.json`` or ``dataset_flickr30k.json``, of which ``splits`` names parts; or a
    JSON array or JSON lines of ``{"image", "caption", "image_id"}``, the caption a text or a list, or a dictionary of these by
    language; or xFlickr&CO's lines (``images`` then is the folder of ``flickr30k`` and ``coco``). Rows of one ``image_id``
    (without one: of one picture) are captions of the same image.

    Of videos it is MSR-VTT's ``MSRVTT_data.json``, or its list of pairs ``MSRVTT_JSFUSION_test.csv``; or rows with ``video``
    in the place of ``image``: the path of a video file, of a JSON list of base64 pictures or of a folder of pictures, or such a
    list itself.
    """

    annotations: str = Field(description="a Karpathy file, MSR-VTT's, a list of pairs, or records")
    splits: list[str] | None = Field(
        None, min_length=1, description="parts of a Karpathy file; its restval belongs to train"
    )
    images: str | None = Field(None, description="folder of relative paths; null: that of the annotations")
    listed: str | None = Field(
        None, description="a CSV with a column video_id: only these videos of MSR-VTT (MSRVTT_train.9k.csv)"
    )
    language: str | None = Field(
        None,
        description="of captions by language: records that have none in it are left out; null: all languages together",
    )


@dataclass(frozen=True)
class CaptionedImages:
    """Images (or videos) and their captions: caption c belongs to image ``image_of_caption[c]``; captions of an image lie
    together. ``ids``: the image_id of each image, or its path."""

    images: Sequence[ImageSource | VideoSource]
    captions: list[str]
    image_of_caption: np.ndarray
    ids: list[str]

    @property
    def captions_per_image(self) -> np.ndarray:
        """How many captions each image has, (I,)."""
        return np.bincount(self.image_of_caption, minlength=len(self.images))

    def references(self) -> list[tuple[str, ...]]:
        """The captions of each image, in order."""
        ends = np.cumsum(self.captions_per_image).tolist()
        return [tuple(self.captions[start:end]) for start, end in zip([0, *ends[:-1]], ends, strict=True)]


def read_captioned_images(config: CaptionedSplitConfig, key: str, max_broken: float) -> CaptionedImages:
    """Read and check a split; every picture or video is looked for.

    Raises:
        UserError: with the config ``key``: the file cannot be used, a split names no record, more than the share
            ``max_broken`` of the rows are broken, or one image_id stands for two pictures.
    """
    folder = images_folder(config.images, config.annotations)
    pictures, videos = Pictures(folder), Videos(folder)
    rows = _listed_rows(config, key) if config.splits is None else _karpathy_rows(config, key)
    if config.language is not None:
        rows = _spoken_in(config.language, rows, key, config.annotations)
    parsed = parse_rows(rows, lambda row: _parse(row, pictures, videos, config.language), key, max_broken)
    by_image: dict[str, tuple[ImageSource | VideoSource, list[str]]] = {}
    for identity, source, captions in parsed:
        first, known = by_image.setdefault(identity, (source, []))
        if first.path != source.path:
            raise UserError(
                f"{key}: image_id {identity} is {first.path} ({first.place}) and {source.path} ({source.place}); "
                "give each picture an id of its own"
            )
        known.extend(captions)
    counts = [len(captions) for _, captions in by_image.values()]
    return CaptionedImages(
        images=[source for source, _ in by_image.values()],
        captions=[caption for _, captions in by_image.values() for caption in captions],
        image_of_caption=np.repeat(np.arange(len(counts)), counts),
        ids=list(by_image),
    )


def _listed_rows(config: CaptionedSplitConfig, key: str) -> list[Row | BrokenRecordError]:
    if is_video_info(config.annotations, key):
        return msrvtt_rows(config.annotations, config.listed, key)
    if config.listed is not None:
        raise UserError(
            f"{key}.listed: {config.annotations} is not MSR-VTT's JSON file of videos and sentences; drop it"
        )
    rows = read_rows(config.annotations, key)
    if len(rows) == 1 and isinstance(rows[0], Row) and isinstance(rows[0].values.get("images"), list):
        if "annotations" in rows[0].values:
            raise UserError(
                f"{key}: {config.annotations} is COCO's own file of captions; give Karpathy's dataset_coco.json and `splits`, or "
                "rows of image and caption"
            )
        raise UserError(f"{key}: {config.annotations} holds several splits; name those that are wanted in `splits`")
    return rows


def _spoken_in(
    language: str, rows: list[Row | BrokenRecordError], key: str, path: str
) -> list[Row | BrokenRecordError]:
    """The rows without those whose captions are by language, and none in this one."""
    kept: list[Row | BrokenRecordError] = []
    there: dict[str, None] = {}
    for row in rows:
        value = row.values.get("caption") if isinstance(row, Row) else None
        spoken = [
            name for each in (value if isinstance(value, list) else [value]) if isinstance(each, dict) for name in each
        ]
        there |= dict.fromkeys(map(str, spoken))
        if not spoken or language in spoken:
            kept.append(row)
    if rows and not there:
        raise UserError(f"{key}: the captions of {path} are plain texts, not by language; drop `language`")
    if rows and not kept:
        raise UserError(f"{key}: {path} has no text in language {language!r}; languages there: {', '.join(there)}")
    if len(kept) < len(rows):
        logger.info(
            "%s: %d of %d records of %s have no text in %r", key, len(rows) - len(kept), len(rows), path, language
        )
    return kept


def _karpathy_rows(config: CaptionedSplitConfig, key: str) -> list[Row | BrokenRecordError]:
    """The wanted splits of a Karpathy file as rows of image, caption and image_id."""
    assert config.splits is not None
    try:
        content = read_json(config.annotations, key)
    except UserError as error:
        raise UserError(f"{error} (`splits` is for a Karpathy file; for JSON lines, drop it)") from None
    images = content.get("images") if isinstance(content, dict) else None
    if not isinstance(images, list):
        raise UserError(
            f"{key}: {config.annotations} has no list 'images', so there are no splits to name; drop `splits`"
        )
    for index, image in enumerate(images):
        if not isinstance(image, dict):
            raise UserError(f"{key}: {config.annotations}: images[{index}] is {image!r:.80}, no object")
    wanted_splits([str(image.get("split")) for image in images], config.splits, key, config.annotations)
    rows: list[Row | BrokenRecordError] = []
    for index, image in enumerate(images):
        if image.get("split") not in config.splits:
            continue
        row = Row(image, f"{config.annotations}: images[{index}]")
        try:
            name, sentences = row.get("filename", str), row.get("sentences", list)
        except BrokenRecordError as error:
            rows.append(error)
            continue
        folder = image.get("filepath")
        values = {
            "image": f"{folder}/{name}" if folder else name,
            "caption": [each.get("raw") if isinstance(each, dict) else None for each in sentences],
            "image_id": str(image.get("cocoid", image.get("imgid", name))),
        }
        rows.append(Row(values, row.place))
    return rows


def _parse(
    row: Row, pictures: Pictures, videos: Videos, language: str | None
) -> tuple[str, ImageSource | VideoSource, list[str]]:
    if "image" not in row.values and ("video" in row.values or "video_id" in row.values):
        return *videos.of_row(row), texts_of(row, "caption", language)
    row = retrieval_row(row)
    name = row.get("image", str)
    captions = texts_of(row, "caption", language)
    identity = row.values.get("image_id")
    return str(name if identity is None else identity), pictures.find(name, row.place), captions
