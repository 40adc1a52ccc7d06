"""What every task shares: its config's sections, how its model is built and loaded, and how its data are counted."""

from __future__ import annotations

import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from dataset.finetune import EvaluationView, FineTuneBatches, FineTuneDataConfig, in_batches
from dataset.loaders import BatchLoader, BatchMaker, LoadingConfig
from dataset.text import PlainTextProcessor, load_tokenizer
from engine.checkpoint import Checkpoint, find_weights, run_of
from engine.precision import Precision, PrecisionName
from engine.run_folder import RunFolder
from engine.train_config import TrainConfig
from models.align import AligningModel
from models.checkpoints import InitConfig, LoadReport, initialise, load_weights
from models.checkpoints.initialise import fresh_parameters, loading_lines
from models.checkpoints.settings import model_section, require_same_settings, unlike_published
from models.xvlm import XVLM, ModelConfig
from optim import OptimConfig
from scheduler import ScheduleConfig
from tasks.tables import mean_of_splits, table
from utils import distributed
from utils.batch import Text, to_device
from utils.config import Config, read_yaml
from utils.errors import UserError
from utils.files import write_text
from utils.progress import progress_bar

logger = logging.getLogger(__name__)

MEAN = "mean of splits"
"""The entry of a report beside those of the splits."""


class RunConfig(Config):
    """The sections of every run; tasks add their data and their evaluation."""

    seed: int = Field(0, ge=0)
    model: ModelConfig
    init: InitConfig = InitConfig()
    optim: OptimConfig
    schedule: ScheduleConfig = ScheduleConfig()
    train: TrainConfig
    data: LoadingConfig


S = TypeVar("S", bound=Config)


class HeldOutConfig(Config, Generic[S]):
    """The held-out splits of a fine-tuning task, and how they are measured."""

    batch_size: int = Field(32, ge=1, description="images, or pairs of them, in one forward pass")
    precision: PrecisionName = "fp32"
    validation: S | None = Field(None, description="selects the weights; null: the last ones count")
    test: dict[str, S] = Field(min_length=1, description="splits to report on, by name")


class FineTuneConfig(RunConfig):
    """The sections of a fine-tuning run; tasks narrow their types."""

    data: FineTuneDataConfig
    evaluation: HeldOutConfig[Any]


C = TypeVar("C", bound=RunConfig)
M = TypeVar("M", bound=XVLM)
F = TypeVar("F", bound=FineTuneConfig)
T = TypeVar("T")
P = TypeVar("P")


