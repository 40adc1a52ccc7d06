"""The visual grounding task: fine-tuning on phrases with boxes, evaluated by accuracy at IoU 0.5."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from batches.texts import Text
from dataset.media.views import EvaluationView
from dataset.tasks.finetune import cleaned
from dataset.tasks.grounding import GroundingBatches, GroundingDataConfig, GroundingSplitConfig, Phrase, read_phrases
from metrics.bootstrap import Scores
from metrics.grounding import iou, pixel_iou, share_at_least
from models.tasks.grounding import GroundingModel
from tasks.drawing import BOX_LEGEND, DrawnImage, ImageReader, Line, Panel, colours, pair_of_boxes
from tasks.evaluation import Evaluation, Metric, count
from tasks.finetune import FineTuneConfig, FineTuneTask, HeldOutConfig, data_options, name_of
from tasks.kinds import TaskKind

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class GroundingEvaluationConfig(HeldOutConfig[GroundingSplitConfig]):
    """Splits to evaluate. The paper reports val, which also selects the weights, testA and testB."""


class GroundingConfig(FineTuneConfig):
    """A grounding run."""

    task: Literal["grounding"] = Field("grounding", description="task of the config")
    data: GroundingDataConfig
    evaluation: GroundingEvaluationConfig


class GroundingTask(FineTuneTask[GroundingConfig, GroundingModel, GroundingBatches]):
    """Model, data and evaluation of a grounding run."""

    measure = "IoU >= 0.5"
    legend = BOX_LEGEND

    @staticmethod
    def build_model(config: GroundingConfig, vocab_size: int | None) -> GroundingModel:
        return GroundingModel(config.model, vocab_size)

    @staticmethod
    def training_data(
        config: GroundingConfig, tokenizer: PreTrainedTokenizerFast, model: GroundingModel
    ) -> GroundingBatches:
        return GroundingBatches(config.data, **data_options(config, tokenizer))

    @staticmethod
    def read_split(config: GroundingConfig, split: GroundingSplitConfig, key: str) -> list[Phrase]:
        return read_phrases(split, key, 0.0)

    def evaluate(self, items: list[Phrase]) -> Evaluation:
        """Computes the share of located phrases, with plain IoU and with the IoU of the published script. Chance level: always
        the mean box."""
        predicted = self._locate(items)
        true = np.array([relative_box(item) for item in items])
        mean_box = np.broadcast_to(true.mean(axis=0), true.shape)
        sizes = np.array([item.size for item in items], dtype=np.float64)
        images = np.array([name_of(item.image) for item in items])

        def accuracy(name: str, rows: np.ndarray, overlaps: Sequence[np.ndarray]) -> Metric:
            located, guessed = (of_boxes[rows] for of_boxes in overlaps)
            return Metric.mean_of(name, Scores(located >= 0.5, images[rows]), share_at_least(guessed))

        plain = [iou(boxes, true) for boxes in (predicted, mean_box)]
        published = [_published(boxes, true, sizes) for boxes in (predicted, mean_box)]
        everything = np.arange(len(items))
        metrics = [
            count("phrases", len(items)),
            accuracy(self.measure, everything, plain),
            accuracy(f"{self.measure} (published script)", everything, published),
        ]
        grains = np.array([item.grain for item in items])
        if len(set(grains.tolist())) > 1:
            for grain in sorted(set(grains.tolist())):
                rows = np.flatnonzero(grains == grain)
                metrics += [accuracy(f"{grain}: {self.measure}", rows, plain), count(f"{grain} phrases", len(rows))]
        return Evaluation(tuple(metrics), _predictions(items, predicted, true))

    def panel(self, items: list[Phrase], number: int, prediction: Mapping[str, Any], read: ImageReader) -> Panel:
        item, colour = items[number], colours(1)[0]
        boxes = pair_of_boxes(prediction, item.size, colour)
        line = Line(f"IoU {prediction['iou']:.2f} · {item.text}", prediction["iou"] >= 0.5, (colour, ""))
        return Panel((DrawnImage(read(item.image, size=item.size), (boxes,)),), (line,))

    def _locate(self, items: list[Phrase]) -> np.ndarray:
        """Predicts the box of every phrase, (N, 4)."""

        def locate(images: list[Tensor], text: Text) -> Tensor:
            return self.model.locate(torch.stack(images).to(text.ids.device), text)

        return self.outputs(items, _read, locate, "locating")


def relative_box(item: Phrase) -> tuple[float, float, float, float]:
    """Returns the true box as centre and size relative to its image."""
    (x, y, w, h), (width, height) = item.box, item.size
    return (x + w / 2) / width, (y + h / 2) / height, w / width, h / height


def _predictions(items: Sequence[Phrase], predicted: np.ndarray, true: np.ndarray) -> list[dict[str, Any]]:
    """Returns one prediction per phrase, with boxes as x, y, width, height in pixels."""
    sizes = np.array([item.size for item in items], dtype=np.float64)
    boxes = _in_pixels(predicted, sizes).round(2).tolist()
    return [
        {
            "image": name_of(item.image),
            "phrase": item.text,
            "predicted": box,
            "true": list(item.box),
            "iou": round(overlap, 4),
        }
        for item, box, overlap in zip(items, boxes, iou(predicted, true).tolist(), strict=True)
    ]


def _published(a: np.ndarray, b: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Computes :func:`~metrics.grounding.pixel_iou` of relative boxes (N, 4) in images of ``sizes`` (N, 2)."""
    return pixel_iou(*(_in_pixels(boxes, sizes) for boxes in (a, b)))


def _in_pixels(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([(boxes[:, :2] - boxes[:, 2:] / 2) * sizes, boxes[:, 2:] * sizes], axis=1)


def _read(view: EvaluationView, max_words: int, items: Sequence[Phrase], index: int) -> tuple[Tensor, str]:
    item = items[index]
    return view(item.image, item.size), cleaned(item.text, max_words, item.location)


TASK = TaskKind(GroundingConfig, GroundingTask)
