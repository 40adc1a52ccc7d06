"""Checks that the training data and the held-out data can be read."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tasks.config import PretrainConfig
from tasks.pretrain_evaluation import check_files as check_held_out_files
from tools.doctor.findings import Report
from tools.doctor.held_out import check_images, check_records
from tools.doctor.subject import Subject
from utils.events import CountedRecords, Event
from utils.findings import Finding
from utils.printing import counted


def check_training(subject: Subject, report: Report) -> None:
    """Reads the training data."""
    with (
        _logged("dataset.formats.annotations", logging.WARNING) as warnings,
        _logged("dataset.shards.remote.hub", logging.INFO) as hub_log,
    ):
        training = subject.read_training()
        records = ", ".join(f"{count:,} {name}" for name, count in training.stream_sizes.items())
        report.add("training", [_broken_records(message) for message in warnings], records)
        for message in hub_log:
            report.ok("hub", str(message))


@contextmanager
def _logged(name: str, level: int) -> Iterator[list[Event | str]]:
    """Collects what a module logs inside the context, at ``level`` or above: events, and other messages as texts."""
    messages: list[Event | str] = []
    handler = logging.Handler(level)
    handler.emit = lambda record: messages.append(  # type: ignore[method-assign]
        record.msg if isinstance(record.msg, Event) else record.getMessage()
    )
    logger = logging.getLogger(name)
    before = logger.level
    logger.setLevel(level)
    logger.addHandler(handler)
    try:
        yield messages
    finally:
        logger.removeHandler(handler)
        logger.setLevel(before)


def _broken_records(message: Event | str) -> Finding:
    key = None
    if isinstance(message, CountedRecords):
        key, message = message.key, message.model_copy(update={"key": None})
    return Finding("warning", key or "data", str(message), "fix or remove them, if they matter")


def check_held_out(subject: Subject, report: Report) -> None:
    """Reads the held-out splits, or a sample of the held-out records of pre-training."""
    for key, split in subject.splits().items():
        with report.check("held out"):
            items = subject.read_held_out(key, split)
            decoded = check_images(subject, items)
            report.ok("held out", f"{key}: {_counted(items)}; {decoded}")
    config = subject.config
    if isinstance(config, PretrainConfig) and config.evaluation is not None:
        subject.require_inputs("evaluation.")
        check_held_out_files(config.evaluation, config.data)
        report.ok("held out", f"evaluation: {check_records(subject)}")


def _counted(items: Any) -> str:
    texts = getattr(items, "captions", None)
    if texts is not None:
        media = counted(len(items.images), "image or video", "images or videos")
        return f"{media}, {counted(len(texts), 'caption', 'captions')}"
    return counted(len(items), "record", "records")
