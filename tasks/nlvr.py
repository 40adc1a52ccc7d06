"""Visual reasoning as a task: fine-tuning on statements about two pictures, accuracy and consistency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dataset.finetune import EvaluationView, cleaned
from dataset.nlvr import NLVRBatches, NLVRDataConfig, NLVRSplitConfig, Statement, check_statements, read_statements
from engine.checkpoint import Checkpoint
from metrics.classification import accuracy, consistency
from models.nlvr import NLVRModel, NLVRModelConfig
from tasks.common import FineTuneConfig, FineTuneTask, HeldOutConfig
from utils.batch import Text


class NLVREvaluationConfig(HeldOutConfig[NLVRSplitConfig]):
    """The paper reports dev, which also selects, and test-P (NLVR2's ``test1``)."""


class NLVRConfig(FineTuneConfig):
    """A visual reasoning run."""

    task: Literal["nlvr"] = "nlvr"
    model: NLVRModelConfig
    data: NLVRDataConfig
    evaluation: NLVREvaluationConfig


class NLVRTask(FineTuneTask[NLVRConfig, NLVRModel]):
    """Model, data and measures of a visual reasoning run."""

    measure = "accuracy"
    make_batches = NLVRBatches

    def __init__(self, config: NLVRConfig, checkpoint: Checkpoint | None = None, *, trains: bool = True):
        super().__init__(config, checkpoint, trains=trains)
        for name, items in self.held_out.items():
            self._check(items, f"evaluation.test.{name}")
        if config.evaluation.validation is not None:
            self._check(self.validation, "evaluation.validation")

    @staticmethod
    def build_model(config: NLVRConfig, vocab_size: int | None) -> NLVRModel:
        model = config.model
        return NLVRModel(model, vocab_size, images=model.images, classes=model.classes)

    def batches(self) -> NLVRBatches:
        batches = super().batches()
        assert isinstance(batches, NLVRBatches)
        self._check(batches.items, "data.train")
        return batches

    def _check(self, items: list[Statement], key: str) -> None:
        check_statements(items, self.config.model.images, self.config.model.classes, key)

    @staticmethod
    def read_split(split: NLVRSplitConfig, key: str) -> list[Statement]:
        return read_statements(split, key, 0.0)

    def measures(self, items: list[Statement]) -> dict[str, float]:
        predicted = self._predict(items)
        true = np.array([item.label for item in items])
        sentences = [item.sentence_id for item in items]
        majority = np.bincount(true).max() / len(true)
        return {
            "statements": len(items),
            "sentences": len(set(sentences)),
            "accuracy": accuracy(predicted, true),
            "accuracy/chance": float(majority),
            "consistency": consistency(predicted == true, sentences),
            "consistency/chance": float(
                np.mean([self.config.model.classes ** -float(pairs) for pairs in Counter(sentences).values()])
            ),
        }

    def _predict(self, items: list[Statement]) -> np.ndarray:
        """The class of every statement."""

        def classify(pairs: list[Tensor], text: Text) -> Tensor:
            pixels = torch.stack(pairs, dim=1).flatten(0, 1)
            return self.model.classify(pixels.to(text.ids.device), text).argmax(dim=1)

        return self.outputs(items, _read, classify, "classifying")


def _read(view: EvaluationView, max_words: int, items: Sequence[Statement], index: int) -> tuple[Tensor, str]:
    """The pictures (K, 3, S, S) and the cleaned sentence."""
    item = items[index]
    return torch.stack([view(picture) for picture in item.pictures]), cleaned(item.sentence, max_words, item.place)
