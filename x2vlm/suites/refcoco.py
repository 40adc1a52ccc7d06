"""Zero-shot grounding on RefCOCO, RefCOCO+ and RefCOCOg, with a model that was not fine-tuned on these data sets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from dataset.config import GroundingSplitConfig
from dataset.formats.annotations import Row
from dataset.formats.refcoco import phrase_rows
from dataset.tasks.grounding import Phrase, read_phrases
from metrics.grounding import pixel_iou
from utils.errors import UserError
from utils.progress import progress_bar
from x2vlm.base import LoadedModel
from x2vlm.boxes import Box
from x2vlm.inputs import Image, View
from x2vlm.model import Model
from x2vlm.suites.scoring import grey_view
from x2vlm.suites.suite import (
    BLANK,
    CONDITIONS,
    Judged,
    Published,
    Suite,
    chosen_kinds,
    require_files,
    require_images,
    unreadable_note,
)

IMAGES = "train2014"
MIN_IOU = 0.5
LEAST = 1e-6
"""Minimum probability of additional boxes of a phrase: in effect none, because the boxes are ranked."""

SCORE = "box head"


@dataclass(frozen=True, kw_only=True)
class GroundingSuite(Suite[dict[str, list[Phrase]]]):
    """Measures the fraction of phrases whose predicted box has an IoU of at least 0.5 with the ground-truth box. The IoU is
    computed as in the published script.

    Attributes:
        refs: the official file of referring expressions.
        splits: the held-out splits.
    """

    refs: str
    splits: tuple[str, ...]
    measures: tuple[str, ...] = ("accuracy",)

    def files(self, folder: Path, kinds: Sequence[str]) -> list[str]:
        return [self.refs, "instances.json"]

    def read(self, folder: Path, kinds: Sequence[str]) -> dict[str, list[Phrase]]:
        refs, instances = require_files(folder, self.files(folder, kinds), self)
        if not (folder / IMAGES).is_dir():
            raise UserError("does not exist", where=folder / IMAGES, remedy=f"see {self.published_at}")
        splits = chosen_kinds(self.splits, kinds, self)
        try:
            rows = [row for row in phrase_rows(str(refs), str(instances), splits, self.title) if isinstance(row, Row)]
        except UserError as error:
            raise UserError(
                error.what, where=error.where, remedy=f"download it again from {self.published_at}"
            ) from None
        require_images([folder / IMAGES / row.values["image"] for row in rows], self)
        return {
            split: read_phrases(
                GroundingSplitConfig(
                    format="refcoco",
                    refs=str(refs),
                    instances=str(instances),
                    splits=[split],
                    images=str(folder / IMAGES),
                ),
                self.title,
                0.0,
            )
            for split in splits
        }

    def judge(self, model: LoadedModel, content: dict[str, list[Phrase]]) -> Judged:
        questions = [(split, item) for split, phrases in content.items() for item in phrases]
        asked = [Question(str(item.image.path), item.text, item.size) for _, item in questions]
        located = locate(model, asked)
        items = [questions[index] for index in located.kept]
        true = np.array([item.boxes[0] for _, item in items], np.float64)
        overlaps = {condition: pixel_iou(np.array(boxes)[:, 0], true) for condition, boxes in located.boxes.items()}
        examples = [
            {
                "kind": split,
                "image": str(item.image.path),
                "phrase": item.text,
                "right": {SCORE: {"accuracy": float(overlap >= MIN_IOU)}},
                "iou": round(float(overlap), 4),
            }
            for (split, item), overlap in zip(items, overlaps["model"], strict=True)
        ]
        return Judged(
            [split for split, _ in items],
            [str(item.image.path) for _, item in items],
            {SCORE: {condition: (each[:, None] >= MIN_IOU).astype(np.float64) for condition, each in overlaps.items()}},
            {},
            examples=examples,
            notes=unreadable_note(located.broken),
        )


class Question(NamedTuple):
    """A phrase to locate: the path of its image, its text, and the image's width and height in its annotations."""

    image: str
    text: str
    size: tuple[int, int]


class Located(NamedTuple):
    """The boxes of Q questions whose images can be read.

    Attributes:
        kept: the indices of these questions, (Q,).
        boxes: for each of :data:`~x2vlm.suites.suite.CONDITIONS`, the boxes (K, 4) of each question, best first, as x, y, width
            and height in pixels.
        broken: the reasons why the other images cannot be read.
    """

    kept: list[int]
    boxes: dict[str, list[np.ndarray]]
    broken: list[str]


