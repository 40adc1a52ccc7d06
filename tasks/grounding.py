"""The visual grounding task: fine-tuning on phrases with boxes, evaluated by accuracy at IoU 0.5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from batches.texts import Text
from dataset.config import GroundingSplitConfig
from dataset.media.views import EvaluationView
from dataset.tasks.finetune import cleaned
from dataset.tasks.grounding import ANY_NUMBER, ONE_BOX, GroundingBatches, Phrase, read_phrases
from engine.run_plan import RunPlan
from metrics.bootstrap import Scores
from metrics.box_sets import ScoredBoxes, pixel_boxes
from metrics.grounding import fraction_at_least, iou, pixel_iou
from models.tasks.grounding import GroundingModel
from tasks import box_sets
from tasks.box_sets import SINGLE, evaluate_sets, panel_of_set, true_boxes
from tasks.config import GroundingConfig
from tasks.drawing import BOX_LEGEND, DrawnImage, ImageReader, Line, Panel, colours, pair_of_boxes
from tasks.evaluation import Evaluation, Metric, count
from tasks.finetune import FineTuneTask, data_options, name_of

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class GroundingTask(FineTuneTask[GroundingConfig, GroundingModel, GroundingBatches]):
    """Model, data and evaluation of a grounding run."""

    network = GroundingModel
    measure = SINGLE

    def __init__(self, config: GroundingConfig, *parts: Any):
        if config.model.box_set is not None:
            self.measure = box_sets.EXACT
        super().__init__(config, *parts)

    @classmethod
    def legend_for(cls, config: GroundingConfig) -> str:
        return BOX_LEGEND if config.model.box_set is None else box_sets.LEGEND

    @staticmethod
    def training_data(
        config: GroundingConfig, tokenizer: PreTrainedTokenizerFast, model: GroundingModel, plan: RunPlan
    ) -> GroundingBatches:
        return GroundingBatches(config.data, config.model.boxes_of_a_phrase, **data_options(config, tokenizer))

    @staticmethod
    def read_split(config: GroundingConfig, split: GroundingSplitConfig, key: str) -> list[Phrase]:
        return read_phrases(split, key, 0.0, ONE_BOX if config.model.box_set is None else ANY_NUMBER)

    def evaluate(self, items: list[Phrase]) -> Evaluation:
        """See :func:`evaluate_phrases`."""
        if self.config.model.box_set is not None:
            return evaluate_phrases(items, self._locate_all(items), self.config.evaluation.threshold)
        return evaluate_phrases(items, [ScoredBoxes(box[None], np.ones(1)) for box in self._locate(items)])

    def evaluate_absent(self, items: list[Phrase], earlier: list[Phrase]) -> Evaluation | None:
        """Pairs each phrase with an image of ``earlier``. A pair is recognised if no box is predicted."""
        if self.config.model.box_set is None:
            return None
        others = [earlier[number % len(earlier)] for number in range(len(items))]
        pairs = [replace(other, text=item.text) for item, other in zip(items, others, strict=True)]
        threshold = self.config.evaluation.threshold
        empty = np.array([not len(boxes.above(threshold)) for boxes in self._locate_all(pairs)])
        images = np.array([name_of(pair.image) for pair in pairs])
        recognised = Metric.mean_of(
            "recognised as absent", Scores(empty, images), rule=f"no box with a probability of at least {threshold:g}"
        )
        return Evaluation((count("phrases", len(pairs)), recognised))

    def panel(self, items: list[Phrase], number: int, prediction: Mapping[str, Any], read: ImageReader) -> Panel:
        item, colour = items[number], colours(1)[0]
        if self.config.model.box_set is not None:
            return panel_of_set(item, prediction, read)
        boxes = pair_of_boxes(prediction, item.size, colour)
        line = Line(f"IoU {prediction['iou']:.2f} · {item.text}", prediction["iou"] >= 0.5, (colour, ""))
        return Panel((DrawnImage(read(item.image, size=item.size), (boxes,)),), (line,))

    def _locate(self, items: list[Phrase]) -> np.ndarray:
        """Predicts the box of every phrase, (N, 4)."""

        def locate(images: list[Tensor], text: Text) -> Tensor:
            return self.model.locate(self.stacked(images), text)

        return self.outputs(items, _read, locate, "locating")

    def _locate_all(self, items: list[Phrase]) -> list[ScoredBoxes]:
        """Predicts the boxes of every phrase."""

        def locate(images: list[Tensor], text: Text) -> Tensor:
            predictions = self.model.locate_all(self.stacked(images), text)
            return torch.cat([predictions.boxes, predictions.logits.sigmoid().unsqueeze(2)], dim=2)

        rows = self.outputs(items, _read, locate, "locating")
        numbers = rows.astype(np.float64)  # float64, as in the predictions file
        return [ScoredBoxes(boxes, scores) for boxes, scores in zip(numbers[..., :4], numbers[..., 4], strict=True)]


def evaluate_phrases(
    items: Sequence[Phrase], predictions: Sequence[ScoredBoxes], threshold: float | None = None
) -> Evaluation:
    """Compares the predicted boxes of phrases with the ground-truth boxes.

    Args:
        items: the phrases.
        predictions: the scored boxes of each phrase, relative to its image.
        threshold: minimum probability of a predicted box in a set (see :func:`tasks.box_sets.evaluate_sets`); if None, every
            phrase has one box, and the most probable box is its prediction.

    Returns:
        For single boxes, the fraction of phrases located with an IoU of at least 0.5, computed with plain IoU and with the
        published script's IoU. The chance level is the result if the mean box is always predicted.
    """
    if threshold is not None:
        return evaluate_sets(items, predictions, threshold)
    predicted = np.concatenate([boxes.best for boxes in predictions])
    true = np.concatenate([true_boxes(item) for item in items])
    mean_box = np.broadcast_to(true.mean(axis=0), true.shape)
    sizes = np.array([item.size for item in items], dtype=np.float64)
    images = np.array([name_of(item.image) for item in items])

    def accuracy(name: str, rows: np.ndarray, overlaps: Sequence[np.ndarray]) -> Metric:
        located, guessed = (overlap[rows] for overlap in overlaps)
        return Metric.mean_of(name, Scores(located >= 0.5, images[rows]), fraction_at_least(guessed))

    plain = [iou(boxes, true) for boxes in (predicted, mean_box)]
    published = [_published(boxes, true, sizes) for boxes in (predicted, mean_box)]
    all_rows = np.arange(len(items))
    metrics = [
        count("phrases", len(items)),
        accuracy(SINGLE, all_rows, plain),
        accuracy(f"{SINGLE} (published script)", all_rows, published),
    ]
    grains = np.array([item.grain for item in items])
    if len(set(grains.tolist())) > 1:
        for grain in sorted(set(grains.tolist())):
            rows = np.flatnonzero(grains == grain)
            metrics += [accuracy(f"{grain}: {SINGLE}", rows, plain), count(f"{grain} phrases", len(rows))]
    return Evaluation(tuple(metrics), _predictions(items, predicted, true))


def _predictions(items: Sequence[Phrase], predicted: np.ndarray, true: np.ndarray) -> list[dict[str, Any]]:
    """Returns one prediction per phrase, with boxes as x, y, width, height in pixels."""
    sizes = np.array([item.size for item in items], dtype=np.float64)
    boxes = pixel_boxes(predicted, sizes).round(2).tolist()
    return [
        {
            "image": name_of(item.image),
            "phrase": item.text,
            "predicted": box,
            "true": list(item.boxes[0]),
            "iou": round(overlap, 4),
        }
        for item, box, overlap in zip(items, boxes, iou(predicted, true).tolist(), strict=True)
    ]


def _published(a: np.ndarray, b: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Computes :func:`~metrics.grounding.pixel_iou` of boxes (N, 4) that are relative to images of ``sizes`` (N, 2)."""
    return pixel_iou(*(pixel_boxes(boxes, sizes) for boxes in (a, b)))


def _read(view: EvaluationView, max_words: int, items: Sequence[Phrase], index: int) -> tuple[Tensor, str]:
    item = items[index]
    return view(item.image, item.size), cleaned(item.text, max_words)
