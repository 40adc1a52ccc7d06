"""Visual grounding as a task: fine-tuning on phrases with boxes, accuracy at IoU 0.5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dataset.media.views import EvaluationView
from dataset.tasks.finetune import cleaned
from dataset.tasks.grounding import GroundingBatches, GroundingDataConfig, GroundingSplitConfig, Phrase, read_phrases
from engine.run_folder import RunFolder
from metrics.grounding import iou, pixel_iou, share_at_least
from models.grounding import GroundingModel
from tasks.drawing import SIDE, Panel, Prediction, draw_predictions
from tasks.evaluation import Evaluation, Metric, count
from tasks.finetune import FineTuneConfig, FineTuneTask, HeldOutConfig, data_options
from tasks.inference import evaluating
from tasks.kinds import TaskKind
from utils import distributed
from utils.batch import Text

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class GroundingEvaluationConfig(HeldOutConfig[GroundingSplitConfig]):
    """Splits to measure; the paper reports val, which also selects, testA and testB."""

    panels: int = Field(12, ge=0, description="phrases in predictions.png, spread over the last split; 0 = no picture")


class GroundingConfig(FineTuneConfig):
    """A grounding run."""

    task: Literal["grounding"] = Field("grounding", description="the task that the config is of")
    data: GroundingDataConfig
    evaluation: GroundingEvaluationConfig


class GroundingTask(FineTuneTask[GroundingConfig, GroundingModel, GroundingBatches]):
    """Model, data and evaluation of a grounding run."""

    measure = "IoU >= 0.5"

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
        """Share of phrases located, by plain IoU and by the published script's; chance: always the mean box."""
        predicted = self._locate(items)
        true = np.array([relative_box(item) for item in items])
        mean_box = np.broadcast_to(true.mean(axis=0), true.shape)
        sizes = np.array([item.size for item in items], dtype=np.float64)

        def accuracy(name: str, rows: np.ndarray) -> Metric:
            located, chance = (share_at_least(iou(boxes[rows], true[rows])) for boxes in (predicted, mean_box))
            return Metric(name, located, chance)

        published, guessed = (share_at_least(_published(boxes, true, sizes)) for boxes in (predicted, mean_box))
        metrics = [
            count("phrases", len(items)),
            accuracy(self.measure, np.arange(len(items))),
            Metric(f"{self.measure} (published script)", published, guessed),
        ]
        grains = np.array([item.grain for item in items])
        if len(set(grains.tolist())) > 1:
            for grain in sorted(set(grains.tolist())):
                rows = np.flatnonzero(grains == grain)
                metrics += [accuracy(f"{grain}: {self.measure}", rows), count(f"{grain} phrases", len(rows))]
        return Evaluation(tuple(metrics))

    def report(self, folder: RunFolder) -> str:
        """As for every task, with an image of some predictions."""
        table = super().report(folder)
        panels = self.config.evaluation.panels
        if distributed.rank() == 0 and panels:
            items = list(self.held_out.test.values())[-1]
            shown = [items[place] for place in np.linspace(0, len(items) - 1, min(panels, len(items))).astype(int)]
            with evaluating(self.model, self.config.evaluation.precision):
                boxes = self._locate(shown, alone=True)
            view = EvaluationView(SIDE, self.config.data.max_pixels, pixels=self.config.data.pixels)
            draw_predictions(
                [
                    Panel(
                        view(item.image, item.size).permute(1, 2, 0).numpy(),
                        [Prediction(item.text, relative_box(item), tuple(box.tolist()))],
                    )
                    for item, box in zip(shown, boxes, strict=True)
                ],
                folder.path / "predictions.png",
            )
        return table

    def _locate(self, items: list[Phrase], *, alone: bool = False) -> np.ndarray:
        """The box of every phrase, (N, 4); ``alone``: see :meth:`outputs`."""

        def locate(images: list[Tensor], text: Text) -> Tensor:
            return self.model.locate(torch.stack(images).to(text.ids.device), text)

        return self.outputs(items, _read, locate, "locating", alone=alone)


def relative_box(item: Phrase) -> tuple[float, float, float, float]:
    """The true box relative to its image, centre and size."""
    (x, y, w, h), (width, height) = item.box, item.size
    return (x + w / 2) / width, (y + h / 2) / height, w / width, h / height


def _published(a: np.ndarray, b: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """:func:`~metrics.grounding.pixel_iou` of relative boxes (N, 4) in images of ``sizes`` (N, 2)."""
    return pixel_iou(*(_in_pixels(boxes, sizes) for boxes in (a, b)))


def _in_pixels(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([(boxes[:, :2] - boxes[:, 2:] / 2) * sizes, boxes[:, 2:] * sizes], axis=1)


def _read(view: EvaluationView, max_words: int, items: Sequence[Phrase], index: int) -> tuple[Tensor, str]:
    item = items[index]
    return view(item.image, item.size), cleaned(item.text, max_words, item.place)


TASK = TaskKind(GroundingConfig, GroundingTask)
