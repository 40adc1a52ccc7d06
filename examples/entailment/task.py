"""Visual entailment: classifies whether a sentence is entailed by an image, contradicts it, or is neutral.

A task outside the checkout is a folder with this file and ``config.yaml``: ``python run.py --task examples/entailment``.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from torch import Tensor
from torch.nn import functional as F

from batches.images import Pixels
from batches.losses import Losses, Term, Work
from batches.texts import Text
from dataset.media.views import EvaluationView
from dataset.tasks.finetune import cleaned
from engine.run_plan import RunPlan
from models.config import ModelConfig
from models.core.heads import MLPHead
from models.core.xvlm import XVLM
from tasks.config import FineTuneConfig, HeldOutConfig
from tasks.evaluation import Evaluation, Metric, count
from tasks.finetune import FineTuneTask, data_options
from tasks.kinds import TaskKind
from utils import distributed

from .data import CLASSES, EntailmentBatch, EntailmentBatches, EntailmentDataConfig, Item, SplitConfig, draw, read_items

if TYPE_CHECKING:
    from x2vlm.base import LoadedModel
    from x2vlm.inputs import Image


class EntailmentModel(XVLM):
    """A classifier on the fused [CLS] state of a sentence and its image."""

    def __init__(self, config: ModelConfig, vocab_size: int | None = None):
        super().__init__(config, vocab_size)
        self.classifier = MLPHead(self.text.width, len(CLASSES))

    def forward(self, batch: EntailmentBatch) -> Losses:
        """Returns the cross-entropy of a micro-batch, as a sum over the examples that count."""
        per_example = F.cross_entropy(self.classify(batch.pixels, batch.text).float(), batch.label, reduction="none")
        return {"entailment": Term(per_example.masked_fill(~batch.valid, 0).sum(), 1.0)}

    def counts(self, batch: EntailmentBatch) -> dict[str, Tensor]:
        """Returns the number of real examples, by which the trainer divides the loss."""
        return {"entailment": batch.valid.sum()}

    def work(self, batch: EntailmentBatch) -> Work:
        """Returns the size of a step. FLOPs are not counted."""
        examples = int(batch.valid.sum())
        return Work(examples, images=examples, tokens=int(batch.text.mask.sum()), flops=float("nan"))

    def classify(self, pixels: Pixels, text: Text) -> Tensor:
        """Returns logits (N, 3) of the classes."""
        return self.classifier(self.fusion.cls(*self.encode(pixels, text)))


class EntailmentConfig(FineTuneConfig):
    """The config of a run. Sections that are not listed here are the same for every task."""

    task: Literal["entailment"] = "entailment"
    data: EntailmentDataConfig
    evaluation: HeldOutConfig[SplitConfig]


class EntailmentTask(FineTuneTask[EntailmentConfig, EntailmentModel, EntailmentBatches]):
    """Model, data and evaluation of a run."""

    measure = "accuracy"

    @staticmethod
    def make_inputs(config: EntailmentConfig) -> None:
        """Draws the data if they do not exist yet."""
        folder = Path(config.data.folder)
        if distributed.rank() == 0 and not (folder / "tokenizer").exists():
            draw(folder)
        distributed.barrier()

    @staticmethod
    def build_model(config: EntailmentConfig, vocab_size: int | None) -> EntailmentModel:
        return EntailmentModel(config.model, vocab_size)

    @staticmethod
    def training_data(
        config: EntailmentConfig, tokenizer: Any, model: EntailmentModel, plan: RunPlan
    ) -> EntailmentBatches:
        return EntailmentBatches(config.data, **data_options(config, tokenizer))

    @staticmethod
    def read_split(config: EntailmentConfig, split: SplitConfig, key: str) -> list[Item]:
        return read_items(split.file, f"{key}.file")

    def evaluate(self, items: list[Item]) -> Evaluation:
        """Returns the accuracy, overall and by class. The chance level always predicts the most frequent class."""
        predicted, true = self._predict(items), np.array([item.label for item in items])
        chance = float(np.bincount(true).max() / len(true))
        metrics = [count("sentences", len(items)), Metric("accuracy", float((predicted == true).mean()), chance)]
        for label, name in enumerate(CLASSES):  # NaN for a class without sentences
            metrics.append(Metric(f"{name}: accuracy", float((predicted == true)[true == label].mean())))
        return Evaluation(tuple(metrics))

    def _predict(self, items: list[Item]) -> np.ndarray:
        def classify(images: list[Tensor], text: Text) -> Tensor:
            return self.model.classify(self.stacked(images), text).argmax(dim=1)

        return self.outputs(items, _read, classify, "classifying")


def _read(view: EvaluationView, max_words: int, items: Sequence[Item], index: int) -> tuple[Tensor, str]:
    item = items[index]
    return view(item.image), cleaned(item.sentence, max_words)


def entail(model: LoadedModel, images: Sequence[Image], sentences: Sequence[str]) -> list[list[str]]:
    """Returns, for each image, the class of each sentence about it."""
    network = model.network
    assert isinstance(network, EntailmentModel)

    def classify(pairs: Sequence[tuple[Image, str]]) -> list[str]:
        pixels = model.pixels(model.views([image for image, _ in pairs]))
        logits = network.classify(pixels, model.tokens([sentence for _, sentence in pairs]))
        return [CLASSES[label] for label in logits.argmax(dim=1).tolist()]

    found = iter(model.run([(image, sentence) for image in images for sentence in sentences], classify))
    return [[next(found) for _ in sentences] for _ in images]


TASK = TaskKind(EntailmentConfig, EntailmentTask, EntailmentModel, {"entail": entail})
