"""The quick checks that every run makes before it trains. ``run.py doctor`` makes them, and many more (:mod:`tools.doctor`).

A finding that may be intentional is a warning, which does not stop the run.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dataset.config import DataConfig
from dataset.records.boxes import are_relative
from dataset.records.schema import Box
from dataset.tasks.grounding import Phrase
from dataset.tasks.pretrain import MATCHED_STREAMS, PretrainBatches
from dataset.tasks.questions import QuestionTable
from dataset.tasks.streams.regions import RegionStream
from dataset.tasks.video_qa import read_classes
from dataset.tasks.vqa import read_candidates
from dataset.text.loading import load_tokenizer
from engine.run_plan import RunPlan
from metrics.vqa import normalize_answer
from models.core.hub import type_of_folder
from models.core.hub_text import BERT_FAMILY
from models.inference.reranking import AligningModel
from tasks import ROOT
from tasks.base import BaseTask
from tasks.binding import BoundRun
from tasks.config import VideoQAConfig, VQAConfig
from tasks.held_out_media import check_held_out_media
from tasks.prepared import Check, Findings, NotCheckedError, PreparedRun
from utils import distributed
from utils.config_files import COMMAND_LINE, ConfigError, ReadConfig, read_config, read_yaml
from utils.errors import UserError
from utils.files import expanded
from utils.findings import Finding, finding_of
from utils.printing import counted

OTHER_VISION = "presets/other_vision.yaml"
"""The preset that resets all keys that are set for another backbone."""

MAX_EPOCHS = 100
"""A run of more epochs causes a warning, because the model would memorise the records."""
MIN_EPOCHS = 0.5
"""Fine-tuning for fewer epochs causes a warning, because most records would never be seen."""
ADD_BOXES = (
    'write the boxes as "elems": [{"bb": [x, y, width, height], "caption": text}] (docs/records.md), or set '
    "data.regions=null to train without boxes"
)
USE_PIXELS = "boxes are relative; multiply x and width by the image's width, y and height by its height"

logger = logging.getLogger(__name__)


def check_start(task: BaseTask[Any, Any, Any], bound: BoundRun | None = None) -> None:
    """Makes the quick checks of a task that is about to train, and logs their warnings.

    Args:
        task: the task.
        bound: the config file of the run, and the locations of its keys; if None, they are not checked.

    Raises:
        UserError: if there are findings that prevent the run; the message lists all of them.
    """
    run, found = PreparedRun.of(task, bound), Findings()
    for check in QUICK_CHECKS:
        try:
            check.run(run, found)
        except NotCheckedError:
            continue
        except UserError as error:
            found.add(check.name, [finding_of(error)])
    for finding in found.findings:
        if finding.level == "warning" and distributed.rank() == 0:
            logger.warning("%s", finding)
    refused = [str(finding) for finding in found.findings if finding.level == "refused"]
    if refused:
        raise UserError("\n       ".join(refused))


def check_sizes(run: PreparedRun, found: Findings) -> None:
    """Warns if the vision encoder has sizes that a base of the config sets for another backbone."""
    key = ("model", "vision", "backbone")
    location = run.locations.get(key)
    if location is None:
        return
    vision = run.config.model.vision
    try:
        earlier = _before_backbone(run.file, location)
    except ConfigError:  # the file was removed or changed after it was read
        return
    other = _backbone_of(earlier)
    if other in (None, vision.backbone):
        return
    sizes = read_yaml(ROOT / "configs" / OTHER_VISION)["model"]["vision"]
    kept = [
        name
        for name, value in sizes.items()
        if not name.startswith("pixel_")
        and getattr(vision, name) != value
        and run.locations.get((*key[:-1], name)) == earlier.locations.get((*key[:-1], name), COMMAND_LINE)
    ]
    if kept:
        listed = ", ".join(f"{name}={getattr(vision, name)}" for name in kept)
        fact = f"{vision.backbone} is built with values that were set for {other}: {listed}"
        own = ", ".join(f"{name}={'null' if sizes[name] is None else sizes[name]}" for name in kept)
        remedy = f"set model.vision: {own}; or add configs/{OTHER_VISION} as the last entry of base in a config file"
        found.add("sizes", [Finding("warning", location, fact, remedy)])


def check_text_encoder(run: PreparedRun, found: Findings) -> None:
    """Warns if ``model.text.arch`` hides the encoder that ``model.text.encoder`` names, or if the initial weights have another
    tokenizer."""
    text, weights = run.config.model.text, run.config.init.text
    kind = type_of_folder(text.encoder)
    if text.arch is not None and kind is not None and BERT_FAMILY.get(kind) != text.arch.family:
        fact = (
            f"{text.encoder} is a {kind}, but the config sets the sizes of a {text.arch.family}, which is built instead"
        )
        remedy = "set model.text.arch=null to use the encoder, or keep it to use only its tokenizer"
        found.add("text encoder", [Finding("warning", "model.text.arch", fact, remedy)])
    if run.tokenizer is None or weights is None or weights == text.encoder or type_of_folder(weights) is None:
        return
    try:
        expected = load_tokenizer(weights, "init.text").get_vocab()
    except UserError:  # a folder without a tokenizer
        return
    own = run.tokenizer.get_vocab()
    if differing := [word for word in sorted(expected, key=expected.__getitem__) if own.get(word) != expected[word]]:
        fact = (
            f"{counted(len(differing), 'word has', 'words have')} other ids in the tokenizer of model.text.encoder, "
            f"{text.encoder}, such as {differing[0]!r}, so words would start with the embeddings of other words"
        )
        remedy = f"set model.text.encoder to {weights}"
        found.add("text encoder", [Finding("warning", "init.text", fact, remedy)])


def _backbone_of(read: ReadConfig) -> str | None:
    """Returns ``model.vision.backbone`` of a config; None if it is not set."""
    name: str | None = ((read.values.get("model") or {}).get("vision") or {}).get("backbone")
    return name


def _before_backbone(file: Path, location: str) -> ReadConfig:
    """Returns what the config ``file`` says before it sets ``model.vision.backbone`` at a location: the bases of the file with
    this line or, if the command line sets it, all files."""
    if location == COMMAND_LINE:
        return read_config(file)
    file, earlier = Path(location.rpartition(":")[0]), ReadConfig({}, {}, [])
    bases = read_yaml(file).get("base") or []
    for base in [bases] if isinstance(bases, str) else bases:
        read = read_config(file.parent / base)
        if _backbone_of(read):
            earlier.values.update(read.values)
        earlier.locations.update(read.locations)
    return earlier


def check_batch_size(run: PreparedRun, found: Findings) -> None:
    """Compares the batch size and the length of the run with the size of the data."""
    config = run.config
    if run.plan is None:
        config.plan(run.ranks)  # batch sizes that are not divisible as required are reported even without data
    training = run.training_data()
    records = next(iter(training.stream_sizes.values()))
    plan = run.plan or config.plan(run.ranks, records)
    findings = []
    if isinstance(run.model, AligningModel):
        findings += small_data(records_per_micro_batch(config.data), training.stream_sizes, run.ranks, plan.chunks)
    if finding := length_of_run(plan, fine_tunes=run.fine_tunes):
        findings.append(finding)
    epochs = config.train.epochs or plan.epochs
    on = counted(run.ranks, "process", "processes")
    per_step, total = (counted(number, "record", "records") for number in (plan.records_per_step, records))
    text = f"{per_step} per step on {on}; {epochs:.3g} passes over {total}"
    found.add("batch", findings, text)


def check_box_values(run: PreparedRun, found: Findings) -> None:
    """Finds boxes that are relative to the image size, and region records without boxes."""
    found.add("boxes", findings_in_items(getattr(run.training, "items", None)))
    if isinstance(run.training, PretrainBatches) and run.training.regions is not None:
        found.add("boxes", findings_in_regions(run.training.regions))


def check_answers(run: PreparedRun, found: Findings) -> None:
    """Checks that the answers to the questions are in the list of candidates."""
    config, key = run.config, "evaluation.answers"
    if not isinstance(config, VQAConfig | VideoQAConfig) or config.evaluation.answers is None:
        return
    path = config.evaluation.answers
    if not expanded(path).exists():
        raise NotCheckedError(f"{key} is missing")
    if isinstance(config, VideoQAConfig):
        listed, exact = read_classes(path, key, config.model.classes), True
    else:
        listed, exact = read_candidates(path, key), False
    splits = {"data.train": getattr(run.training, "items", None), **run.held_out}
    splits = {key: items for key, items in splits.items() if items is not None}
    if not splits:
        raise NotCheckedError("no questions can be read")
    findings = findings_in_answers(splits, listed, path, exact=exact)
    found.add("answers", findings, f"all are among the {len(listed):,} candidates")


def findings_in_items(items: Any, key: str = "data.train") -> list[Finding]:
    """Returns the findings for the annotations of one split."""
    is_phrases = isinstance(items, list) and bool(items) and isinstance(items[0], Phrase)
    return (
        findings_of_relative([(box, phrase.location) for phrase in items for box in phrase.boxes], key)
        if is_phrases
        else []
    )


def findings_in_regions(regions: RegionStream) -> list[Finding]:
    """Returns a finding if the records of a region stream have no boxes, or only boxes relative to the image size."""
    boxes, records = regions.first_boxes()
    if boxes or not records:
        return findings_of_relative(boxes, "data.regions")
    first = records[0]
    reason = first.broken[0].detail if first.broken else "no 'elems', or an empty list"
    problem = f"none of {len(records):,} records has a readable box, for example {first.location}: {reason}"
    return [Finding("refused", "data.regions", problem, ADD_BOXES)]


def findings_of_relative(boxes: Sequence[tuple[Box, str]], key: str) -> list[Finding]:
    """Returns a finding if all coordinates of the boxes lie between 0 and 1. Each box in ``boxes`` comes with its location."""
    if not are_relative(np.array([box for box, _ in boxes])):
        return []
    box, location = boxes[0]
    problem = (
        f"all {len(boxes):,} boxes lie within 0 and 1, for example {[round(value, 4) for value in box]} at {location}"
    )
    return [Finding("refused", key, problem, USE_PIXELS)]


def findings_in_answers(
    splits: Mapping[str, Any], candidates: Sequence[str], path: str, *, exact: bool
) -> list[Finding]:
    """Returns a finding for each split with answers that are not among the candidates.

    Args:
        splits: the splits, by config key; only splits that consist of questions are checked.
        candidates: the candidate answers.
        path: the file that contains the candidates.
        exact: whether answers must match exactly, as in video question answering.
    """
    questions = {key: items for key, items in splits.items() if isinstance(items, QuestionTable)}
    findings = [answers_outside(items, candidates, key, path, exact=exact) for key, items in questions.items()]
    return [finding for finding in findings if finding is not None]


def records_per_micro_batch(data: Any) -> dict[str, tuple[str, int]]:
    """Returns, for each stream with a contrastive loss, the number of records per micro-batch and the config key that sets it.
    The only stream of a fine-tuning task is named ""."""
    if not isinstance(data, DataConfig):
        return {"": (data.micro_batch.key, data.micro_batch.size)}
    streams = {name: stream for name, stream in data.streams().items() if name in MATCHED_STREAMS}
    return {name: (f"data.{name}.{stream.records_key}", stream.records_per_batch) for name, stream in streams.items()}


def small_data(
    sizes: Mapping[str, tuple[str, int]], records: Mapping[str, int], ranks: int, chunks: int
) -> list[Finding]:
    """Returns a finding for each stream with fewer records than the contrastive loss compares, which would make a record its own
    negative.

    Args:
        sizes: the result of :func:`records_per_micro_batch`.
        records: number of records of each stream.
        ranks: number of ranks that share the data.
        chunks: number of micro-batches per rank over which the loss is computed.
    """
    findings = []
    for stream, (key, size) in sizes.items():
        name = stream or next(iter(records))
        compared = size * ranks * chunks
        if compared > records[name]:
            factors = [f" on {ranks} ranks"] * (ranks > 1) + [f" in {chunks} chunks"] * (chunks > 1)
            together = f"{size}{''.join(factors)}, {compared} together," if factors else f"{size}"
            problem = (
                f"{together} is more than the {records[name]} {name} of the data: a record would be its own negative in the "
                "contrastive loss"
            )
            limit = max(1, records[name] // (ranks * chunks))
            findings.append(Finding("refused", key, problem, f"lower it to at most {limit}"))
    return findings


def length_of_run(plan: RunPlan, *, fine_tunes: bool) -> Finding | None:
    """Returns a finding if a run has more than :data:`MAX_EPOCHS` epochs, or if fine-tuning has fewer than :data:`MIN_EPOCHS`.

    Args:
        plan: plan of the run.
        fine_tunes: whether the run is fine-tuning. Pre-training often sees only a fraction of a large data set.
    """
    steps, per_step, records = plan.steps, plan.records_per_step, plan.epoch_size
    assert steps is not None and records is not None
    if plan.epochs > MAX_EPOCHS:
        problem = (
            f"the run makes {plan.epochs:,.0f} passes over {records:,} records, and will memorise them long before "
            "the end"
        )
        limit = max(1, MAX_EPOCHS * records // per_step)
        return Finding(
            "warning", "train", problem, f"set train.steps={limit} ({MAX_EPOCHS} passes) or less, or add data"
        )
    if fine_tunes and plan.epochs < MIN_EPOCHS:
        problem = (
            f"the run sees only part of its training records: {steps:,} steps x {per_step:,} = {steps * per_step:,} of "
            f"{records:,}, {plan.epochs:.2g} epochs"
        )
        remedy = f"train.steps={math.ceil(records / per_step)} is one epoch; or set train.epochs"
        return Finding("warning", "train", problem, remedy)
    return None


def answers_outside(
    items: QuestionTable, candidates: Sequence[str], key: str, path: str, *, exact: bool
) -> Finding | None:
    """Returns a finding if answers are missing from the candidates in the file ``path``, because these answers could never be
    predicted."""
    normalised: Callable[[str], str] = str if exact else normalize_answer
    known = {normalised(candidate) for candidate in candidates}
    counts = items.answer_counts()
    outside = {answer: count for answer, count in counts.items() if normalised(answer) not in known}
    if not outside:
        return None
    total, outside_count = sum(counts.values()), sum(outside.values())
    frequent = sorted(outside, key=lambda answer: -outside[answer])[:3]
    examples = ", ".join(f"{answer!r} ({outside[answer]:,})" for answer in frequent)
    remedy = (
        "build the list from these answers (python -m tasks.answer_list --config FILE), or set evaluation.answers=null"
    )
    if outside_count == total:
        problem = f"none of the {total:,} answers is among the {len(candidates):,} of {path}, such as {examples}"
        return Finding("refused", key, problem, remedy)
    problem = (
        f"{outside_count / total:.1%} of the {total:,} answers are not among the {len(candidates):,} of {path}, such as "
        f"{examples}"
    )
    return Finding("warning", key, problem, f"they always count as wrong; {remedy}")


QUICK_CHECKS = (
    Check("model and weights", "sizes", check_sizes),
    Check("model and weights", "text encoder", check_text_encoder),
    Check("data", "batch", check_batch_size),
    Check("data", "boxes", check_box_values),
    Check("data", "answers", check_answers),
    Check("data", "held out", check_held_out_media),
)
"""The checks that every run makes before it trains. ``run.py doctor`` makes all checks of :mod:`tools.doctor.checks`."""
