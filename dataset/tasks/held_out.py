"""Held-out records for evaluation: every one exactly once, in order, without augmentation."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from torch import Tensor

from dataset.media.augment import evaluation_view
from dataset.media.encoded import PixelsAre, decode, for_boxes
from dataset.media.video import FrameSampler
from dataset.records.broken import not_whole
from dataset.records.schema import BrokenRecordError, ImageKeys, RawRecord, Texts, parse_region_record, place_box
from dataset.shards.readers import Shards
from dataset.shards.remote.server import RemoteConfig
from dataset.tasks.streams.pairs import VideoStreamConfig
from dataset.text.processors import TextProcessor, clean_alternatives, clean_caption
from utils.image_size import ImageSize

Choose = Callable[[int], Iterable[int]]
"""From the number of records to the numbers of those that are read."""


@dataclass(frozen=True)
class HeldOutElement:
    """A described box: ``box`` (cx, cy, w, h) relative to the image; ``grain`` is the record's own word for its kind.

    Where training draws among several captions or attributes, this is the first of each.
    """

    caption: str
    box: tuple[float, float, float, float]
    grain: str


@dataclass(frozen=True)
class HeldOutRecord:
    """An image or a video with its cleaned texts. ``pixels`` (3, S, S) uint8, or (F, 3, S, S) of a video; ``captions`` may be
    empty; ``size``: width and height of an image as decoded."""

    location: str
    pixels: Tensor
    captions: list[str]
    elements: list[HeldOutElement]
    size: tuple[int, int] | None = None


def read_held_out(
    files: Sequence[str],
    processor: TextProcessor,
    *,
    image_size: ImageSize,
    keys: ImageKeys,
    caption_key: str = "caption",
    max_pixels: int = 80_000_000,
    pixels: PixelsAre = "shown",
    limit: int | None = None,
    choose: Choose = range,
    config_key: str = "evaluation.files",
    index_folder: str | None = None,
    remote: RemoteConfig | None = None,
) -> list[HeldOutRecord]:
    """Read the first ``limit`` records (None: all), or those of them that ``choose`` names.

    Raises:
        UserError: for the first broken record: a held-out set must be whole, or its numbers mean something else.
    """
    shards = Shards(files, key=config_key, index_folder=index_folder, remote=remote)
    return _whole(
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
    """The first clip with text in each record that :func:`read_held_out` would read, under the keys of ``config``.

    Raises:
        UserError: as :func:`read_held_out`.
    """

    def read(raw: RawRecord) -> HeldOutRecord:
        record = config.record(raw)
        if not record.spoken:
            raise BrokenRecordError("empty text", raw.location, "no clip has anything to say")
        clip = record.spoken[0]
        frames = sampler.evaluation(record.clips[clip], lambda frame: evaluation_view(frame, image_size))
        return HeldOutRecord(raw.location, frames, _clean(record.captions[clip], processor, raw.location), [])

    shards = Shards(files, key=config_key, index_folder=index_folder, remote=remote)
    return _whole(shards, choose(min(len(shards), limit or len(shards))), read)


def _whole(shards: Shards, numbers: Iterable[int], read: Callable[[RawRecord], HeldOutRecord]) -> list[HeldOutRecord]:
    """``read`` of records, every one of which has to be fit."""
    records = []
    for number in numbers:
        try:
            records.append(read(shards.read(number)))
        except Exception as error:
            raise not_whole(error, shards.location(number)) from None
    return records


def _read_one(
    raw: RawRecord,
    processor: TextProcessor,
    image_size: ImageSize,
    keys: ImageKeys,
    caption_key: str,
    decoding: tuple[int, PixelsAre],
) -> HeldOutRecord:
    record = parse_region_record(raw, keys, caption_key)
    max_pixels, pixels = decoding
    pixels = for_boxes(pixels) if record.elements else pixels
    image = decode(record.image.load(), max_pixels, raw.location, pixels, record.image.path)
    height, width = image.shape[-2:]
    if record.broken:
        raise BrokenRecordError(record.broken[0].kind, raw.location, record.broken[0].message)
    elements = []
    for element in record.elements:
        x, y, w, h = place_box(element.box, width, height, raw.location, element.name)
        box = ((x + w / 2) / width, (y + h / 2) / height, w / width, h / height)
        caption = _clean(element.captions, processor, raw.location)[0]
        if element.attributes:
            named = f"{_clean(element.attributes, processor, raw.location)[0]} {caption}"
            caption = clean_caption(named, processor.max_words)
        elements.append(HeldOutElement(caption, box, element.grain))
    captions = _clean(record.captions, processor, raw.location) if record.captions else []
    return HeldOutRecord(raw.location, evaluation_view(image, image_size), captions, elements, (width, height))


def _clean(texts: Texts, processor: TextProcessor, location: str) -> list[str]:
    return clean_alternatives(texts, processor.config.language, processor.max_words, location)