class BaseTask(ABC, Generic[C, M]):
    """A model with its training data (see :class:`engine.task.Task`).

    Building it checks everything the run needs: weights, tokenizer, data, held-out data.
    """

    selects: str | None = None

    takes_videos = False
    """Whether the data may be videos, where ``model.vision.video`` says so."""

    def __init__(self, config: C, checkpoint: Checkpoint | None = None, *, trains: bool = True):
        """Build the model, and load ``checkpoint`` or what ``config.init`` names; without ``trains``, no training data are
        needed.

        Raises:
            UserError: if a tokenizer, weights or data cannot be used.
        """
        self.config = config
        if self.frames is not None and not self.takes_videos:
            raise UserError("model.vision.video: this task is one of images; drop it")
        self.tokenizer = load_tokenizer(config.model.text.encoder)
        self._check_padding()
        torch.manual_seed(config.seed)
        self.model: M = self.build_model(config, len(self.tokenizer))
        self._check_lengths()
        self.fresh = self._load(checkpoint)
        logger.info("%.1f M parameters", sum(parameter.numel() for parameter in self.model.parameters()) / 1e6)
        self.loader: BatchLoader | None = None
        if trains:
            ranks = {"rank": distributed.rank(), "world_size": distributed.world_size()}
            self.loader = BatchLoader(self.batches(), self.loading, **ranks)
            self._log_sizes(self.loader)

    @staticmethod
    @abstractmethod
    def build_model(config: C, vocab_size: int | None) -> M:
        """The model of a config, with random weights on torch's current default device."""

    @property
    @abstractmethod
    def loading(self) -> LoadingConfig:
        """The section of the config that says how records become batches."""

    @abstractmethod
    def batches(self) -> BatchMaker:
        """The training data."""

    @abstractmethod
    def validate(self) -> dict[str, float]:
        """See :class:`engine.task.Task`."""

    @abstractmethod
    def report(self, folder: RunFolder) -> str:
        """Measure the result of the run on held-out data, on all ranks; write it into ``folder`` and return it as a table."""

    def train_loader(self) -> BatchLoader:
        assert self.loader is not None, "the task was built to evaluate"
        return self.loader

    @property
    def frames(self) -> int | None:
        """Frames of a video; None where the model is one of images."""
        video = self.config.model.vision.video
        return None if video is None else video.frames

    def _check_padding(self) -> None:
        arch = self.config.model.text.arch
        if arch is not None and arch.family == "roberta" and arch.pad_id != self.tokenizer.pad_token_id:
            pad = self.tokenizer.pad_token_id
            raise UserError(
                f"model.text.arch.pad_id is {arch.pad_id}, the tokenizer's {pad}: RoBERTa counts positions from it"
            )

    def _check_lengths(self) -> None:
        self.check_length("data.text.max_tokens", self.loading.text.max_tokens)

    def check_length(self, key: str, most: int) -> None:
        """Raise a :class:`UserError` with the config ``key`` of ``most``, if the text encoder has no place for so many tokens."""
        longest = self.model.text.longest_text
        if longest is not None and most > longest:
            raise UserError(f"{key} is {most}, but model.text has positions for {longest} tokens; lower it")

    def _load(self, checkpoint: Checkpoint | None) -> set[str]:
        if checkpoint is not None:
            load_weights(self.model, checkpoint.model_file).require_complete()
            return set(checkpoint.training_state()["fresh"])
        init = self.config.init
        if init.checkpoint is not None:
            init = init.model_copy(update={"checkpoint": str(find_weights(Path(init.checkpoint).expanduser()))})
        reports = initialise(self.model, init)
        if init.checkpoint is not None:
            self._check_origin(Path(init.checkpoint), reports[0])
        logger.info("%s", "\n".join(loading_lines(self.model, reports)))
        return fresh_parameters(self.model, reports)

    def _check_origin(self, weights: Path, report: LoadReport) -> None:
        """Compare what no shape shows with the config of the run that the weights are of, or with all published models."""
        run = run_of(weights)
        trained = None if run is None else read_yaml(run)
        self.check_trained_for(None if trained is None else str(trained.get("task")), weights, report)
        if trained is not None and run is not None:
            model = model_section(trained)
            if model is None:
                logger.warning("%s is of another version; what no shape of its weights shows is not compared", run)
            else:
                require_same_settings(self.model, model, str(run), new_text=report.text_left_out)
        elif report.published and (said := unlike_published(self.model)):
            logger.warning("%s: %s; is the model meant to differ?", weights, "; ".join(said))

    def check_trained_for(self, task: str | None, weights: Path, report: LoadReport) -> None:
        """Look at the task that ``init.checkpoint`` is of; None where the file is not in a run's folder.

        Raises:
            UserError: if this run cannot start from it.
        """

    def _log_sizes(self, loader: BatchLoader) -> None:
        train = self.config.train
        steps, per_step, accumulation = (
            train.total_steps(loader),
            train.records_per_step(loader),
            train.accumulation(loader),
        )
        ranks = distributed.world_size()
        logger.info(
            "%s; %d rows a step over all ranks; %d steps are %.1f epochs of %s",
            f"records: {', '.join(f'{count} {name}' for name, count in loader.stream_sizes.items())}",
            loader.examples_per_batch * ranks * accumulation,
            steps,
            steps * per_step / loader.epoch_size,
            next(iter(loader.stream_sizes)),
        )
        if train.global_batch is not None and accumulation > 1 and isinstance(self.model, AligningModel):
            size = loader.micro_batch.size
            logger.info(
                "contrastive loss: %s examples (micro-batch %d x %d ranks) of train.global_batch = %s: fewer negatives",
                *(f"{size * ranks:,}", size, ranks, f"{train.global_batch:,}"),
            )


