"""Decodes held-out images and videos before training, for a limited time. Without this check, a damaged file would stop the run
during its evaluation, after the last training step."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from dataset.examples import held_out_records
from dataset.formats.captioned import CaptionedImages
from dataset.media.sources import ImageSource, VideoSource
from dataset.tasks.held_out import Choose
from dataset.tasks.questions import QuestionTable
from dataset.text.processors import TextProcessor
from tasks.config import PretrainConfig
from tasks.prepared import Findings, PreparedRun
from tasks.pretrain_evaluation import HeldOutReader
from utils import distributed

MAX_SECONDS = 15.0
"""Maximum time in seconds that each rank spends decoding held-out media. This is enough for a few thousand images; larger splits
are decoded partially."""
MAX_RECORDS = 500
"""Maximum number of held-out pre-training records to read, because the pixels of all of them are in memory at the same time."""

Source = ImageSource | VideoSource

logger = logging.getLogger(__name__)


def check_held_out_media(run: PreparedRun, found: Findings) -> None:
    """Decodes held-out images and videos in random order for at most :data:`MAX_SECONDS`. The ranks share the work.

    Raises:
        UserError: for the first image or video that cannot be decoded, because held-out sets must not contain broken records.
    """
    until = time.perf_counter() + MAX_SECONDS

    def share(count: int) -> Iterator[int]:
        order = np.random.default_rng(run.config.seed).permutation(count).tolist()
        own = order[distributed.rank() :: distributed.world_size()]
        return itertools.takewhile(lambda _: time.perf_counter() <= until, own)

    if run.fine_tunes:
        splits = {key: sources_of(items) for key, items in run.held_out.items()}
        unique = {source.path or (key, index): source for key in splits for index, source in enumerate(splits[key])}
        sources = list(unique.values())
        count = decode(run, sources, share(len(sources)))
        if sources:
            logger.info("this rank decoded %d of %d held-out images and videos without errors", count, len(sources))
    elif isinstance(run.config, PretrainConfig) and run.config.evaluation is not None:
        count = read_records(run, lambda records: itertools.islice(share(records), MAX_RECORDS))
        logger.info("this rank read %d held-out records without errors", count)


def decode(run: PreparedRun, sources: Sequence[Source], indices: Iterable[int]) -> int:
    """Decodes held-out images and videos as evaluation does, and returns their number.

    Raises:
        UserError: for the first one that cannot be decoded.
    """
    view = run.task.evaluation_view(run.config)
    views = held_out_records(indices, lambda index: view(sources[index]), lambda index: sources[index].location)
    return sum(1 for _ in views)


def read_records(run: PreparedRun, choose: Choose, choose_videos: Choose | None = None) -> int:
    """Reads held-out records of pre-training as evaluation does, and returns their number.

    Args:
        run: the run, whose config has a section ``evaluation``.
        choose: chooses the records with images, given their number.
        choose_videos: chooses the records with videos; if None, ``choose`` does.

    Raises:
        UserError: for the first record that cannot be used.
    """
    config = run.config
    processor = TextProcessor(run.tokenizer, config.data.text)
    reader = HeldOutReader(config.evaluation, config.data, config.model.vision, processor, choose)
    lists: tuple[Literal["files", "region_files"], ...] = ("files", "region_files")
    count = sum(len(reader.images(which)) for which in lists if getattr(config.evaluation, which))
    if config.evaluation.video_files:
        count += len(replace(reader, choose=choose_videos or choose).videos())
    return count


def sources_of(items: Any) -> list[Source]:
    """Returns the images or videos of a split. If the split is not one of our tables, they are taken from the fields ``image``,
    ``images`` and ``source`` of its items."""
    if isinstance(items, CaptionedImages):
        return list(items.images)
    if isinstance(items, QuestionTable):
        return list(items.sources())
    return list(itertools.chain.from_iterable(_item_sources(item) for item in items))


def _item_sources(item: Any) -> Iterator[Source]:
    for name in ("image", "images", "source"):
        value = getattr(item, name, None)
        values: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
        yield from (each for each in values if isinstance(each, ImageSource | VideoSource))
