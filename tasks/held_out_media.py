"""Held-out images and videos are decoded before training, within a bounded time: a damaged one would end the run at its
evaluation, after the last training step."""

from __future__ import annotations

import itertools
import logging
import time
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import numpy as np

from dataset.formats.captioned import CaptionedImages
from dataset.media.video import VideoSource
from dataset.records.broken import not_whole
from dataset.records.schema import ImageSource
from dataset.tasks.questions import QuestionTable
from dataset.text.processors import TextProcessor
from tasks.base import BaseTask
from tasks.finetune import FineTuneTask
from tasks.pretrain import PretrainTask
from tasks.pretrain_evaluation import HeldOutReader
from utils import distributed

SECONDS = 15.0
"""Time that each rank decodes held-out media for: some thousand images. Larger splits are decoded in part."""
RECORDS = 500
"""Held-out records of pre-training that are read, at most: their pixels are in memory together."""

Source = ImageSource | VideoSource

logger = logging.getLogger(__name__)


def check_held_out_media(task: BaseTask[Any, Any, Any]) -> None:
    """Decode held-out images and videos in random order for at most :data:`SECONDS`; each rank takes a share.

    Raises:
        UserError: for the first one that cannot be decoded: a held-out set has to be whole.
    """
    until = time.perf_counter() + SECONDS
    if isinstance(task, FineTuneTask):
        _check_splits(task, until)
    elif isinstance(task, PretrainTask) and task.config.evaluation is not None:
        _check_records(task, until)


def _check_splits(task: FineTuneTask[Any, Any, Any], until: float) -> None:
    splits = {key: sources_of(items) for key, items in task.held_out.by_key().items()}
    unique = {source.path or (key, index): source for key in splits for index, source in enumerate(splits[key])}
    sources = list(unique.values())
    count = 0
    for index in _share(len(sources), task.config.seed, until):
        try:
            task.held_out.view(sources[index])
        except Exception as error:
            raise not_whole(error, lambda place=sources[index].place: place) from None  # type: ignore[misc]
        count += 1
    if sources:
        logger.info("%d of %d held-out images and videos were decoded by this rank, and are whole", count, len(sources))


def _check_records(task: PretrainTask, until: float) -> None:
    config = task.config
    assert config.evaluation is not None

    def choose(count: int) -> Iterator[int]:
        return itertools.islice(_share(count, config.seed, until), RECORDS)

    processor = TextProcessor(task.tokenizer, config.data.text)
    reader = HeldOutReader(config.evaluation, config.data, config.model.vision, processor, choose)
    lists: tuple[Literal["files", "region_files"], ...] = ("files", "region_files")
    count = sum(len(reader.images(which)) for which in lists if getattr(config.evaluation, which))
    count += len(reader.videos()) if config.evaluation.video_files else 0
    logger.info("%d held-out records were read by this rank, and are whole", count)


def _share(count: int, seed: int, until: float) -> Iterator[int]:
    """This rank's share of the indexes below ``count`` in random order, until the time is over."""
    order = np.random.default_rng(seed).permutation(count)
    for index in order[distributed.rank() :: distributed.world_size()].tolist():
        if time.perf_counter() > until:
            return
        yield index


def sources_of(items: Any) -> list[Source]:
    """The images or videos of a split: of our tables, or of the fields ``image``, ``images`` or ``source`` of each item; empty
    if no item has such a field."""
    if isinstance(items, CaptionedImages):
        return list(items.images)
    if isinstance(items, QuestionTable):
        return list(items.sources())
    return list(itertools.chain.from_iterable(_of_item(item) for item in items))


def _of_item(item: Any) -> Iterator[Source]:
    for name in ("image", "images", "source"):
        value = getattr(item, name, None)
        values: Sequence[Any] = value if isinstance(value, list | tuple) else [value]
        yield from (each for each in values if isinstance(each, ImageSource | VideoSource))
