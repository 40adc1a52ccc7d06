"""Pre-training as a task: its config, how it is built, and how its held-out records are evaluated."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field, model_validator

from dataset.loaders import PretrainLoader
from dataset.pretrain import DataConfig
from dataset.text import TextProcessor, load_tokenizer
from engine.checkpoint import Checkpoint
from engine.trainer import TrainConfig
from models.checkpoints import InitConfig, initialise, load_weights
from models.checkpoints.initialise import fresh_parameters
from models.pretrain import LossWeights, PretrainModel, StreamWeights
from models.xvlm import ModelConfig
from optim import OptimConfig
from scheduler import ScheduleConfig
from tasks.pretrain_evaluation import Evaluation, EvaluationConfig, table
from utils import distributed
from utils.config import Config
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
        torch.manual_seed(config.seed)
        self.model = build_model(config, len(self.tokenizer))
        self.fresh = self._load(checkpoint)
        self.loader = PretrainLoader(
            config.data,
            tokenizer=self.tokenizer,
            image_size=config.model.vision.image_size,
            patch_size=self.model.vision.patch_size,
            seed=config.seed,
            rank=distributed.rank(),
            world_size=distributed.world_size(),
        )

    def _load(self, checkpoint: Checkpoint | None) -> set[str]:
        if checkpoint is not None:
            load_weights(self.model, checkpoint.model_file).require_complete()
            return set(checkpoint.training_state()["fresh"])
        reports = initialise(self.model, self.config.init)
        for report in reports:
            logger.info("\n".join(report.lines()))
        return fresh_parameters(self.model, reports)

    def train_loader(self) -> PretrainLoader:
        return self.loader

    def evaluate(self, split: str = "held-out") -> dict[str, float]:
        """Metrics of ``config.evaluation``'s records; empty without."""
        evaluation = self._evaluation()
        return evaluation.metrics() if evaluation else {}

    def _evaluation(self) -> Evaluation | None:
        if self.config.evaluation is None:
            return None
        processor = TextProcessor(self.tokenizer, self.config.data.text)
        return Evaluation(self.config.evaluation, self.model, processor, self.config.seed)

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
