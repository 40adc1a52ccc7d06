"""Checks of a run that cost nothing: made at the start of every run, and by ``run.py doctor``.

They decode no image. What is wrong on purpose is a warning, and the run goes on.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from dataset.records.box_form import are_relative
from dataset.records.schema import Box
from dataset.tasks.grounding import Phrase
from dataset.tasks.pretrain import MATCHED_STREAMS, DataConfig, PretrainBatches
from dataset.tasks.questions import QuestionTable
from dataset.tasks.streams.regions import RegionStream
from engine.run_plan import RunPlan
from metrics.vqa import normalize_answer
from models.inference.reranking import AligningModel
from tasks.base import BaseTask
from tasks.finetune import FineTuneTask
from utils import distributed
from utils.errors import UserError
from utils.findings import Finding

MOST_EPOCHS = 100
LEAST_EPOCHS = 0.5
"""Fine-tuning on less warns: most records are never seen."""
NO_BOXES = (
    'write the boxes as "elems": [{"bb": [x, y, width, height], "caption": text}] (docs/own_data.md#records), or set '
    "data.regions=null to train without boxes"
)
RELATIVE = "boxes are relative; multiply x and width by the image's width, y and height by its height"

logger = logging.getLogger(__name__)


def check_start(task: BaseTask[Any, Any, Any]) -> None:
    """Log the warnings of a task that is about to train.

    Raises:
        UserError: with everything for which the run is refused.
    """
    findings = findings_at_start(task)
    for finding in findings:
        if finding.level == "warning" and distributed.rank() == 0:
            logger.warning("%s", finding)
    refused = [str(finding) for finding in findings if finding.level == "refused"]
    if refused:
        raise UserError("\n       ".join(refused))


def findings_at_start(task: BaseTask[Any, Any, Any]) -> list[Finding]:
    """The findings of the free checks."""
    loader, training, config = task.loader, task.training, task.config
    if loader is None or training is None:
        return []
    ranks = distributed.world_size()
    found: list[Finding | None] = []
    if isinstance(task.model, AligningModel):
        sizes = records_per_micro_batch(config.data)
        found += small_data(sizes, loader.stream_sizes, ranks, config.model.chunks)
    plan = config.plan(ranks, loader.epoch_size)
    found.append(length_of_run(plan, fine_tunes=isinstance(task, FineTuneTask)))
    found += findings_in_items(getattr(training, "items", None))
    if isinstance(training, PretrainBatches) and training.regions is not None:
        found += findings_in_regions(training.regions)
    candidates = getattr(task, "candidates", None) or getattr(task, "classes", None)
    answers = getattr(getattr(config, "evaluation", None), "answers", None)
    if candidates and answers is not None and isinstance(task, FineTuneTask):
        splits = {"data.train": getattr(training, "items", None), **task.held_out.by_key()}
        found += findings_in_answers(splits, candidates, answers, exact=hasattr(task, "classes"))
    return [finding for finding in found if finding is not None]


def findings_in_items(items: Any, key: str = "data.train") -> list[Finding]:
    """The findings in the annotations of a split, by themselves."""
    is_phrases = isinstance(items, list) and bool(items) and isinstance(items[0], Phrase)
    return findings_of_relative([(phrase.box, phrase.place) for phrase in items], key) if is_phrases else []


def findings_in_regions(regions: RegionStream) -> list[Finding]:
    """The finding for a stream of regions whose records have no box, or only relative ones."""
    boxes, records = regions.first_boxes()
    if boxes or not records:
        return findings_of_relative(boxes, "data.regions")
    first = records[0]
    why = first.broken[0].message if first.broken else "no 'elems', or an empty list"
    fact = f"none of {len(records):,} records has a box that can be read, as {first.place}: {why}"
    return [Finding("refused", "data.regions", fact, NO_BOXES)]


def findings_of_relative(boxes: Sequence[tuple[Box, str]], key: str) -> list[Finding]:
    """The finding for boxes, each with its place, all of which are within 0 and 1."""
    if not are_relative(np.array([box for box, _ in boxes])):
        return []
    box, place = boxes[0]
    fact = f"all {len(boxes):,} boxes lie within 0 and 1, as {[round(value, 4) for value in box]} at {place}"
    return [Finding("refused", key, fact, RELATIVE)]


def findings_in_answers(
    splits: Mapping[str, Any], candidates: Sequence[str], path: str, *, exact: bool
) -> list[Finding]:
    """Answers outside the candidates of the file ``path`` in each split of questions, by its config key; ``exact``: an answer has
    to be met to the letter, as in video question answering."""
    questions = {key: items for key, items in splits.items() if isinstance(items, QuestionTable)}
    found = [answers_outside(items, candidates, key, path, exact=exact) for key, items in questions.items()]
    return [finding for finding in found if finding is not None]


def records_per_micro_batch(data: Any) -> dict[str, tuple[str, int]]:
    """For each stream with a contrastive loss, the config key that sets how many records a rank reads at once, and the number;
    "" stands for the one stream of a fine-tuning task."""
    if not isinstance(data, DataConfig):
        return {"": (data.micro_batch.key, data.micro_batch.size)}
    streams = {name: stream for name, stream in data.streams().items() if name in MATCHED_STREAMS}
    return {name: (f"data.{name}.{stream.records_key}", stream.records_per_batch) for name, stream in streams.items()}


def small_data(
    sizes: Mapping[str, tuple[str, int]], records: Mapping[str, int], ranks: int, chunks: int
) -> list[Finding]:
    """Streams of which the contrastive loss compares more than their data: a record would then be its own negative.

    Args:
        sizes: of :func:`records_per_micro_batch`.
        records: by stream.
        ranks: that share the data.
        chunks: micro-batches of a rank that the loss spans.
    """
    findings = []
    for stream, (key, size) in sizes.items():
        name = stream or next(iter(records))
        compared = size * ranks * chunks
        if compared > records[name]:
            factors = [f" on {ranks} ranks"] * (ranks > 1) + [f" in {chunks} chunks"] * (chunks > 1)
            together = f"{size}{''.join(factors)}, {compared} together," if factors else f"{size}"
            fact = (
                f"{together} is more than the {records[name]} {name} of the data: a record would be its own negative in the "
                "contrastive loss"
            )
            most = max(1, records[name] // (ranks * chunks))
            findings.append(Finding("refused", key, fact, f"lower it to {most} at most"))
    return findings


def length_of_run(plan: RunPlan, *, fine_tunes: bool) -> Finding | None:
    """The finding for a run of more than :data:`MOST_EPOCHS` epochs, or for fine-tuning on less than :data:`LEAST_EPOCHS`.

    ``fine_tunes``: whether the run is fine-tuning. Pre-training on a part of a large data set is normal.
    """
    steps, per_step, records = plan.steps, plan.records_per_step, plan.epoch_size
    assert steps is not None and records is not None
    if plan.epochs > MOST_EPOCHS:
        fact = (
            f"the run makes {plan.epochs:,.0f} passes over {records:,} records, which it memorises long before its end"
        )
        most = max(1, MOST_EPOCHS * records // per_step)
        return Finding(
            "warning", "train", fact, f"give train.steps={most} ({MOST_EPOCHS} passes) or less, or more data"
        )
    if fine_tunes and plan.epochs < LEAST_EPOCHS:
        fact = (
            f"the run sees a part of its training records: {steps:,} steps x {per_step:,} = {steps * per_step:,} of "
            f"{records:,}, {plan.epochs:.2g} epochs"
        )
        remedy = f"train.steps={math.ceil(records / per_step)} is one epoch; or give train.epochs"
        return Finding("warning", "train", fact, remedy)
    return None


def answers_outside(
    items: QuestionTable, candidates: Sequence[str], key: str, path: str, *, exact: bool
) -> Finding | None:
    """The finding for answers that are none of the candidates in the file ``path``, so that no prediction can be right."""
    normal: Callable[[str], str] = str if exact else normalize_answer
    known = {normal(candidate) for candidate in candidates}
    counts = items.answer_counts()
    outside = {answer: count for answer, count in counts.items() if normal(answer) not in known}
    if not outside:
        return None
    total, without = sum(counts.values()), sum(outside.values())
    often = sorted(outside, key=lambda answer: -outside[answer])[:3]
    examples = ", ".join(f"{answer!r} ({outside[answer]:,})" for answer in often)
    remedy = (
        "make the list of these answers (python -m tasks.answer_list --config FILE), or set evaluation.answers=null"
    )
    if without == total:
        fact = f"none of the {total:,} answers is among the {len(candidates):,} of {path}, as {examples}"
        return Finding("refused", key, fact, remedy)
    fact = (
        f"{without / total:.1%} of the {total:,} answers are not among the {len(candidates):,} of {path}, as {examples}"
    )
    return Finding("warning", key, fact, f"they count as wrong whatever is learned; {remedy}")
