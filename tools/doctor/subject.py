"""The run that ``run.py doctor`` examines: its config, and the parts that can be built from the config."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_parameter_registration_hook

from batches.base import Batch
from dataset.config import DataConfig, RegionStreamConfig
from dataset.text.loading import load_tokenizer
from engine.config import ShardingConfig
from engine.parallel.choice import mesh_of, state_bytes
from engine.run_plan import RunPlan
from tasks.base import set_up_training
from tasks.prepared import NotCheckedError, PreparedRun
from tools.doctor.text_log import TextLog
from tools.steps.fake import FakeSteps
from utils.accelerator import device_bytes
from utils.inputs import missing_inputs

ROWS = 4
"""Number of examples of a stream in a tiny micro-batch."""

TEXTS_OF_AN_IMAGE = 3


MAX_PARAMETERS_ON_CPU = 60_000_000
"""Maximum number of parameters for a step on a CPU. With more parameters, the step would take longer than all other checks
together, so the model is built without memory."""


@dataclass(kw_only=True)
class Subject(PreparedRun):
    """The run that the doctor examines. Each part is built once, by the first check that needs it.

    Attributes:
        output: folder of the run.
        device: the device of a step.
        out: folder for files that checks write.
        missing: missing inputs, with the config keys that name them.
        batches: micro-batches of the sample.
        loading_s: seconds that it took to make the sample.
        unfetched: the model that ``init.text`` names, if a run has to download it.
    """

    output: Path
    device: torch.device
    out: Path
    missing: dict[str, list[str]] = field(default_factory=dict)
    batches: list[Batch] = field(default_factory=list)
    loading_s: float = 0.0
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
        tokenizer = TextLog(load_tokenizer(self.config.model.text.encoder, "model.text.encoder"))
        self.tokenizer = tokenizer
        return tokenizer

    def build_model(self) -> Any:
        """Builds the model with random weights, as a run does. A model that is too large for a step here is built on the meta
        device."""
        vocabulary = None if self.tokenizer is None else len(self.tokenizer)
        if vocabulary is None and not self.config.model.text.knows_vocabulary:
            raise NotCheckedError("without the tokenizer, the size of the vocabulary is unknown")
        torch.manual_seed(self.config.seed)
        try:
            with at_most(MAX_PARAMETERS_ON_CPU if self.device.type == "cpu" else None):
                self.model = self.task.build_model(self.config, vocabulary)
        except TooLargeError:
            with torch.device("meta"):
                self.model = self.task.build_model(self.config, vocabulary)
        return self.model

    def built_model(self) -> Any:
        """Returns the model; raises :class:`NotCheckedError` if it could not be built."""
        if self.model is None:
            raise NotCheckedError("needs the model, which could not be built")
        return self.model

    @cached_property
    def trained_model(self) -> Any:
        """The model with the adapters of ``optim.lora``.

        Raises:
            NotCheckedError: if the model could not be built.
            UserError: if the adapters do not fit the model.
        """
        set_up_training(self.config, self.built_model())
        return self.model

    @cached_property
    def fake_steps(self) -> FakeSteps:
        """Steps on fake tensors, as on a GPU. Raises the errors of :attr:`trained_model`."""
        return FakeSteps(self.trained_model, self.config.train, self.config.optim, as_on_gpu=True)

    @cached_property
    def first_batch(self) -> Any:
        """The first micro-batch of training, with as few examples as the micro-batches of the sample.

        Raises:
            NotCheckedError: if the training data could not be read.
        """
        return self.training_data().make(0)

    def mesh(self, model: nn.Module) -> ShardingConfig | None:
        """Returns the device mesh if the run uses FSDP2, or None if it uses DDP.

        Raises:
            UserError: if ``train.parallel`` is for a different number of GPUs.
        """
        needed = state_bytes(model, average=self.config.optim.ema is not None)
        return mesh_of(self.config.train, self.config.optim, self.ranks, needed, device_bytes(self.device))[0]

    def read_training(self) -> Any:
        """Reads the training data, with tiny micro-batches.

        Raises:
            NotCheckedError: if the tokenizer, the model or an input is missing.
            UserError: if the data cannot be used.
        """
        self.require_inputs("data.")
        if self.tokenizer is None:
            raise NotCheckedError("needs the tokenizer, which could not be loaded")
        model = self.built_model()
        data = self.small.data
        plan = RunPlan.of(self.small.train, data, chunks=1, ranks=1, accumulation=1)
        self.training = self.task.training_data(self.small, self.tokenizer, model, plan)
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
        if not self.fine_tunes:
            return {}
        evaluation = self.config.evaluation
        validation = {} if evaluation.validation is None else {"evaluation.validation": evaluation.validation}
        return {**validation, **{f"evaluation.test.{name}": split for name, split in evaluation.test.items()}}

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


class TooLargeError(BaseException):
    """Raised by :func:`at_most`. It is not an :class:`Exception`, so that code that builds encoders does not report it as a
    fault of an encoder."""


@contextmanager
def at_most(parameters: int | None) -> Iterator[None]:
    """Context manager that raises :class:`TooLargeError` when the modules that are built in it have more than this number of
    parameters. If None, the number is not limited."""
    count = 0

    def add(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        nonlocal count
        count += 0 if parameter is None else parameter.numel()
        if parameters is not None and count > parameters:
            raise TooLargeError

    handle = register_module_parameter_registration_hook(add)
    try:
        yield
    finally:
        handle.remove()
