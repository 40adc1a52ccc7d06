"""Decodes a sample of the images or videos of a held-out split in the same way as evaluation."""

from __future__ import annotations

import itertools
import time
from typing import Any

import numpy as np

from dataset.tasks.held_out import Choose
from tasks.held_out_media import decode, read_records
from tasks.prepared import NotCheckedError
from tools.doctor.shared import sources_of
from tools.doctor.subject import Subject

IMAGES, SECONDS = 50, 1.0
"""Maximum number of images of a split that are decoded, and time limit for decoding."""
VIDEOS = 5
"""Maximum number of held-out pre-training videos that are decoded."""


def check_images(subject: Subject, items: Any) -> str:
    """Decodes a sample of a split's images, and returns a text that says how many were decoded.

    Raises:
        UserError: for the first image that cannot be read; a held-out set must be complete.
    """
    try:
        sources = sources_of(items)
    except NotCheckedError as error:
        return f"images are not decoded: {error}"
    until, rng = time.perf_counter() + SECONDS, np.random.default_rng(subject.config.seed)
    chosen = rng.choice(len(sources), min(IMAGES, len(sources)), replace=False).tolist()
    count = decode(subject, sources, itertools.takewhile(lambda _: time.perf_counter() <= until, chosen))
    return f"{count:,} random samples are intact"


def check_records(subject: Subject) -> str:
    """Reads a sample of the held-out pre-training records in the same way as evaluation, and returns a text that says how many
    were read.

    Raises:
        NotCheckedError: if the tokenizer could not be loaded.
        UserError: for the first record that cannot be used.
    """
    if subject.tokenizer is None:
        raise NotCheckedError("needs the tokenizer, which could not be loaded")
    rng = np.random.default_rng(subject.config.seed)

    def at_random(max_records: int) -> Choose:
        return lambda count: rng.choice(count, min(max_records, count), replace=False).tolist()

    return f"{read_records(subject, at_random(IMAGES), at_random(VIDEOS)):,} random records are intact"
