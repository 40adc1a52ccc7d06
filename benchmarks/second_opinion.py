"""Measures how well a model judges the boxes of a detector: ``python -m benchmarks.second_opinion RUN [RUN …]``
(docs/ablations.md)."""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from benchmarks.harness import print_line
from benchmarks.real_sources import mean_and_spread
from dataset.tasks.held_out import HeldOutRecord
from demo.scenes.vocabulary import COLOURS, PLAIN, SHAPES, SIZES, TEXTURES
from metrics.box_sets import ScoredBoxes, average_precision, pixel_boxes
from metrics.calibration import ModelCalibration, area_under_roc, reliability
from metrics.grounding import iou
from utils.commands import call
from x2vlm import Model, load
from x2vlm.calibration import calibrate, examples, read_records, view_and_boxes
from x2vlm.scoring import evidence

ATTRIBUTES = (tuple(SHAPES), tuple(COLOURS), tuple(each for each in TEXTURES if each != PLAIN), tuple(SIZES))
"""Words of drawn scenes that exclude each other."""

LOST = 0.05
"""Share of the correctly located phrases that may be called absent."""

WRONG_LABELS, ABSENT_OBJECTS, JITTER = 0.3, 0.2, 0.1
"""Simulated detector: the share of boxes with a wrong label, the number of boxes for phrases that are absent from the image
relative to the number of objects, and the largest shift of a box relative to its size."""

FALSE = ("another object", "an absent phrase", "a shifted box", "one attribute exchanged")
WAYS = ("constant", "cosine", "matching", "probability", "probability, with none")


class Pair(NamedTuple):
    """A box, a phrase, and what the pair is: "true", one of :data:`FALSE`, or "detected"."""

    box: tuple[float, ...]
    phrase: str
    kind: str


class Judged(NamedTuple):
    """The pairs of an image with their scores, and the evidence for its phrases.

    Attributes:
        record: the image.
        pairs: the N pairs.
        scores: log-odds and cosine of each pair, (N, 2).
        present: log-odds and cosine where the model locates the phrase of each pair, (N, 2).
    """

    record: HeldOutRecord
    pairs: list[Pair]
    scores: np.ndarray
    present: np.ndarray


def pairs_of(record: HeldOutRecord, absent: Sequence[str], rng: np.random.Generator) -> list[Pair]:
    """Makes true, false and detected pairs for the objects of an image. ``absent`` are phrases of other images."""
    objects = [element for element in record.elements if element.grain == "object"]
    own, pairs = [element.caption for element in objects], []
    for element in objects:
        pairs.append(Pair(element.box, element.caption, "true"))
        others = [other.caption for other in objects if iou(np.array([element.box]), np.array([other.box]))[0] < 0.5]
        if others:
            pairs.append(Pair(element.box, str(rng.choice(others)), FALSE[0]))
        pairs.append(Pair(element.box, str(rng.choice(absent)), FALSE[1]))
        if (shifted := _shifted(element.box, rng)) is not None:
            pairs.append(Pair(shifted, element.caption, FALSE[2]))
        if exchanged := [text for text in _exchanged(element.caption) if text not in own]:
            pairs.append(Pair(element.box, str(rng.choice(exchanged)), FALSE[3]))
        is_wrong = rng.random() < WRONG_LABELS
        label = str(rng.choice([*others, *absent[: max(1, len(others))]])) if is_wrong else element.caption
        pairs.append(Pair(_jittered(element.box, rng), label, "detected"))
        if rng.random() < ABSENT_OBJECTS:
            size = rng.uniform(0.15, 0.4, 2)
            centre = rng.uniform(size / 2, 1 - size / 2)
            pairs.append(Pair((*centre.tolist(), *size.tolist()), str(rng.choice(absent)), "detected"))
    return pairs


def _jittered(box: tuple[float, ...], rng: np.random.Generator) -> tuple[float, ...]:
    centre, size = np.array(box[:2]), np.array(box[2:])
    centre = centre + rng.uniform(-JITTER, JITTER, 2) * size
    size = size * np.exp(rng.uniform(-JITTER, JITTER, 2))
    return _inside(centre, size)


