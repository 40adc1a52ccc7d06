"""Visual grounding as a task: fine-tuning on phrases with boxes, accuracy at IoU 0.5."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dataset.finetune import EvaluationView, cleaned
from dataset.grounding import GroundingBatches, GroundingDataConfig, GroundingSplitConfig, Phrase, read_phrases
from engine.run_folder import RunFolder
from metrics.grounding import iou, pixel_iou, share_at_least
from models.grounding import GroundingModel
from tasks.common import FineTuneConfig, FineTuneTask, HeldOutConfig, evaluating
from tasks.pictures import SIDE, Panel, Prediction, draw_predictions
from utils.batch import Text


class GroundingEvaluationConfig(HeldOutConfig[GroundingSplitConfig]):
    """Splits to measure; the paper reports val, which also selects, testA and testB."""

    panels: int = Field(12, ge=0, description="phrases in predictions.png, spread over the last split; 0 = no picture")


class GroundingConfig(FineTuneConfig):
    """A grounding run."""

    task: Literal["grounding"] = "grounding"
    data: GroundingDataConfig
    evaluation: GroundingEvaluationConfig


class GroundingTask(FineTuneTask[GroundingConfig, GroundingModel]):
    """Model, data and measures of a grounding run."""

    measure = "IoU >= 0.5"
    make_batches = GroundingBatches

    @staticmethod
    def build_model(config: GroundingConfig, vocab_size: int | None) -> GroundingModel:
        return GroundingModel(config.model, vocab_size)

    @staticmethod
    def read_split(split: GroundingSplitConfig, key: str) -> list[Phrase]:
        return read_phrases(split, key, 0.0)

    def measures(self, items: list[Phrase]) -> dict[str, float]:
        """Shares of phrases located, by plain IoU and by the published script's; chance: always the mean box."""
        predicted = self._locate(items)
        true = np.array([relative_box(item) for item in items])
        mean_box = np.broadcast_to(true.mean(axis=0), true.shape)
        sizes = np.array([item.size for item in items], dtype=np.float64)
        results: dict[str, float] = {"phrases": len(items)}
        for name, boxes in (("", predicted), ("/chance", mean_box)):
            results[f"IoU >= 0.5{name}"] = share_at_least(iou(boxes, true))
            results[f"IoU >= 0.5 (published script){name}"] = share_at_least(_published(boxes, true, sizes))
        grains = np.array([item.grain for item in items])
        for grain in sorted(set(grains.tolist())) if len(set(grains.tolist())) > 1 else ():
            chosen = grains == grain
            results[f"{grain}: IoU >= 0.5"] = share_at_least(iou(predicted[chosen], true[chosen]))
            results[f"{grain}: IoU >= 0.5/chance"] = share_at_least(iou(mean_box[chosen], true[chosen]))
            results[f"{grain} phrases"] = int(chosen.sum())
        return results

    def report(self, folder: RunFolder) -> str:
        """As for every task, with a picture of some predictions."""
        found = super().report(folder)
        count = self.config.evaluation.panels
        if found and count:
            items = list(self.held_out.values())[-1]
            chosen = [items[place] for place in np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)]
            with evaluating(self.model, self.config.evaluation.precision):
                boxes = self._locate(chosen, alone=True)
            view = EvaluationView(SIDE, self.config.data.max_pixels)
            draw_predictions(
                [
                    Panel(
                        view(item.image).permute(1, 2, 0).numpy(),
                        [Prediction(item.text, relative_box(item), tuple(box.tolist()))],
                    )
                    for item, box in zip(chosen, boxes, strict=True)
                ],
                folder.path / "predictions.png",
            )
        return found

    def _locate(self, items: list[Phrase], *, alone: bool = False) -> np.ndarray:
        """The box of every phrase, (N, 4); ``alone``: see :meth:`outputs`."""

        def locate(pictures: list[Tensor], text: Text) -> Tensor:
            return self.model.locate(torch.stack(pictures).to(text.ids.device), text)

        return self.outputs(items, _read, locate, "locating", alone=alone)


def relative_box(item: Phrase) -> tuple[float, float, float, float]:
    """The true box relative to its picture, centre and size."""
    (x, y, w, h), (width, height) = item.box, item.size
    return (x + w / 2) / width, (y + h / 2) / height, w / width, h / height


def _published(a: np.ndarray, b: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """:func:`~metrics.grounding.pixel_iou` of relative boxes (N, 4) in pictures of ``sizes`` (N, 2)."""
    return pixel_iou(*(_in_pixels(boxes, sizes) for boxes in (a, b)))


def _in_pixels(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([(boxes[:, :2] - boxes[:, 2:] / 2) * sizes, boxes[:, 2:] * sizes], axis=1)


def _read(view: EvaluationView, max_words: int, items: Sequence[Phrase], index: int) -> tuple[Tensor, str]:
    item = items[index]
    return view(item.image, item.size), cleaned(item.text, max_words, item.place)
