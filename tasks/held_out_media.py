"""Decodes held-out images and videos before training, for a limited time. Without this check, a damaged file would stop the run
during its evaluation, after the last training step."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from dataset.examples import held_out_records
from dataset.formats.captioned import CaptionedImages
from dataset.media.sources import ImageSource, VideoSource
from dataset.tasks.questions import QuestionTable
from dataset.text.processors import TextProcessor
from tasks.base import BaseTask
from tasks.finetune import FineTuneTask
from tasks.pretrain import PretrainTask
from tasks.pretrain_evaluation import HeldOutReader
from utils import distributed

MAX_SECONDS = 15.0
"""Maximum time in seconds that each rank spends decoding held-out media. This is enough for a few thousand images; larger splits
are decoded partially."""
MAX_RECORDS = 500
"""Maximum number of held-out pre-training records to read, because the pixels of all of them are in memory at the same time."""

Source = ImageSource | VideoSource

logger = logging.getLogger(__name__)


def check_held_out_media(task: BaseTask[Any, Any, Any]) -> None:
    """Decodes held-out images and videos in random order for at most :data:`MAX_SECONDS`. The ranks share the work.

    Raises:
        UserError: for the first image or video that cannot be decoded, because held-out sets must not contain broken records.
    """
    until = time.perf_counter() + MAX_SECONDS
    if isinstance(task, FineTuneTask):
        _check_splits(task, until)
    elif isinstance(task, PretrainTask) and task.config.evaluation is not None:
        _check_records(task, until)


def _check_splits(task: FineTuneTask[Any, Any, Any], until: float) -> None:
    splits = {key: sources_of(items) for key, items in task.held_out.by_key().items()}
    unique = {source.path or (key, index): source for key in splits for index, source in enumerate(splits[key])}
    sources = list(unique.values())
    indices = _shuffled_share(len(sources), task.config.seed, until)
    views = held_out_records(
        indices, lambda index: task.held_out.view(sources[index]), lambda index: sources[index].location
    )
    count = sum(1 for _ in views)
    if sources:
        logger.info("this rank decoded %d of %d held-out images and videos without errors", count, len(sources))


def _check_records(task: PretrainTask, until: float) -> None:
    config = task.config
    assert config.evaluation is not None

    def choose(count: int) -> Iterator[int]:
        return itertools.islice(_shuffled_share(count, config.seed, until), MAX_RECORDS)

    processor = TextProcessor(task.tokenizer, config.data.text)
    reader = HeldOutReader(config.evaluation, config.data, config.model.vision, processor, choose)
    lists: tuple[Literal["files", "region_files"], ...] = ("files", "region_files")
    count = sum(len(reader.images(which)) for which in lists if getattr(config.evaluation, which))
    count += len(reader.videos()) if config.evaluation.video_files else 0
    logger.info("this rank read %d held-out records without errors", count)


def _shuffled_share(count: int, seed: int, until: float) -> Iterator[int]:
    """Yields this rank's share of the indices below ``count``, in random order, until the time is up."""
    order = np.random.default_rng(seed).permutation(count)
    for index in order[distributed.rank() :: distributed.world_size()].tolist():
        if time.perf_counter() > until:
            return
        yield index


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
