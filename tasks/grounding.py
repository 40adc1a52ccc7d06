"""Visual grounding as a task: fine-tuning on phrases with boxes, accuracy at IoU 0.5."""

from __future__ import annotations

from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dataset.finetune import EvaluationView, cleaned, encode_texts, in_batches
from dataset.grounding import GroundingBatches, GroundingDataConfig, GroundingSplitConfig, Phrase, read_phrases
from dataset.loaders import LoadingConfig
from dataset.text import PlainTextProcessor
from engine.run_folder import RunFolder
from metrics.grounding import iou, pixel_iou, share_at_least
from models.grounding import GroundingModel
from tasks.common import FineTuneTask, HeldOutConfig, RunConfig, device_of, evaluating, progress
from tasks.pictures import Panel, Prediction, draw_predictions
from utils import distributed
from utils.batch import Text, to_device


class GroundingEvaluationConfig(HeldOutConfig):
    """Splits to measure; the paper reports val, which also selects, testA and testB."""

    validation: GroundingSplitConfig | None = Field(None, description="selects the weights; null: the last ones count")
    test: dict[str, GroundingSplitConfig] = Field(min_length=1, description="splits to report on, by name")
    panels: int = Field(12, ge=0, description="phrases in predictions.png, spread over the last split; 0 = no picture")


class GroundingConfig(RunConfig):
    """A grounding run."""

    task: Literal["grounding"] = "grounding"
    data: GroundingDataConfig
    evaluation: GroundingEvaluationConfig


class GroundingTask(FineTuneTask[GroundingConfig, GroundingModel]):
    """Model, data and measures of a grounding run."""

    measure = "IoU >= 0.5"

    @staticmethod
    def build_model(config: GroundingConfig, vocab_size: int | None) -> GroundingModel:
        return GroundingModel(config.model, vocab_size)

    @property
    def loading(self) -> LoadingConfig:
        return self.config.data

    @property
    def evaluation(self) -> GroundingEvaluationConfig:
        return self.config.evaluation

    def batches(self) -> GroundingBatches:
        return GroundingBatches(
            self.config.data,
            tokenizer=self.tokenizer,
            image_size=self.config.model.vision.image_size,
            seed=self.config.seed,
        )

    def read_held_out(self) -> dict[str, Any]:
        return {
            name: read_phrases(split, f"evaluation.test.{name}", 0.0) for name, split in self.evaluation.test.items()
        }

    def read_validation(self) -> list[Phrase] | None:
        split = self.evaluation.validation
        return None if split is None else read_phrases(split, "evaluation.validation", 0.0)

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
        count = self.evaluation.panels
        if found and count:
            items = list(self.held_out.values())[-1]
            chosen = [items[place] for place in np.linspace(0, len(items) - 1, min(count, len(items))).astype(int)]
            with evaluating(self.model, self.evaluation.precision):
                boxes = self._locate(chosen, range(len(chosen)))
            view = EvaluationView(280, self.config.data.max_pixels)
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

    def _locate(self, items: list[Phrase], share: range | None = None) -> np.ndarray:
        """The box of every phrase (N, 4); each rank locates its share, or with ``share`` this rank alone so many."""
        view = EvaluationView(self.config.model.vision.image_size, self.config.data.max_pixels)
        processor = PlainTextProcessor(self.tokenizer, self.config.data.text)
        own, size = distributed.share_of(len(items)) if share is None else share, self.evaluation.batch_size
        batches = in_batches(partial(_read, view, processor.max_words, items), own, size, self.config.data.workers)
        found = [np.zeros((0, 4), dtype=np.float32)]
        for read in progress(batches, "locating", -(-len(own) // size)):
            pixels = torch.stack([picture for picture, _ in read])
            text: Text = to_device(encode_texts(processor, [phrase for _, phrase in read]), device_of(self.model))
            found.append(self.model.locate(pixels.to(text.ids.device), text).cpu().numpy())
        boxes = np.concatenate(found)
        return boxes if share is not None else np.concatenate(distributed.gather_objects(boxes))


def relative_box(item: Phrase) -> tuple[float, float, float, float]:
    """The true box relative to its picture, centre and size."""
    (x, y, w, h), (width, height) = item.box, item.size
    return (x + w / 2) / width, (y + h / 2) / height, w / width, h / height


def _published(a: np.ndarray, b: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """:func:`~metrics.grounding.pixel_iou` of relative boxes (N, 4) in pictures of ``sizes`` (N, 2)."""
    return pixel_iou(*(_in_pixels(boxes, sizes) for boxes in (a, b)))


def _in_pixels(boxes: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    return np.concatenate([(boxes[:, :2] - boxes[:, 2:] / 2) * sizes, boxes[:, 2:] * sizes], axis=1)


def _read(view: EvaluationView, max_words: int, items: list[Phrase], index: int) -> tuple[Tensor, str]:
    item = items[index]
    return view(item.image, item.size), cleaned(item.text, max_words, item.place)
