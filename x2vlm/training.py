"""Training steps in your own code: build the model of a config, make or pass batches, read the losses by name, and update.

    from x2vlm import Training

    training = Training("configs/demo/pretrain.yaml")
    losses = training.losses(training.batch(0))
    values = training.step(training.batch(0))

A run (``run.py``) does the same, and also keeps the learning-rate schedule, checkpoints, metrics, validation and several ranks.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from batches.base import Batch, to_device
from batches.losses import weighted_sum
from batches.pretraining import ImageTextBatch, PretrainBatch
from dataset.text.loading import load_tokenizer
from dataset.text.processors import TextProcessor, clean_caption
from engine.steps import trainer_of
from models.pretraining.model import PretrainModel
from tasks.base import BaseTask
from tasks.binding import bind_run
from tasks.config import PretrainConfig
from utils import accelerator
from utils.errors import UserError
from utils.image_size import sides_of
from x2vlm.base import as_texts


class Training:
    """The model of a training config, with its optimiser at the peak learning rates.

    Args:
        config: a YAML file.
        overrides: ``key=value`` arguments that override its values.
        task: the folder or module of a task of your own; by default, the config names its task.
        data: True to open the training data of the config and to load the weights that ``init`` names; False to start with random
            weights and to pass your own batches.
        device: the device; if None, a GPU if there is one, otherwise the CPU.

    Attributes:
        config: the bound config.
        model: the model, on the device. It returns losses as sums; :meth:`losses` averages them.

    Raises:
        UserError: if the config or its data cannot be used.
    """

    def __init__(
        self,
        config: str | Path,
        overrides: Sequence[str] = (),
        *,
        task: str | None = None,
        data: bool = True,
        device: str | torch.device | None = None,
    ):
        if isinstance(overrides, str):
            raise UserError(f"overrides is the text {overrides!r}", remedy="pass a list of key=value texts")
        run = bind_run(config, overrides, task)
        kind, self.config = run.source.load().task, run.config
        self.device = torch.device(device) if device is not None else accelerator.best_device()
        self._task: BaseTask[Any, Any, Any] | None = None
        text = self.config.model.text
        if data:
            kind.make_inputs(self.config)
            self._task = kind.build(self.config)
            network = self._task.model
        else:
            torch.manual_seed(self.config.seed)
            vocabulary = None if text.knows_vocabulary else len(load_tokenizer(text.encoder, "model.text.encoder"))
            network = kind.build_model(self.config, vocabulary)
        self._trainer = trainer_of(network, self.config.train, self.config.optim, self.device)

    @property
    def model(self) -> nn.Module:
        return self._trainer.model

    def batch(self, index: int) -> Any:
        """Returns micro-batch ``index`` of the training data, on the host. It depends only on the config, its seed and the index.

        Raises:
            UserError: if the data were not opened.
        """
        if self._task is None or self._task.training is None:
            raise UserError("batch: the training data were not opened", remedy="omit data=False")
        if not isinstance(index, int) or index < 0:
            raise UserError(f"batch: {index!r} is not the index of a micro-batch", remedy="pass 0, 1, 2, …")
        return self._task.training.make(index)

    def pairs(self, pixels: Tensor, texts: Sequence[str]) -> PretrainBatch:
        """Returns a pre-training batch of image-text pairs.

        Args:
            pixels: N images, (N, 3, H, W) uint8.
            texts: N captions. Tokens are masked at random, with a different mask in each call.

        Raises:
            UserError: if the config is not for pre-training, or the numbers or sizes do not match.
        """
        config = self.config
        if not isinstance(config, PretrainConfig):
            raise UserError(f"pairs: the task is {config.task}", remedy="build its batch from the classes in batches")
        texts, size = as_texts(texts), config.model.vision.image_size
        shape = (len(texts), 3, *sides_of(size))
        if not (isinstance(pixels, Tensor) and pixels.dtype == torch.uint8 and tuple(pixels.shape) == shape and texts):
            given = f"{tuple(pixels.shape)} {pixels.dtype}" if isinstance(pixels, Tensor) else type(pixels).__name__
            raise UserError(
                f"pairs: pixels are {given} for {len(texts)} texts",
                remedy=f"pass at least one text, and a uint8 tensor of shape {shape}",
            )
        processor = TextProcessor(load_tokenizer(config.model.text.encoder, "model.text.encoder"), config.data.text)
        rng = np.random.default_rng()
        try:
            cleaned = [clean_caption(each, processor.max_words) for each in texts]
        except ValueError as error:
            raise UserError(f"pairs: {error}", remedy="pass texts with words") from None
        text = processor.collate([processor.encode(each, rng) for each in cleaned])
        images = ImageTextBatch(pixels, text, torch.ones(len(texts), dtype=torch.bool))
        return PretrainBatch(images=images, regions=None, texts=None)

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Returns the average of each loss over its valid examples, and their weighted sum as ``loss`` (equation 6 of the paper).
        All are scalars with gradients. Dropout and the sampling of negatives use torch's random state."""
        self._check(batch)
        trainer = self._trainer
        model: Any = trainer.model
        divisors = {name: count.clamp(min=1).to(self.device) for name, count in model.counts(batch).items()}
        with trainer.precision.autocast():
            terms = model(to_device(batch, self.device))
        averages, total = weighted_sum(terms, divisors)
        return {**dict(zip(divisors, averages.unbind(), strict=True)), "loss": total}

    def step(self, *batches: Any) -> dict[str, float]:
        """Runs a training step on micro-batches: forward, backward, clipping and update. Returns the losses by name, their
        weighted sum (``loss``), ``grad_norm`` and, with fp16, ``loss_scale``. If a loss or the gradient is not finite, the update
        is skipped."""
        for batch in batches or (None,):
            self._check(batch)
        return self._trainer.train_step(list(batches)).read().logged

    def _check(self, batch: Any) -> None:
        """Raises :class:`UserError` unless ``batch`` is a batch for the model."""
        if not isinstance(batch, Batch) or isinstance(self.model, PretrainModel) != isinstance(batch, PretrainBatch):
            raise UserError(
                f"{type(batch).__name__} is not a batch for the task {self.config.task}",
                remedy="pass the result of batch() or pairs(), or a batch from the module of the task in batches",
            )
