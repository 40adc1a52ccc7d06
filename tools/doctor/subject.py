"""The run that ``run.py doctor`` examines: its config, and the components that can be built from the config. Any component may be
missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import nn

from batches.base import Batch
from dataset.config import DataConfig, RegionStreamConfig
from dataset.text.loading import load_tokenizer
from engine.config import ShardingConfig
from engine.parallel.choice import mesh_of, state_bytes
from engine.run_plan import RunPlan
from models.inference.reranking import AligningModel
from optim.setup import set_frozen
from tasks.base import set_up_training
from tasks.binding import BoundRun
from tasks.finetune import FineTuneTask
from tools.doctor.findings import NotCheckedError
from tools.doctor.text_log import TextLog
from utils.accelerator import device_bytes
from utils.inputs import missing_inputs

ROWS = 4
"""Number of examples of a stream in a tiny micro-batch."""

TEXTS_OF_AN_IMAGE = 3


@dataclass
class Subject:
    """A run, and those of its components that could be built so far.

    Attributes:
        missing: missing inputs, with the config keys that name them.
        model: the model on the meta device.
        training: builds tiny micro-batches of the training data.
        held_out: held-out splits by config key.
        batches: micro-batches of the sample.
        weights_fit: whether the weights that ``init`` names can be loaded.
        unfetched: the model that ``init.text`` names, if a run has to download it.
    """

    run: BoundRun
    config: Any
    task: Any
    gpus: int
    output: Path
    device: torch.device
    missing: dict[str, list[str]] = field(default_factory=dict)
    tokenizer: TextLog | None = None
    model: Any = None
    training: Any = None
    held_out: dict[str, Any] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)
    weights_fit: bool = False
    unfetched: str | None = None

    def __post_init__(self) -> None:
        self.missing = missing_inputs(self.config)
        self.small = small(self.config)
        """The config with tiny micro-batches."""

    def missing_below(self, *prefixes: str) -> list[str]:
        """Returns the keys that name a missing input and begin with one of the prefixes."""
        keys = [key for names in self.missing.values() for key in names]
        return [key for key in keys if key.startswith(prefixes)]

    def require_inputs(self, *prefixes: str) -> None:
        """Raises :class:`NotCheckedError` if an input whose key begins with one of the prefixes is missing."""
        if keys := self.missing_below(*prefixes):
            more = f" and {len(keys) - 1} more" if len(keys) > 1 else ""
            raise NotCheckedError(f"{keys[0]}{more} {'are' if more else 'is'} missing")

    def load_tokenizer(self) -> TextLog:
        """Loads the tokenizer, and counts the tokens of the texts that it encodes.

        Raises:
            UserError: if the tokenizer cannot be loaded.
        """
        self.tokenizer = TextLog(load_tokenizer(self.config.model.text.encoder, "model.text.encoder"))
        return self.tokenizer

    def build_meta_model(self) -> Any:
        """Builds the model on the meta device. Only the parts that ``optim.freeze`` freezes for the whole run
        are frozen."""
        vocabulary = None if self.tokenizer is None else len(self.tokenizer)
        if vocabulary is None and not self.config.model.text.knows_vocabulary:
            raise NotCheckedError("without the tokenizer, the size of the vocabulary is unknown")
        with torch.device("meta"):
            self.model = self.task.build_model(self.config, vocabulary)
        _freeze(self.config, self.model)
        return self.model

    def build_for_training(self) -> Any:
        """Builds the model on torch's default device, with the adapters of ``optim.lora``. The trainer applies ``optim.freeze``.

        Raises:
            UserError: if the adapters do not fit the model.
        """
        model = self.task.build_model(self.config, None if self.tokenizer is None else len(self.tokenizer))
        set_up_training(self.config, model)
        return model

    def build_as_trained(self) -> Any:
        """Builds the model as in :meth:`build_for_training`, with parts frozen as in :meth:`build_meta_model`."""
        model = self.build_for_training()
        _freeze(self.config, model)
        return model

    def mesh(self, model: nn.Module) -> ShardingConfig | None:
        """Returns the device mesh if the run uses FSDP2, or None if it uses DDP.

        Raises:
            UserError: if ``train.parallel`` is for a different number of GPUs.
        """
        needed = state_bytes(model, average=self.config.optim.ema is not None)
        return mesh_of(self.config.train, self.config.optim, self.gpus, needed, device_bytes(self.device))[0]

    def read_training(self) -> Any:
        """Reads the training data, with tiny micro-batches.

        Raises:
            NotCheckedError: if the tokenizer, the model or an input is missing.
            UserError: if the data cannot be used.
        """
        self.require_inputs("data.")
        if self.tokenizer is None:
            raise NotCheckedError("needs the tokenizer, which could not be loaded")
        if self.model is None:
            raise NotCheckedError("needs the model, which could not be built")
        data = self.small.data
        plan = RunPlan.of(self.small.train, data, chunks=1, ranks=1, accumulation=1)
        self.training = self.task.training_data(self.small, self.tokenizer, self.model, plan)
        return self.training

    def read_held_out(self, key: str, split: Any) -> Any:
        """Reads a held-out split of a fine-tuning task.

        Raises:
            NotCheckedError: if a file is missing.
            UserError: if the split is not complete.
        """
        self.require_inputs(key)
        self.held_out[key] = self.task.read_split(self.config, split, key)
        return self.held_out[key]

    def splits(self) -> dict[str, Any]:
        """Returns the configs of a fine-tuning task's held-out splits, by key."""
        if not issubclass(self.task, FineTuneTask):
            return {}
        evaluation = self.config.evaluation
        validation = {} if evaluation.validation is None else {"evaluation.validation": evaluation.validation}
        return {**validation, **{f"evaluation.test.{name}": split for name, split in evaluation.test.items()}}

    def is_contrastive(self) -> bool:
        return isinstance(self.model, AligningModel)

    def make_inputs(self) -> None:
        """Lets the task write the files that it generates."""
        self.task.make_inputs(self.config)
        self.missing = missing_inputs(self.config)


def small(config: Any) -> Any:
    """Returns the config with tiny micro-batches and without accumulation."""
    train = config.train.model_copy(update={"global_batch": None, "accumulate": 1, "compile": False})
    data = config.data
    if isinstance(data, DataConfig):
        streams = {name: _small_stream(stream) for name, stream in data.streams().items()}
        data = data.model_copy(update={**streams, "workers": 0})
    else:
        data = data.model_copy(update={"batch_size": min(ROWS, data.batch_size), "workers": 0})
    return config.model_copy(update={"train": train, "data": data})


def _small_stream(stream: Any) -> Any:
    if not isinstance(stream, RegionStreamConfig):
        return stream.model_copy(update={"batch_size": min(ROWS, stream.batch_size)})
    texts = min(stream.batch_size, ROWS * min(stream.max_regions, TEXTS_OF_AN_IMAGE))
    return stream.model_copy(update={"batch_size": texts, "max_images": min(ROWS, stream.max_images)})


def shorten(names: Sequence[str], max_names: int = 3) -> str:
    """Joins the first names, and says how many more there are."""
    more = f" and {len(names) - max_names} more" if len(names) > max_names else ""
    return ", ".join(names[:max_names]) + more


def _freeze(config: Any, model: Any) -> None:
    """Freezes the parts that never train in the run."""
    if frozen := config.optim.frozen.always_frozen:
        set_frozen(model, frozen)
