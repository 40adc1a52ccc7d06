"""COCO, LVIS and ODinW: the average precision of a detector's boxes, before and after a model has scored them again."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import numpy as np

from metrics.detection import LVIS_NAMES
from utils.errors import UserError
from x2vlm.base import LoadedModel
from x2vlm.detections import Detections, TrueBoxes, read_detections, score_again
from x2vlm.suites.suite import Judged, Result, Suite, chosen_kinds, require_files, require_images, unreadable_note

MEAN = "mean"
"""The row with the mean over data sets."""

ODINW_ANNOTATIONS, ODINW_DETECTIONS = "annotations_without_background.json", "detections.json"


class DetectionFiles(NamedTuple):
    """Files of a data set, relative to the folder: the annotations, the folder of the images, and the detector's results."""

    annotations: str
    images: str
    detections: str


class DetectedSet(NamedTuple):
    """A data set with the results of a detector."""

    detections: Detections
    truth: TrueBoxes
    images: Path


@dataclass(frozen=True, kw_only=True)
class ScoredSets(Judged):
    """The boxes of all data sets, scored by the model. The values of a score are (N,), one for each box.

    Attributes:
        truth: the true boxes of each data set.
    """

    truth: Mapping[str, TrueBoxes]


@dataclass(frozen=True, kw_only=True)
class DetectionSuite(Suite[dict[str, DetectedSet]]):
    """Measures the average precision of boxes as COCO or LVIS defines it. The boxes come from a detector; the model only scores
    them.

    Attributes:
        sets: the files of each data set, by kind; if empty, each folder with :data:`ODINW_DETECTIONS` is a data set.
    """

    sets: dict[str, DetectionFiles]
    measures: tuple[str, ...] = tuple(LVIS_NAMES)

    def files(self, folder: Path, kinds: Sequence[str]) -> list[str]:
        return [
            name for files in self._chosen(folder, kinds).values() for name in (files.annotations, files.detections)
        ]

    def _chosen(self, folder: Path, kinds: Sequence[str]) -> dict[str, DetectionFiles]:
        found = self.sets
        if not found:
            parents = sorted(path.parent.relative_to(folder) for path in folder.rglob(ODINW_DETECTIONS))
            found = {
                str(parent): DetectionFiles(
                    str(parent / ODINW_ANNOTATIONS), str(parent), str(parent / ODINW_DETECTIONS)
                )
                for parent in parents
            }
        if not found:
            raise UserError(
                f"{ODINW_DETECTIONS} of {self.title} is missing; see {self.published_at}",
                where=folder,
                remedy=f"write your detector's results next to each {ODINW_ANNOTATIONS}",
            )
        return {kind: found[kind] for kind in chosen_kinds(list(found), kinds, self)}

    def read(self, folder: Path, kinds: Sequence[str]) -> dict[str, DetectedSet]:
        content = {}
        for kind, files in self._chosen(folder, kinds).items():
            annotations, detected = require_files(folder, [files.annotations, files.detections], self)
            found, images = read_detections(detected, annotations), folder / files.images
            if found.truth is None:
                raise UserError("lists no true boxes", where=annotations, remedy=f"see {self.published_at}")
            require_images([images / detection.image for detection in found.boxes], self)
            content[kind] = DetectedSet(found, found.truth, images)
        return content

    def judge(self, model: LoadedModel, content: dict[str, DetectedSet]) -> Judged:
        model.require("score")
        notes = [] if model.calibration else [f"{model.origin} is not calibrated, so its scores are no probabilities"]
        broken: list[str] = []
        scores: list[dict[str, Sequence[float]]] = []
        for each in content.values():
            found = each.detections
            with tempfile.TemporaryDirectory() as folder:
                rescored = score_again(model, found, each.images, Path(folder) / "partial.jsonl")
            broken += rescored.broken
            scores.append(
                {
                    "detector's score": [detection.score for detection in found.boxes],
                    "the same score for all boxes": [1.0] * len(found.boxes),
                    "probability that the label describes the box (replace)": rescored.scores(found),
                    "probability times the detector's score (multiply)": rescored.scores(found, "multiply"),
                    "replace, times the probability that the image shows it": rescored.scores(found, none=True),
                    "multiply, times the probability that the image shows it": rescored.scores(found, "multiply", True),
                }
            )
        boxes = [(kind, box) for kind, each in content.items() for box in each.detections.boxes]
        together = {name: np.array(list(chain.from_iterable(each[name] for each in scores))) for name in scores[0]}
        examples = [
            {
                "kind": kind,
                "image": str(content[kind].images / box.image),
                "phrase": box.label,
                "boxes": [list(box.box)],
                "scores": {name: float(values[number]) for name, values in together.items()},
            }
            for number, (kind, box) in enumerate(boxes)
        ]
        return ScoredSets(
            [kind for kind, _ in boxes],
            [f"{kind}/{box.image}" for kind, box in boxes],
            {name: {"model": values} for name, values in together.items()},
            {},
            examples=examples,
            notes=[*notes, *unreadable_note(broken)],
            truth={kind: each.truth for kind, each in content.items()},
        )

    def results(self, judged: Judged, *, draws: int, seed: int = 0) -> dict[str, list[Result]]:
        """Computes the average precisions. Unless ``draws`` is 0, the 95% intervals are 1.96 standard errors of a jackknife over
        20 groups of images. With several data sets, the last row is the mean over them."""
        assert isinstance(judged, ScoredSets)
        kinds, found = np.array(judged.kinds), dict[str, list[Result]]()
        for name, values in judged.values.items():
            rows = []
            for kind, truth in judged.truth.items():
                scores = values["model"][kinds == kind].tolist()
                precisions, errors = truth.precisions(scores), truth.errors(scores) if draws else {}
                rows.append((kind, len(scores), precisions, errors))
            found[name] = [_result(*row, measure) for row in rows for measure in row[2] if row[2][measure] >= 0]
            if len(rows) > 1:
                means = {name: float(np.mean([each[name] for _, _, each, _ in rows])) for name in rows[0][2]}
                errors = {
                    name: float(np.linalg.norm([each[name] for *_, each in rows]) / len(rows)) for name in rows[0][3]
                }
                found[name] += [_result(MEAN, len(kinds), means, errors, name) for name in means if means[name] >= 0]
        return found


