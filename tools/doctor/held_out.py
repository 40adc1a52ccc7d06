"""Decodes a sample of the images or videos of a held-out split in the same way as evaluation."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import Any, Literal

import numpy as np

from dataset.examples import held_out_records
from dataset.tasks.held_out import Choose
from dataset.text.processors import TextProcessor
from tasks.checks import NotCheckedError
from tasks.pretrain_evaluation import HeldOutReader
from tools.doctor.shared import sources_of
from tools.doctor.subject import Subject

IMAGES, SECONDS = 50, 1.0
"""Maximum number of images of a split that are decoded, and time limit for decoding."""
VIDEOS = 5
"""Maximum number of held-out pre-training videos that are decoded."""


def check_images(subject: Subject, key: str, items: Any) -> str:
    """Decodes a sample of a split's images, and returns a text that says how many were decoded.

    Raises:
        UserError: for the first image that cannot be read; a held-out set must be complete.
    """
    try:
        sources = sources_of(items)
    except NotCheckedError as error:
        return f"images are not decoded: {error}"
    view, until, count = subject.task.evaluation_view(subject.config), time.perf_counter() + SECONDS, 0
    rng = np.random.default_rng(subject.config.seed)
    chosen = rng.choice(len(sources), min(IMAGES, len(sources)), replace=False).tolist()
    for _ in held_out_records(chosen, lambda index: view(sources[index]), lambda index: sources[index].location):
        count += 1
        if time.perf_counter() > until:
            break
    return f"{count:,} random samples are intact"


def check_records(subject: Subject) -> str:
    """Reads a sample of the held-out pre-training records in the same way as evaluation, and returns a text that says how many
    were read.

    Raises:
        NotCheckedError: if the tokenizer could not be loaded.
        UserError: for the first record that cannot be used.
    """
    tokenizer: Any = subject.tokenizer
    if tokenizer is None:
        raise NotCheckedError("needs the tokenizer, which could not be loaded")
    config, rng = subject.config, np.random.default_rng(subject.config.seed)

    def at_random(max_records: int) -> Choose:
        return lambda count: rng.choice(count, min(max_records, count), replace=False).tolist()

    processor = TextProcessor(tokenizer, config.data.text)
    reader = HeldOutReader(config.evaluation, config.data, config.model.vision, processor, at_random(IMAGES))
    lists: tuple[Literal["files", "region_files"], ...] = ("files", "region_files")
    records = [record for which in lists if getattr(config.evaluation, which) for record in reader.images(which)]
    if config.evaluation.video_files:
        records += replace(reader, choose=at_random(VIDEOS)).videos()
    return f"{len(records):,} random records are intact"
