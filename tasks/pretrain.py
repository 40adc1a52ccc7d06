"""Pre-training as a task: its config, how it is built, and how its held-out records are evaluated."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator

from dataset.loaders import BatchLoader
from dataset.pretrain import DataConfig, PretrainBatches
from dataset.text import TextProcessor, load_tokenizer
from engine.checkpoint import Checkpoint
from engine.trainer import TrainConfig
from models.checkpoints import InitConfig, initialise, load_weights
from models.checkpoints.initialise import fresh_parameters, never_loaded
from models.pretrain import LossWeights, PretrainModel, StreamWeights
from models.xvlm import ModelConfig
from optim import OptimConfig
from scheduler import ScheduleConfig
from tasks.pretrain_evaluation import Evaluation, EvaluationConfig, check_files, table
from utils import distributed
from utils.config import Config
from utils.errors import UserError
from utils.files import write_text

logger = logging.getLogger(__name__)


class PretrainConfig(Config):
    """A pre-training run."""

    task: Literal["pretrain"] = "pretrain"
    seed: int = Field(0, ge=0)
    model: ModelConfig
    init: InitConfig = InitConfig()
    loss: LossWeights = LossWeights()
    data: DataConfig
    optim: OptimConfig
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig
    evaluation: EvaluationConfig | None = Field(None, description="held-out records to report on at the end")

    @model_validator(mode="after")
    def _has_pictures(self) -> PretrainConfig:
        if self.data.images is None and self.data.regions is None:
            raise ValueError("pre-training needs data.images or data.regions: texts alone align nothing")
        arch = self.model.text.arch
        if arch is not None and self.data.text.max_tokens > arch.longest_text:
            raise ValueError(
                f"data.text.max_tokens is {self.data.text.max_tokens}, but model.text.arch has positions for {arch.longest_text}"
            )
        return self


class PretrainTask:
    """Model and data of a pre-training run (see :class:`engine.task.Task`)."""

    def __init__(self, config: PretrainConfig, checkpoint: Checkpoint | None = None):
        """Build the model, and load ``checkpoint`` or what ``config.init`` names.

        Raises:
            UserError: if a tokenizer, weights or data cannot be used.
        """
        self.config = config
        self.tokenizer = load_tokenizer(config.model.text.encoder)
        arch = config.model.text.arch
        if arch is not None and arch.family == "roberta" and arch.pad_id != self.tokenizer.pad_token_id:
            pad = self.tokenizer.pad_token_id
            raise UserError(
                f"model.text.arch.pad_id is {arch.pad_id}, the tokenizer's {pad}: RoBERTa counts positions from it"
            )
        torch.manual_seed(config.seed)
        self.model = build_model(config, len(self.tokenizer))
        self.fresh = self._load(checkpoint)
        batches = PretrainBatches(
            config.data,
            tokenizer=self.tokenizer,
            image_size=config.model.vision.image_size,
            patch_size=self.model.vision.patch_size,
            seed=config.seed,
            world_size=distributed.world_size(),
        )
        self.loader = BatchLoader(batches, config.data, rank=distributed.rank(), world_size=distributed.world_size())
        if config.evaluation is not None:
            check_files(config.evaluation, config.data)
        self._log_sizes()

    def _log_sizes(self) -> None:
        train, loader = self.config.train, self.loader
        ranks = distributed.world_size() * train.accumulate
        streams = ", ".join(f"{count} {name}" for name, count in loader.stream_sizes.items())
        leading = next(iter(self.config.data.streams().values()))
        per_step = (getattr(leading, "max_images", None) or leading.batch_size) * ranks
        logger.info(
            "%.1f M parameters; %s; %d rows a step over all ranks; %d steps are %.1f epochs of %s",
            sum(parameter.numel() for parameter in self.model.parameters()) / 1e6,
            f"records: {streams}",
            loader.examples_per_batch * ranks,
            train.steps,
            train.steps * per_step / loader.epoch_size,
            next(iter(loader.stream_sizes)),
        )

    def _load(self, checkpoint: Checkpoint | None) -> set[str]:
        if checkpoint is not None:
            load_weights(self.model, checkpoint.model_file).require_complete()
            return set(checkpoint.training_state()["fresh"])
        reports = initialise(self.model, self.config.init)
        for report in reports:
            logger.info("%s", "\n".join(report.lines()))
        logger.info("%s", "\n".join(never_loaded(self.model, reports)))
        return fresh_parameters(self.model, reports)

    def train_loader(self) -> BatchLoader:
        return self.loader

    def _evaluation(self) -> Evaluation | None:
        if self.config.evaluation is None:
            return None
        processor = TextProcessor(self.tokenizer, self.config.data.text)
        return Evaluation(self.config.evaluation, self.config.data, self.model, processor, self.config.seed)

    def report(self, folder: Path) -> str:
        """Evaluate on rank 0, write ``evaluation.json`` and ``predictions.png`` into ``folder``, and return the table."""
        if distributed.rank() != 0:
            return ""
        evaluation = self._evaluation()
        if evaluation is None:
            return ""
        metrics = evaluation.metrics()
        write_text(folder / "evaluation.json", json.dumps(metrics, indent=2) + "\n")
        evaluation.draw(folder / "predictions.png")
        return table(metrics)


def build_model(config: PretrainConfig, vocab_size: int | None) -> PretrainModel:
    """The model of a config, with random weights on torch's current default device."""
    weights = {name: stream.weight for name, stream in config.data.streams().items()}
    streams = StreamWeights(**{name: weights.get(name) for name in ("images", "regions", "texts")})
    return PretrainModel(config.model, vocab_size, config.loss, streams)
