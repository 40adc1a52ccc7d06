"""A sample of the images or videos of a held-out split, decoded as evaluation does it."""

from __future__ import annotations

import time
from typing import Any

import numpy as np

from dataset.records.broken import not_whole
from dataset.records.schema import BrokenRecordError
from tools.doctor.findings import NotCheckedError
from tools.doctor.shared import sources_of
from tools.doctor.subject import Subject

IMAGES, SECONDS = 50, 1.0
"""Images of a split that are decoded, and the time after which no more are."""


def check_images(subject: Subject, key: str, items: Any) -> str:
    """Decode a sample of a split's images; says how many.

    Raises:
        UserError: for the first one that cannot be read: a held-out set has to be whole.
    """
    try:
        sources = sources_of(items)
    except NotCheckedError as error:
        return f"images are not decoded: {error}"
    view, until, count = subject.task.evaluation_view(subject.config), time.perf_counter() + SECONDS, 0
    rng = np.random.default_rng(subject.config.seed)
    for index in rng.choice(len(sources), min(IMAGES, len(sources)), replace=False).tolist():
        try:
            view(sources[index])
        except BrokenRecordError as error:
            raise not_whole(error, lambda place=sources[index].place: place) from None  # type: ignore[misc]
        count += 1
        if time.perf_counter() > until:
            break
    return f"{count:,} at random are whole"
