"""Checks the data: whether they can be read, whether there are enough of them, and what a sample contains."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tasks.checks import (
    findings_in_answers,
    length_of_run,
    records_per_micro_batch,
    small_data,
)
from tasks.config import PretrainConfig, VideoQAConfig, VQAConfig
from tasks.finetune import FineTuneTask
from tasks.pretrain_evaluation import check_files as check_held_out_files
from tools.doctor.boxes import check_boxes
from tools.doctor.findings import NotCheckedError, Report
from tools.doctor.held_out import check_images, check_records
from tools.doctor.image_blind import check_image_blind
from tools.doctor.record_keys import check_record_keys
from tools.doctor.sample import check_sample, check_unknown
from tools.doctor.shared import check_shared
from tools.doctor.subject import Subject
from utils.events import CountedRecords, Event
from utils.findings import Finding
from utils.printing import counted


def check_data(subject: Subject, report: Report) -> None:
    """Runs the checks in the section ``data``: reads the training data and held-out splits, and a sample of their records."""
    report.section("data")
    with (
        report.check("training"),
        _logged("dataset.formats.annotations", logging.WARNING) as warnings,
        _logged("dataset.shards.remote.hub", logging.INFO) as hub_log,
    ):
        training = subject.read_training()
        records = ", ".join(f"{count:,} {name}" for name, count in training.stream_sizes.items())
        report.add("training", [_broken_records(message) for message in warnings], records)
        for message in hub_log:
            report.ok("hub", str(message))
    _check_held_out(subject, report)
    with report.check("batch"):
        _check_sizes(subject, report)
    check_record_keys(subject, report)
    check_boxes(subject, report)
    check_sample(subject, report)
    check_unknown(subject, report)
    _check_answers(subject, report)
    check_image_blind(subject, report)
    check_shared(subject, report)


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


def _check_held_out(subject: Subject, report: Report) -> None:
    for key, split in subject.splits().items():
        with report.check("held out"):
            items = subject.read_held_out(key, split)
            decoded = check_images(subject, key, items)
            report.ok("held out", f"{key}: {_counted(items)}; {decoded}")
    config = subject.config
    if isinstance(config, PretrainConfig) and config.evaluation is not None:
        with report.check("held out"):
            subject.require_inputs("evaluation.")
            check_held_out_files(config.evaluation, config.data)
            report.ok("held out", f"evaluation: {check_records(subject)}")


def _counted(items: Any) -> str:
    texts = getattr(items, "captions", None)
    if texts is not None:
        media = counted(len(items.images), "image or video", "images or videos")
        return f"{media}, {counted(len(texts), 'caption', 'captions')}"
    return counted(len(items), "record", "records")


def _check_sizes(subject: Subject, report: Report) -> None:
    """Compares the batch size with the size of the data, and reports the number of epochs."""
    config, training = subject.config, subject.training
    # Batch sizes that are not divisible as required are reported even without data.
    chunks = config.plan(subject.gpus).chunks
    if training is None:
        raise NotCheckedError("the training data cannot be read")
    findings = []
    if subject.is_contrastive():
        sizes = records_per_micro_batch(config.data)
        findings += small_data(sizes, training.stream_sizes, subject.gpus, chunks)
    records = next(iter(training.stream_sizes.values()))
    plan = config.plan(subject.gpus, records)
    if finding := length_of_run(plan, fine_tunes=issubclass(subject.task, FineTuneTask)):
        findings.append(finding)
    epochs = config.train.epochs or plan.epochs
    on = counted(subject.gpus, "process", "processes")
    per_step, total = (counted(number, "record", "records") for number in (plan.records_per_step, records))
    text = f"{per_step} per step on {on}; {epochs:.3g} passes over {total}"
    report.add("batch", findings, text)


def _check_answers(subject: Subject, report: Report) -> None:
    """Checks that the answers to the questions are in the list of candidates."""
    from dataset.tasks.video_qa import read_classes
    from dataset.tasks.vqa import read_candidates

    config = subject.config
    if not isinstance(config, VQAConfig | VideoQAConfig) or config.evaluation.answers is None:
        return
    with report.check("answers"):
        subject.require_inputs("evaluation.answers")
        path, key = config.evaluation.answers, "evaluation.answers"
        exact = isinstance(config, VideoQAConfig)
        if isinstance(config, VideoQAConfig):
            listed = read_classes(path, key, config.model.classes)
        else:
            listed = read_candidates(path, key)
        splits = {"data.train": getattr(subject.training, "items", None), **subject.held_out}
        splits = {key: items for key, items in splits.items() if items is not None}
        if not splits:
            raise NotCheckedError("no questions can be read")
        findings = findings_in_answers(splits, listed, path, exact=exact)
        report.add("answers", findings, f"all are among the {len(listed):,} candidates")
