"""Pre-training as a task: its config, how it is built, and how its held-out records are evaluated."""

from __future__ import annotations

import json
from typing import Literal

from pydantic import Field, model_validator

from dataset.loaders import LoadingConfig
from dataset.pretrain import DataConfig, PretrainBatches
from dataset.text import TextProcessor
from engine.checkpoint import Checkpoint
from engine.run_folder import RunFolder
from models.multigrained import LossWeights, PretrainModelConfig, StreamWeights
from models.pretrain import PretrainModel
from tasks.common import BaseTask, RunConfig, evaluating
from tasks.pretrain_evaluation import Evaluation, EvaluationConfig, check_files
from tasks.tables import table
from utils import distributed
from utils.files import write_text


class PretrainConfig(RunConfig):
    """A pre-training run."""

    task: Literal["pretrain"] = "pretrain"
    model: PretrainModelConfig
    loss: LossWeights = LossWeights()
    data: DataConfig
    evaluation: EvaluationConfig | None = Field(None, description="held-out records to report on at the end")

    @model_validator(mode="after")
    def _has_pictures(self) -> PretrainConfig:
        if self.data.images is None and self.data.regions is None and self.data.videos is None:
            raise ValueError("pre-training needs data.images, data.regions or data.videos: texts alone align nothing")
        if (self.data.videos is None) != (self.model.vision.video is None):
            raise ValueError("data.videos and model.vision.video come together: set both, or neither")
        return self


class PretrainTask(BaseTask[PretrainConfig, PretrainModel]):
    """Model and data of a pre-training run. Its result is the last checkpoint: nothing is selected."""

    def __init__(self, config: PretrainConfig, checkpoint: Checkpoint | None = None, *, trains: bool = True):
        """See :class:`~tasks.common.BaseTask`."""
        super().__init__(config, checkpoint, trains=trains)
        if config.evaluation is not None:
            check_files(config.evaluation, config.data)

    takes_videos = True

    @staticmethod
    def build_model(config: PretrainConfig, vocab_size: int | None) -> PretrainModel:
        weights = {name: stream.weight for name, stream in config.data.streams().items()}
        streams = StreamWeights(**{name: weights.get(name) for name in StreamWeights.model_fields})
        return PretrainModel(config.model, vocab_size, config.loss, streams)

    @property
    def loading(self) -> LoadingConfig:
        return self.config.data

    def _check_lengths(self) -> None:
        super()._check_lengths()
        pairs = self.config.data.pairs
        if pairs is not None and pairs.text is not None:
            self.check_length("data.pairs.text.max_tokens", pairs.text.max_tokens)

    def batches(self) -> PretrainBatches:
        return PretrainBatches(
            self.config.data,
            tokenizer=self.tokenizer,
            image_size=self.config.model.vision.image_size,
            patch_size=self.model.vision.patch_size,
            seed=self.config.seed,
            world_size=distributed.world_size(),
            frames=self.frames,
            accumulate=self.config.train.accumulation(self.config.data),
            static=bool(self.config.train.compile),
        )

    def validate(self) -> dict[str, float]:
        """Not called: pre-training selects nothing."""
        return {}

    def report(self, folder: RunFolder) -> str:
        """Evaluate on rank 0, write ``evaluation.json`` and ``predictions.png`` into ``folder``, and return the table."""
        evaluation = self._evaluation()
        if evaluation is None or distributed.rank() != 0:
            return ""
        with evaluating(self.model, "fp32"):
            metrics = evaluation.metrics()
            evaluation.draw(folder.path / "predictions.png")
        write_text(folder.path / "evaluation.json", json.dumps(metrics, indent=2) + "\n")
        return table(metrics)

    def _evaluation(self) -> Evaluation | None:
        if self.config.evaluation is None:
            return None
        processor = TextProcessor(self.tokenizer, self.config.data.text)
        return Evaluation(self.config.evaluation, self.config.data, self.model, processor, self.config.seed)
