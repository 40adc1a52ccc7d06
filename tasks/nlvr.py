"""Visual reasoning as a task: fine-tuning on statements about two pictures, accuracy and consistency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from dataset.finetune import EvaluationView, cleaned
from dataset.nlvr import NLVRBatches, NLVRDataConfig, NLVRSplitConfig, Statement, read_statements
from metrics.classification import accuracy, consistency
from models.nlvr import NLVRModel
from tasks.common import FineTuneConfig, FineTuneTask, HeldOutConfig
from utils.batch import Text


class NLVREvaluationConfig(HeldOutConfig[NLVRSplitConfig]):
    """The paper reports dev, which also selects, and test-P (NLVR2's ``test1``)."""


class NLVRConfig(FineTuneConfig):
    """A visual reasoning run."""

    task: Literal["nlvr"] = "nlvr"
    data: NLVRDataConfig
    evaluation: NLVREvaluationConfig


class NLVRTask(FineTuneTask[NLVRConfig, NLVRModel]):
    """Model, data and measures of a visual reasoning run."""

    measure = "accuracy"
    make_batches = NLVRBatches

    @staticmethod
    def build_model(config: NLVRConfig, vocab_size: int | None) -> NLVRModel:
        return NLVRModel(config.model, vocab_size)

    @staticmethod
    def read_split(split: NLVRSplitConfig, key: str) -> list[Statement]:
        return read_statements(split, key, 0.0)

    def measures(self, items: list[Statement]) -> dict[str, float]:
        predicted = self._predict(items)
        true = np.array([item.label for item in items])
        sentences = [item.sentence_id for item in items]
        majority = max(true.mean(), 1 - true.mean())
        return {
            "statements": len(items),
            "sentences": len(set(sentences)),
            "accuracy": accuracy(predicted, true),
            "accuracy/chance": float(majority),
            "consistency": consistency(predicted == true, sentences),
            "consistency/chance": float(np.mean([0.5**pairs for pairs in Counter(sentences).values()])),
        }

    def _predict(self, items: list[Statement]) -> np.ndarray:
        """The class of every statement."""

        def classify(pairs: list[Tensor], text: Text) -> Tensor:
            pixels = torch.cat([torch.stack([pair[side] for pair in pairs]) for side in (0, 1)])
            return self.model.classify(pixels.to(text.ids.device), text).argmax(dim=1)

        return self.outputs(items, _read, classify, "classifying")


def _read(view: EvaluationView, max_words: int, items: Sequence[Statement], index: int) -> tuple[Tensor, str]:
    """Both pictures (2, 3, S, S) and the cleaned sentence."""
    item = items[index]
    return torch.stack([view(item.left), view(item.right)]), cleaned(item.sentence, max_words, item.place)
