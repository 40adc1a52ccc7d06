"""Visual reasoning as a task: fine-tuning on statements about two pictures, accuracy and consistency."""

from __future__ import annotations

from collections import Counter
from functools import partial
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dataset.finetune import EvaluationView, cleaned, encode_texts, in_batches
from dataset.loaders import LoadingConfig
from dataset.nlvr import NLVRBatches, NLVRDataConfig, NLVRSplitConfig, Statement, read_statements
from dataset.text import PlainTextProcessor
from metrics.classification import accuracy, consistency
from models.nlvr import NLVRModel
from tasks.common import FineTuneTask, HeldOutConfig, RunConfig, device_of, progress
from utils import distributed
from utils.batch import Text, to_device


class NLVREvaluationConfig(HeldOutConfig):
    """Splits to measure; the paper reports dev, which also selects, and test-P (NLVR2's ``test1``)."""

    validation: NLVRSplitConfig | None = Field(None, description="selects the weights; null: the last ones count")
    test: dict[str, NLVRSplitConfig] = Field(min_length=1, description="splits to report on, by name")


class NLVRConfig(RunConfig):
    """A visual reasoning run."""

    task: Literal["nlvr"] = "nlvr"
    data: NLVRDataConfig
    evaluation: NLVREvaluationConfig


class NLVRTask(FineTuneTask[NLVRConfig, NLVRModel]):
    """Model, data and measures of a visual reasoning run."""

    measure = "accuracy"

    @staticmethod
    def build_model(config: NLVRConfig, vocab_size: int | None) -> NLVRModel:
        return NLVRModel(config.model, vocab_size)

    @property
    def loading(self) -> LoadingConfig:
        return self.config.data

    @property
    def evaluation(self) -> NLVREvaluationConfig:
        return self.config.evaluation

    def batches(self) -> NLVRBatches:
        return NLVRBatches(
            self.config.data,
            tokenizer=self.tokenizer,
            image_size=self.config.model.vision.image_size,
            seed=self.config.seed,
        )

    def read_held_out(self) -> dict[str, Any]:
        return {
            name: read_statements(split, f"evaluation.test.{name}", 0.0) for name, split in self.evaluation.test.items()
        }

    def read_validation(self) -> list[Statement] | None:
        split = self.evaluation.validation
        return None if split is None else read_statements(split, "evaluation.validation", 0.0)

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
        """The class of every statement; each rank classifies its share."""
        view = EvaluationView(self.config.model.vision.image_size, self.config.data.max_pixels)
        processor = PlainTextProcessor(self.tokenizer, self.config.data.text)
        share, size = distributed.share_of(len(items)), self.evaluation.batch_size
        batches = in_batches(partial(_read, view, processor.max_words, items), share, size, self.config.data.workers)
        found = [np.zeros(0, dtype=np.int64)]
        for read in progress(batches, "classifying", -(-len(share) // size)):
            pixels = torch.cat([torch.stack([pair[side] for pair, _ in read]) for side in (0, 1)])
            text: Text = to_device(encode_texts(processor, [sentence for _, sentence in read]), device_of(self.model))
            found.append(self.model.classify(pixels.to(text.ids.device), text).argmax(dim=1).cpu().numpy())
        return np.concatenate(distributed.gather_objects(np.concatenate(found)))


def _read(view: EvaluationView, max_words: int, items: list[Statement], index: int) -> tuple[Tensor, str]:
    """Both pictures (2, 3, S, S) and the cleaned sentence."""
    item = items[index]
    return torch.stack([view(item.left), view(item.right)]), cleaned(item.sentence, max_words, item.place)