def _shifted(box: tuple[float, ...], rng: np.random.Generator) -> tuple[float, ...] | None:
    """Returns a box of the same size that overlaps ``box`` with an IoU above 0 and of at most 0.3, or None if none was found."""
    centre, size = np.array(box[:2]), np.array(box[2:])
    for _ in range(100):
        moved = _inside(centre + rng.uniform(-1, 1, 2) * size, size)
        if 0 < iou(np.array([box]), np.array([moved]))[0] <= 0.3:
            return moved
    return None


def _inside(centre: np.ndarray, size: np.ndarray) -> tuple[float, ...]:
    """Cuts off the parts of a box that are outside the image."""
    low, high = (centre - size / 2).clip(0, 1), (centre + size / 2).clip(0, 1)
    return (*((low + high) / 2).tolist(), *(high - low).tolist())


def _exchanged(phrase: str) -> list[str]:
    """Returns the phrase with one attribute exchanged for another of the same kind, in all ways."""
    words = phrase.split()
    return [
        " ".join([*words[:index], other, *words[index + 1 :]])
        for index, word in enumerate(words)
        for kind in ATTRIBUTES
        if word in kind
        for other in kind
        if other != word
    ]


def judge(model: Model, records: Sequence[HeldOutRecord], seed: int) -> list[Judged]:
    """Scores the pairs of all records; the pairs are the same for every model."""
    rng, judged = np.random.default_rng(seed), []
    everything = sorted({e.caption for record in records for e in record.elements if e.grain == "object"})
    for record in records:
        known = {element.caption for element in record.elements}
        absent = [text for text in rng.permutation(everything)[: len(known) + 8].tolist() if text not in known]
        pairs = pairs_of(record, absent, rng)
        if not pairs:
            continue
        phrases = list(dict.fromkeys(pair.phrase for pair in pairs))
        labels = [phrases.index(pair.phrase) for pair in pairs]
        boxes = pixel_boxes(np.array([pair.box for pair in pairs]), np.ones(2)).tolist()
        (found,) = evidence(model, [view_and_boxes(record)[0]], [boxes], [phrases], "fractions", [labels])
        judged.append(Judged(record, pairs, found.boxes[:, 0], found.present[labels]))
    return judged


def areas(judged: Sequence[Judged], calibration: ModelCalibration) -> dict[str, list[float]]:
    """Returns, for each kind of false pair, the area under the ROC curve of true against false pairs by the calibrated
    probability, the matching head and the cosine."""
    kinds = np.array([pair.kind for image in judged for pair in image.pairs])
    scores = np.concatenate([image.scores for image in judged])
    ways = [calibration.match(scores), scores[:, 0], scores[:, 1]]
    return {
        kind: [area_under_roc(way[chosen], kinds[chosen] == "true") for way in ways]
        for kind in FALSE
        if (chosen := np.isin(kinds, ("true", kind))).any() and (kinds == kind).any()
    }


def precisions(judged: Sequence[Judged], calibration: ModelCalibration) -> dict[str, float]:
    """Returns the average precision, at IoU 0.5, of the detected boxes, sorted in each of :data:`WAYS`."""
    found: dict[str, list[ScoredBoxes]] = {way: [] for way in WAYS}
    true, sizes = [], []
    for image in judged:
        detected: dict[str, list[int]] = defaultdict(list)
        for number, pair in enumerate(image.pairs):
            if pair.kind == "detected":
                detected[pair.phrase].append(number)
        truth = {element.caption: element.box for element in image.record.elements if element.grain == "object"}
        match, present = calibration.match(image.scores), calibration.present(image.present)
        values = (np.ones(len(match)), image.scores[:, 1], image.scores[:, 0], match, match * present)
        for phrase in {**truth, **detected}:
            numbers = detected.get(phrase, [])
            boxes = np.array([image.pairs[number].box for number in numbers]).reshape(-1, 4)
            for way, scores in zip(WAYS, values, strict=True):
                found[way].append(ScoredBoxes(boxes, scores[numbers]))
            true.append(np.array([truth[phrase]] if phrase in truth else []).reshape(-1, 4))
            sizes.append(image.record.size)
    return {way: average_precision(boxes, true, np.array(sizes))[1] for way, boxes in found.items()}


