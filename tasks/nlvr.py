"""The visual reasoning task: fine-tuning on statements about two images, evaluated by accuracy and consistency."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from batches.texts import Text
from dataset.config import NLVRSplitConfig
from dataset.media.views import EvaluationView
from dataset.tasks.finetune import cleaned
from dataset.tasks.nlvr import LABELS, NLVRBatches, Statement, check_statements, read_statements
from engine.run_plan import RunPlan
from metrics.bootstrap import Scores
from metrics.classification import all_correct
from models.tasks.nlvr import NLVRModel
from tasks.config import NLVRConfig
from tasks.drawing import SIDE, DrawnImage, ImageReader, Line, Panel
from tasks.evaluation import Evaluation, Metric, count
from tasks.finetune import FineTuneTask, data_options, name_of
from tasks.inference import require_finite

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast


class NLVRTask(FineTuneTask[NLVRConfig, NLVRModel, NLVRBatches]):
    """Model, data and evaluation of a visual reasoning run."""

    network = NLVRModel
    measure = "accuracy"

    @staticmethod
    def training_data(
        config: NLVRConfig, tokenizer: PreTrainedTokenizerFast, model: NLVRModel, plan: RunPlan
    ) -> NLVRBatches:
        batches = NLVRBatches(config.data, **data_options(config, tokenizer))
        check_statements(batches.items, config.model.images, config.model.classes, "data.train")
        return batches

    @staticmethod
    def read_split(config: NLVRConfig, split: NLVRSplitConfig, key: str) -> list[Statement]:
        items = read_statements(split, key, 0.0)
        check_statements(items, config.model.images, config.model.classes, key)
        return items

    def evaluate(self, items: list[Statement]) -> Evaluation:
        """Computes the accuracy, and the consistency: the fraction of sentences whose statements are all classified correctly.
        The chance level is the accuracy if the most frequent class is always predicted."""
        predicted = self._predict(items)
        true = np.array([item.label for item in items])
        sentences = [item.sentence_id for item in items]
        majority = np.bincount(true).max() / len(true)
        guessed = np.mean(
            [self.config.model.classes ** -float(statements) for statements in Counter(sentences).values()]
        )
        right = all_correct(predicted == true, sentences)
        # All statements with the same sentence are about pairs from the same set of images.
        groups = sentences if self.config.model.images > 1 else [name_of(item.images[0]) for item in items]
        metrics = (
            count("statements", len(items)),
            count("sentences", len(set(sentences))),
            Metric.mean_of("accuracy", Scores(predicted == true, groups), float(majority)),
            Metric.mean_of("consistency", Scores(np.array(list(right.values())), list(right)), float(guessed)),
        )
        return Evaluation(
            metrics, [self._prediction(item, label) for item, label in zip(items, predicted, strict=True)]
        )

    def _prediction(self, item: Statement, predicted: int) -> dict[str, Any]:
        names = LABELS[self.config.model.classes]
        return {
            "place": item.location,
            "sentence_id": item.sentence_id,
            "sentence": item.sentence,
            "predicted": names[int(predicted)],
            "true": names[item.label],
        }

    def panel(self, items: list[Statement], number: int, prediction: Mapping[str, Any], read: ImageReader) -> Panel:
        item, predicted, true = items[number], prediction["predicted"], prediction["true"]
        side = SIDE if len(item.images) == 1 else SIDE // 2
        lines = (
            Line(item.sentence),
            Line(f"predicted: {predicted}", predicted == true),
            Line(f"annotated: {true}", faint=True),
        )
        return Panel(tuple(DrawnImage(read(image, side=side)) for image in item.images), lines)

    def _predict(self, items: list[Statement]) -> np.ndarray:
        """Predicts the class of every statement."""

        def classify(images: list[list[Tensor]], text: Text) -> Tensor:
            by_place = zip(*images, strict=True)  # the first images, then the second ones
            pixels = self.stacked([image for each in by_place for image in each])
            logits = self.model.classify(pixels, text)
            return require_finite(logits, "logits of statements").argmax(dim=1)

        return self.outputs(items, _read, classify, "classifying")


def _read(view: EvaluationView, max_words: int, items: Sequence[Statement], index: int) -> tuple[list[Tensor], str]:
    """Returns the images, (3, H, W) each, and the cleaned sentence."""
    item = items[index]
    return [view(image) for image in item.images], cleaned(item.sentence, max_words)