class FineTuneTask(BaseTask[F, M]):
    """A task that is measured on held-out splits, and keeps the weights that are best on the one for validation."""

    measure: str
    """The metric that selects."""

    make_batches: type[FineTuneBatches[Any, Any]]
    """Makes the training data."""

    def __init__(self, config: F, checkpoint: Checkpoint | None = None, *, trains: bool = True):
        super().__init__(config, checkpoint, trains=trains)
        splits = config.evaluation
        self.view = self.evaluation_view()
        self.text = PlainTextProcessor(self.tokenizer, config.data.text)
        self.held_out = {name: self.read_split(split, f"evaluation.test.{name}") for name, split in splits.test.items()}
        if splits.validation is not None:
            self.validation = self.read_split(splits.validation, "evaluation.validation")
            self.selects = self.measure

    @property
    def splits(self) -> dict[str, Any]:
        """Every held-out split by its config key."""
        named = {f"evaluation.test.{name}": items for name, items in self.held_out.items()}
        return (
            named if self.config.evaluation.validation is None else named | {"evaluation.validation": self.validation}
        )

    @staticmethod
    @abstractmethod
    def read_split(split: Any, key: str) -> Any:
        """A held-out split, which has to be whole.

        Raises:
            UserError: with the config ``key``, if it is not.
        """

    def evaluation_view(self) -> EvaluationView:
        """How held-out pictures are seen."""
        return EvaluationView(self.config.model.vision.image_size, self.config.data.max_pixels)

    predictions: list[dict[str, Any]] | None = None
    """What the last call of :meth:`measures` predicted, as the data set's evaluation server takes it, if it has one."""

    @abstractmethod
    def measures(self, items: Any) -> dict[str, float]:
        """Metrics of a split, the same on every rank; with ``<name>/chance`` beside those that have a chance level."""

    @property
    def loading(self) -> LoadingConfig:
        return self.config.data

    def batches(self) -> FineTuneBatches[Any, Any]:
        size = self.config.model.vision.image_size
        return self.make_batches(
            self.config.data, tokenizer=self.tokenizer, image_size=size, seed=self.config.seed, frames=self.frames
        )

    def look_for_training_data(self) -> None:
        """Read the training data for what is measured beside the model, where they are there."""
        try:
            self.batches()
        except UserError as error:
            logger.info("evaluated without the training data: %s", error)

    def outputs(
        self,
        items: Sequence[T],
        read: Callable[[EvaluationView, int, Sequence[T], int], tuple[P, str]],
        forward: Callable[[list[P], Text], Tensor],
        what: str,
        *,
        alone: bool = False,
    ) -> np.ndarray:
        """What ``forward`` gives for every item, in order; each rank runs its share, or with ``alone`` this one runs all.

        Args:
            items: at least one.
            read: view, words to keep, items and a place -> pictures (and what goes with them) and cleaned text of the item.
            forward: such pictures and texts of some items, on the CPU and on the model's device -> a row for each.
            what: the progress bar's name.
        """
        size, device = self.config.evaluation.batch_size, device_of(self.model)
        share = range(len(items)) if alone else distributed.share_of(len(items))
        reader = partial(read, self.view, self.text.max_words, items)
        batches = in_batches(reader, share, size, self.config.data.workers)
        found = []
        for made in progress(batches, what, -(-len(share) // size)):
            text = to_device(self.text.encode_plain([text for _, text in made]), device)
            found.append(forward([pixels for pixels, _ in made], text).cpu().numpy())
        everyone = [found] if alone else distributed.gather_objects(found)
        return np.concatenate([part for parts in everyone for part in parts])

    def validate(self) -> dict[str, float]:
        with evaluating(self.model, self.config.evaluation.precision):
            found = self.measures(self.validation)
        return {name: value for name, value in found.items() if not name.endswith("/chance")}

    def report(self, folder: RunFolder) -> str:
        """Measure the best weights, or where the run kept none the present ones.

        Writes ``evaluation.json``, with the mean where several splits are measured, and ``predictions_<split>.json`` where
        there are predictions.
        """
        if folder.best.is_file():
            load_weights(self.model, folder.best).require_complete()
        results, said = {}, []
        with evaluating(self.model, self.config.evaluation.precision):
            for name, items in self.held_out.items():
                results[name] = self.measures(items)
                said.append(table(results[name], name))
                if self.predictions is not None and distributed.rank() == 0:
                    said[-1] += "\n" + _write_predictions(folder.path / f"predictions_{name}.json", self.predictions)
        if distributed.rank() != 0:
            return ""
        if mean := mean_of_splits(results):
            results[MEAN] = mean
            said.append(table(mean, MEAN))
        write_text(folder.path / "evaluation.json", json.dumps(results, indent=2) + "\n")
        return "\n\n".join(said)


def _write_predictions(path: Path, predictions: Sequence[dict[str, Any]]) -> str:
    """Write a JSON list; what was written, in a line."""
    lines = ",\n".join(json.dumps(each, ensure_ascii=False) for each in predictions)
    write_text(path, f"[\n{lines}\n]\n")
    return f"{len(predictions)} predictions in {path}, as the evaluation server takes them"


@contextmanager
def evaluating(model: torch.nn.Module, precision: PrecisionName) -> Iterator[None]:
    """The model in evaluation mode, without gradients, in a precision, and not compiled."""
    training = model.training
    model.eval()
    try:
        # What is compiled for evaluation counts against the limit after which torch compiles no more for training either.
        with (
            torch.compiler.set_stance("force_eager"),
            torch.no_grad(),
            Precision(precision, device_of(model)).autocast(),
        ):
            yield
    finally:
        model.train(training)


def device_of(model: torch.nn.Module) -> torch.device:
    """Where the model's parameters are."""
    return next(model.parameters()).device


def progress(items: Iterable[T], what: str, total: int) -> Iterable[T]:
    """``items`` with a progress bar that shows the time left, on rank 0."""
    return progress_bar(items, total=total, quiet=distributed.rank() != 0, desc=what, leave=False)
