"""Held-out records for evaluation. Each record is read exactly once, in order, without augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from torch import Tensor

from dataset.broken import BrokenRecordError
from dataset.config import RemoteConfig, VideoStreamConfig
from dataset.examples import held_out_records
from dataset.media.augment import evaluation_view
from dataset.media.encoded import PixelState, for_boxes
from dataset.media.video import FrameSampler
from dataset.records.boxes import place_box
from dataset.records.schema import ImageKeys, RawRecord, Texts, parse_region_record
from dataset.shards.readers import Shards
from dataset.tasks.streams.pairs import video_record
from dataset.text.processors import TextProcessor, clean_alternatives, clean_caption
from utils.image_size import ImageSize

Choose = Callable[[int], Iterable[int]]
"""Function that takes the number of records and returns the indices of the records to read."""


@dataclass(frozen=True)
class HeldOutElement:
    """A described box. ``box`` is (cx, cy, w, h) relative to the image; ``grain`` is the record's type of description.

    If there are several captions or attributes, training draws one of them at random; a held-out element contains the first.
    """

    caption: str
    box: tuple[float, float, float, float]
    grain: str


@dataclass(frozen=True)
class HeldOutRecord:
    """An image or a video with its cleaned texts.

    Attributes:
        location: location of the record.
        pixels: (3, S, S) uint8, or (F, 3, S, S) for a video.
        captions: captions of the image; may be empty.
        elements: described boxes.
        size: width and height of the decoded image; None for a video.
        long_captions: long captions; may be empty.
        absent: phrases without a box, because the image does not show what they describe; may be empty.
    """

    location: str
    pixels: Tensor
    captions: list[str]
    elements: list[HeldOutElement]
    size: tuple[int, int] | None = None
    long_captions: list[str] = field(default_factory=list)
    absent: list[str] = field(default_factory=list)


def read_held_out(
    files: Sequence[str],
    processor: TextProcessor,
    *,
    image_size: ImageSize,
    keys: ImageKeys,
    caption_key: str = "caption",
    max_pixels: int = 80_000_000,
    pixels: PixelState = "shown",
    limit: int | None = None,
    choose: Choose = range,
    config_key: str = "evaluation.files",
    index_folder: str | None = None,
    remote: RemoteConfig | None = None,
) -> list[HeldOutRecord]:
    """Reads held-out records with images.

    Args:
        files: entries as for :class:`~dataset.shards.readers.Shards`.
        processor: cleans the texts.
        image_size: side of the input in pixels, or its height and width.
        keys: keys of the image.
        caption_key: key of the caption.
        max_pixels: maximum number of pixels of an image.
        pixels: see :data:`~dataset.media.encoded.PixelState`.
        limit: read only the first ``limit`` records; if None, all records.
        choose: selects the records to read, given the number of records up to ``limit``.
        config_key: config key of ``files``, to name in error messages.
        index_folder: folder that contains the indexes of shards; if None, the user's cache folder.
        remote: settings for remote shards.

    Raises:
        UserError: for the first broken record. Metrics on an incomplete held-out set would not be comparable.
    """
    shards = Shards(files, key=config_key, index_folder=index_folder, remote=remote)
    return _read_all(
        shards,
        choose(min(len(shards), limit or len(shards))),
        lambda raw: _read_one(raw, processor, image_size, keys, caption_key, (max_pixels, pixels)),
    )


def read_held_out_videos(
    files: Sequence[str],
    processor: TextProcessor,
    config: VideoStreamConfig,
    sampler: FrameSampler,
    *,
    image_size: ImageSize,
    limit: int | None = None,
    choose: Choose = range,
    config_key: str = "evaluation.video_files",
    index_folder: str | None = None,
    remote: RemoteConfig | None = None,
) -> list[HeldOutRecord]:
    """Reads held-out records with videos, with the keys of ``config``. Only the first clip with text of each record is used.

    The other arguments are those of :func:`read_held_out`.

    Raises:
        UserError: see :func:`read_held_out`.
    """

    def read(raw: RawRecord) -> HeldOutRecord:
        record = video_record(config, raw)
        if not record.spoken:
            raise BrokenRecordError("empty text", "no clip has a text")
        clip = record.spoken[0]
        frames = sampler.evaluation(record.clips[clip], lambda frame: evaluation_view(frame, image_size))
        return HeldOutRecord(raw.location, frames, _clean(record.captions[clip], processor), [])

    shards = Shards(files, key=config_key, index_folder=index_folder, remote=remote)
    return _read_all(shards, choose(min(len(shards), limit or len(shards))), read)


def _read_all(
    shards: Shards, numbers: Iterable[int], read: Callable[[RawRecord], HeldOutRecord]
) -> list[HeldOutRecord]:
    """Reads records with ``read``; raises :class:`UserError` for the first broken record."""
    parsed = held_out_records(numbers, lambda number: read(shards.read(number)), shards.location, shards.exact_location)
    return list(parsed)


def _read_one(
    raw: RawRecord,
    processor: TextProcessor,
    image_size: ImageSize,
    keys: ImageKeys,
    caption_key: str,
    decoding: tuple[int, PixelState],
) -> HeldOutRecord:
    record = parse_region_record(raw, keys, caption_key)
    max_pixels, pixels = decoding
    pixels = for_boxes(pixels) if record.elements else pixels
    image = record.image.open(max_pixels, pixels).pixels()
    height, width = image.shape[-2:]
    if record.broken:
        raise record.broken[0]
    elements, absent = [], []
    for element in record.elements:
        if len(element.boxes) != 1:  # the box head predicts a single box
            absent += [] if element.boxes else _clean(element.captions, processor)[:1]
            continue
        x, y, w, h = place_box(element.boxes[0], width, height, element.name)
        box = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
        caption = _clean(element.captions, processor)[0]
        if element.attributes:
            named = f"{_clean(element.attributes, processor)[0]} {caption}"
            caption = clean_caption(named, processor.max_words)
        elements.append(HeldOutElement(caption, box, element.grain))
    captions, long_captions = (
        _clean(texts, processor) if texts else [] for texts in (record.captions, record.long_captions)
    )
    view = evaluation_view(image, image_size)
    return HeldOutRecord(raw.location, view, captions, elements, (width, height), long_captions, absent)


def _clean(texts: Texts, processor: TextProcessor) -> list[str]:
    return clean_alternatives(texts, processor.config.language, processor.max_words)
