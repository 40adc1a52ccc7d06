"""The pre-training task: its config, its set-up, and the evaluation of held-out records."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import TYPE_CHECKING

from dataset.tasks.pretrain import PretrainBatches
from dataset.tasks.streams.wordings import ADD_SOURCES
from dataset.text.processors import TextProcessor
from engine.checkpoint import newest_step
from engine.run_folder import RunFolder
from engine.run_plan import RunPlan
from engine.trackers import show_images
from models.config import LossWeights, StreamWeights
from models.pretraining.model import PretrainModel
from tasks.base import BaseTask, Parts, video_frames
from tasks.config import PretrainConfig
from tasks.evaluation import write_evaluations, write_predictions
from tasks.facts import Facts, files_of, measured_weights
from tasks.inference import evaluating
from tasks.pretrain_evaluation import PretrainEvaluator, check_files
from utils import distributed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

HELD_OUT = "held-out"
"""Name of the only split in ``evaluation.json``."""


class PretrainTask(BaseTask[PretrainConfig, PretrainModel, PretrainBatches]):
    """Model and data of a pre-training run. The result is the last checkpoint; best weights are not selected."""

    takes_videos = True

    def __init__(self, config: PretrainConfig, parts: Parts[PretrainModel, PretrainBatches]):
        super().__init__(config, parts)
        if config.evaluation is not None:
            check_files(config.evaluation, config.data)
        if parts.training is not None and distributed.rank() == 0:
            for name, counts in parts.training.count_hard_negatives().items():
                if counts.are_few:
                    logger.warning("data.%s: %s; %s", name, counts, ADD_SOURCES)
                else:
                    logger.info("data.%s: %s", name, counts)

    @staticmethod
    def build_model(config: PretrainConfig, vocab_size: int | None) -> PretrainModel:
        weights = config.data.loss_weights()
        streams = StreamWeights(**{name: weights.get(name) for name in StreamWeights.model_fields})
        return PretrainModel(config.model, vocab_size, config.loss, streams)

    @staticmethod
    def training_data(
        config: PretrainConfig, tokenizer: PreTrainedTokenizerFast, model: PretrainModel, plan: RunPlan
    ) -> PretrainBatches:
        return PretrainBatches(
            config.data,
            tokenizer=tokenizer,
            image_size=config.model.vision.image_size,
            patch_size=model.vision.patch_size,
            seed=config.seed,
            world_size=plan.ranks,
            frames=video_frames(config),
            accumulate=plan.accumulation,
            static=bool(config.train.compile),
        )

    @staticmethod
    def text_lengths(config: PretrainConfig) -> dict[str, int]:
        translations = config.data.translations
        text = None if translations is None else translations.text
        lengths = {} if text is None else {"data.translations.text.max_tokens": text.max_tokens}
        return BaseTask.text_lengths(config) | lengths

    def validate(self) -> dict[str, float]:
        """Never called, because pre-training does not select weights."""
        return {}

    def report(self, folder: RunFolder) -> str:
        """Evaluates on all ranks, writes ``evaluation.json``, ``predictions_held-out.json`` and ``predictions.png`` to
        ``folder``, and returns the table."""
        if self.config.evaluation is None:
            return ""
        evaluator = self.evaluator()
        with evaluating(self.model, "fp32"):
            evaluation = evaluator.evaluate()
        if distributed.rank() != 0:
            return ""
        weights = measured_weights(folder, self.config.init.checkpoint, self.config.task)
        evaluation = evaluation.with_intervals(self.config.evaluation.bootstrap, self.config.seed)
        measured = self.config.evaluation.model_copy(update={"validation_files": []})
        evaluation = replace(evaluation, facts=Facts(files_of(measured), weights))
        write_evaluations(folder.path, {HELD_OUT: evaluation})
        texts = [evaluation.table(HELD_OUT)]
        if evaluation.predictions:
            texts.append(write_predictions(folder.path / f"predictions_{HELD_OUT}.json", evaluation.predictions))
        sheet = evaluator.draw(folder.path / "predictions.png")
        if sheet is not None:
            images = {f"predictions/{HELD_OUT}": sheet}
            show_images(folder, self.config.train.wandb, images, newest_step(folder.checkpoints))
            texts.append(f"some of them are drawn in {folder.path / 'predictions.png'}")
        return "\n".join(texts)

    def evaluator(self) -> PretrainEvaluator:
        """Creates the evaluator and reads the held-out records."""
        config = self.config
        assert config.evaluation is not None
        processor = TextProcessor(self.tokenizer, config.data.text)
        # The heads of init.checkpoint may have been trained by losses that this run does not compute.
        losses = self.model.loss_names if config.init.checkpoint is None else set(LossWeights.model_fields)
        return PretrainEvaluator(config.evaluation, config.data, self.model, processor, config.seed, losses)
