"""Checks how well questions can be answered without their images, and whether the run that provides the initial weights answered
them better."""

from __future__ import annotations

import math
from pathlib import Path

from engine.checkpoint import find_weights, run_config_of
from tasks.config import VideoQAConfig, VQAConfig
from tasks.image_blind import IMAGE_BLIND, ImageBlindBaseline, unbeaten_baselines
from tasks.vqa import by_answer_type
from tools.doctor.findings import Report
from tools.doctor.subject import Subject
from tools.runs.reading import read_run
from utils.errors import UserError
from utils.files import expanded
from utils.findings import Finding

MAX_ACCURACY = 0.9
"""If the image-blind baseline reaches this accuracy, the check warns."""


def check_image_blind(subject: Subject, report: Report) -> None:
    """Checks the image-blind baseline of each held-out split."""
    if not isinstance(subject.config, VQAConfig | VideoQAConfig):
        return
    training = subject.training_data().items
    splits = {key: list(items) for key, items in subject.held_out.items()}
    splits = {key: items for key, items in splits.items() if items and all(each.answers for each in items)}
    baseline = ImageBlindBaseline(training, splits.values())
    for key, questions in splits.items():
        scores = subject.task.image_blind_scores(baseline, questions)
        by_type = by_answer_type([question.answer_type for question in questions])
        accuracy, *others = (f"{kind} {scores[rows].mean():.1%}".strip() for kind, rows in by_type.items())
        types = f" ({', '.join(others)})" if others else ""
        fact = f"{IMAGE_BLIND} {accuracy} of {len(questions):,} questions{types}"
        remedy = (
            "these questions can be answered without the images: add questions with the same wording but "
            "different answers (docs/records.md)"
        )
        known = [Finding("warning", key, fact, remedy)] if scores.mean() >= MAX_ACCURACY else []
        report.add("image-blind", known, f"{key}: {fact}")


def check_start_of_answers(subject: Subject, report: Report) -> None:
    """Checks the evaluation of the run that provides the initial weights."""
    if isinstance(subject.config, VQAConfig | VideoQAConfig):
        report.add("init.checkpoint", start_not_above(subject))


def start_not_above(subject: Subject) -> list[Finding]:
    """Returns a finding for each accuracy of the run in ``init.checkpoint`` that is not above its image-blind baseline."""
    folder = _starting_run(subject)
    if folder is None:
        return []
    run = read_run(folder, folder.name)
    if run.task != subject.config.task:
        return []
    remedy = "start from other weights, or train them on more questions with different answers to the same wording"
    findings = []
    for split, evaluation in run.evaluation.items():
        numbers = {name: value for name, value in evaluation.values().items() if not math.isnan(value)}
        for sentence in unbeaten_baselines(numbers):
            findings.append(Finding("warning", "init.checkpoint", f"{folder}, {split}: {sentence}", remedy))
    return findings


def _starting_run(subject: Subject) -> Path | None:
    checkpoint = subject.config.init.checkpoint
    if checkpoint is None:
        return None
    try:
        config = run_config_of(find_weights(expanded(checkpoint)))
    except (UserError, OSError):  # the check of the weights reports the error
        return None
    return None if config is None else config.parent