def recognised(model: Model, judged: Sequence[Judged], calibration: ModelCalibration) -> float:
    """Returns the share of absent phrases whose probability of being present is below the threshold that loses :data:`LOST` of
    the correctly located phrases."""
    located, absent = [], []
    for image in judged:
        objects = {pair.phrase: pair.box for pair in image.pairs if pair.kind == "true"}
        view, _ = view_and_boxes(image.record)
        boxes = model.locate(view, [list(objects)])[0]
        width, height = view.size
        present = {pair.phrase: row for pair, row in zip(image.pairs, image.present, strict=True)}
        for box in boxes:
            relative = (box.x + box.width / 2) / width, (box.y + box.height / 2) / height
            predicted = np.array([[*relative, box.width / width, box.height / height]])
            if iou(predicted, np.array([objects[box.phrase]]))[0] >= 0.5:
                located.append(present[box.phrase])
        absent += [row for pair, row in zip(image.pairs, image.present, strict=True) if pair.kind == FALSE[1]]
    threshold = np.quantile(calibration.present(np.array(located)), LOST)
    return float((calibration.present(np.array(absent)) < threshold).mean())


def calibration_errors(model: Model, records: Sequence[HeldOutRecord], calibration: ModelCalibration) -> list[float]:
    """Returns the calibration errors on other records: of boxes and of phrases, before and after calibration."""
    pairs, phrases = examples(model, records, np.random.default_rng(1))
    return [
        reliability(values, found.labels).error
        for found, fitted in ((pairs, calibration.match), (phrases, calibration.present))
        for values in (found.matching, fitted(found.scores))
    ]


def main(runs: list[Path], /, *, val: Path, test: Path) -> int:
    """Measures how well a pre-trained model judges boxes and phrases, on records on which it was neither trained nor calibrated.

    The model is calibrated on the records of ``--val``. On the records of ``--test``, true pairs of a box and a phrase are
    compared with four kinds of false pairs; the boxes of a simulated detector are sorted by several scores; and phrases of other
    images are to be recognised as absent. Several runs, such as three seeds, give means.

    Args:
        runs: folders of pre-training runs.
        val: records for the calibration.
        test: records for the measurement.

    Examples:
        python -m benchmarks.second_opinion RUN [RUN …] --val data/scenes/val.jsonl --test data/scenes/test.jsonl
    """
    found_areas: dict[str, list[list[float]]] = defaultdict(list)
    found_precisions: dict[str, list[float]] = defaultdict(list)
    errors, shares = [], []
    for run in runs:
        model = load(run)
        calibration = calibrate(model, [str(val)]).calibration
        records = read_records(model, [str(test)])
        judged = judge(model, records, seed=0)
        for kind, values in areas(judged, calibration).items():
            found_areas[kind].append(values)
        for way, value in precisions(judged, calibration).items():
            found_precisions[way].append(value)
        errors.append(calibration_errors(model, records, calibration))
        shares.append(recognised(model, judged, calibration))
        sys.stderr.write(f"{run}: done\n")
    print_line("| AUROC in %, true pairs against | probability | matching | cosine |\n|---|---|---|---|")
    for kind, rows in found_areas.items():
        print_line(f"| {kind} | {' | '.join(mean_and_spread(list(each)) for each in zip(*rows, strict=True))} |")
    print_line("\n| boxes sorted by | AP at IoU 0.5, % |\n|---|---|")
    for way, precision in found_precisions.items():
        print_line(f"| {way} | {mean_and_spread(precision)} |")
    print_line("\n| calibration error, % | before | after |\n|---|---|---|")
    columns = [mean_and_spread(list(each)) for each in zip(*errors, strict=True)]
    print_line(f"| a phrase describes a box | {columns[0]} | {columns[1]} |")
    print_line(f"| a phrase is in the image | {columns[2]} | {columns[3]} |")
    print_line(
        f"\nabsent phrases recognised, at a loss of {LOST:.0%} of the located phrases: {mean_and_spread(shares)}%"
    )
    return 0


if __name__ == "__main__":
    sys.exit(call(main, sys.argv[1:], "python -m benchmarks.second_opinion"))