def locate(model: LoadedModel, questions: Sequence[Question], most: int = 1) -> Located:
    """Locates phrases under all conditions; each phrase has up to ``most`` boxes.

    Raises:
        UserError: the model was not trained with the task pretrain, or no image can be read.
    """
    if model.settings.task != "pretrain" or not isinstance(model, Model):
        raise UserError(
            f"{model.origin} is a model for the task {model.settings.task}",
            remedy="zero-shot grounding needs a model for the task pretrain",
        )
    found = Located([], {condition: [] for condition in CONDITIONS}, [])
    grey, broken = grey_view(model), dict[str, str]()
    with progress_bar(total=len(questions), desc="phrases", unit="phrase") as bar:
        for start in range(0, len(questions), model.batch_size):
            chunk = questions[start : start + model.batch_size]
            bar.update(len(chunk))
            views: dict[str, View] = {}
            for path in dict.fromkeys(question.image for question in chunk):
                try:
                    views[path] = model.read(path)
                except UserError as error:
                    broken[path] = str(error)
            kept = [index for index, question in enumerate(chunk, start) if question.image in views]
            if not kept:
                continue
            found.kept.extend(kept)
            batch = [questions[index] for index in kept]
            images: list[Image] = [views[question.image] for question in batch]
            texts = [[question.text] for question in batch]
            inputs: dict[str, tuple[list[Image], list[list[str]]]] = {
                "model": (images, texts),
                "text only": ([grey] * len(batch), texts),
                "image only": (images, [[BLANK]] * len(batch)),
            }
            for condition, (seen, phrases) in inputs.items():
                size = grey.size if condition == "text only" else None
                best = model.locate(seen, phrases)
                more = model.locate(seen, phrases, boxes="all", threshold=LEAST) if most > 1 else [[]] * len(best)
                for first, others, question in zip(best, more, batch, strict=True):
                    ranked = first + sorted(others, key=lambda box: -(box.score or 0.0))[: most - 1]
                    found.boxes[condition].append(np.array([_pixels(box, size, question.size) for box in ranked]))
    found.broken.extend(broken.values())
    if not found.kept:
        raise UserError(f"no image can be read: {next(iter(broken.values()))}")
    return found


def _pixels(box: Box, seen: tuple[int, int] | None, size: tuple[int, int]) -> tuple[float, float, float, float]:
    """Returns the box as x, y, width and height, in pixels of an image of width and height ``size``. ``seen`` is the size of the
    image that the model saw, if it was another image."""
    scale_x, scale_y = (1.0, 1.0) if seen is None else (size[0] / seen[0], size[1] / seen[1])
    return box.x * scale_x, box.y * scale_y, box.width * scale_x, box.height * scale_y


def _suite(name: str, refs: str, splits: tuple[str, ...], published: dict[str, tuple[float, ...]]) -> GroundingSuite:
    return GroundingSuite(
        title=name,
        paper="Kazemzadeh et al., EMNLP 2014; Yu et al. and Mao et al., 2016",
        published_at=f"github.com/lichengunc/refer ({refs} and instances.json), and COCO's train2014 in the folder "
        f"{IMAGES}",
        refs=refs,
        splits=splits,
        published=tuple(
            Published(
                model,
                {f"{split}: accuracy": value for split, value in zip(splits, values, strict=True)},
                "eval/rec_zs_test/README.md of github.com/SunzeY/AlphaCLIP",
            )
            for model, values in published.items()
        ),
        note="the box head is trained with boxes of other phrases, so this is zero-shot in the looser sense; the "
        "images of the held-out splits may be in the pre-training data (run.py leaks)",
    )


REFCOCO = _suite(
    "RefCOCO",
    "refs(unc).p",
    ("val", "testA", "testB"),
    {"CPT": (32.2, 36.1, 30.3), "ReCLIP": (45.8, 46.1, 47.1), "Alpha-CLIP": (55.7, 61.1, 50.3)},
)
REFCOCO_PLUS = _suite(
    "RefCOCO+",
    "refs(unc).p",
    ("val", "testA", "testB"),
    {"CPT": (31.9, 35.2, 28.8), "ReCLIP": (47.9, 50.1, 45.1), "Alpha-CLIP": (55.6, 62.7, 46.4)},
)
REFCOCOG = _suite(
    "RefCOCOg",
    "refs(umd).p",
    ("val", "test"),
    {"CPT": (36.7, 36.5), "ReCLIP": (59.3, 59.0), "Alpha-CLIP": (61.2, 62.0)},
)