def _result(row: str, count: int, values: Mapping[str, float], errors: Mapping[str, float], measure: str) -> Result:
    value, reach = values[measure], 1.96 * errors.get(measure, np.nan)
    interval = None if np.isnan(reach) else (max(0.0, value - reach), min(1.0, value + reach))
    return Result(row, measure, count, value, interval, None, None, None)


NOTE = "the boxes come from a detector; the model only scores them"
COCO = DetectionSuite(
    title="COCO boxes",
    paper="Lin et al., ECCV 2014 (arXiv:1405.0312)",
    published_at="cocodataset.org; detections_val2017.json is the list of results that your detector writes",
    sets={"val2017": DetectionFiles("annotations/instances_val2017.json", "val2017", "detections_val2017.json")},
    note=NOTE,
)
LVIS = DetectionSuite(
    title="LVIS boxes",
    paper="Gupta et al., CVPR 2019 (arXiv:1908.03195)",
    published_at="lvisdataset.org, with the images of COCO in train2017 and val2017; detections_val.json is the list of results "
    "that your detector writes",
    sets={"val": DetectionFiles("lvis_v1_val.json", ".", "detections_val.json")},
    note=f"{NOTE}. As in LVIS, an image has at most 300 boxes",
)
ODINW = DetectionSuite(
    title="ODinW",
    paper="Li et al., NeurIPS 2022 Datasets and Benchmarks (ELEVATER, arXiv:2204.08790)",
    published_at="github.com/microsoft/GLIP (odinw_35); your detector writes its results for each data set to "
    f"{ODINW_DETECTIONS}, next to {ODINW_ANNOTATIONS}",
    sets={},
    note=f"{NOTE}. Compare only with results for the same data sets: the 13 of GLIP, or all 35",
)
