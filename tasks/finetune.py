"""Base class of the fine-tuning tasks: held-out splits and their evaluation on all ranks. One split selects the best weights."""

from __future__ import annotations

import copy
import logging
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import product
from typing import TYPE_CHECKING, Any, ClassVar, Self, TypeVar

import numpy as np
import torch
from torch import Tensor

from batches.base import to_device
from batches.images import Pixels, stack_views
from batches.texts import Text
from dataset.media.sources import ImageSource, VideoSource
from dataset.media.views import EvaluationView
from dataset.tasks.finetune import in_batches
from dataset.text.processors import PlainTextProcessor
from engine.checkpoint import Checkpoint, newest_step
from engine.precision import check_precision
from engine.run_folder import RunFolder
from engine.run_plan import RunPlan
from engine.trackers import show_images
from models.checkpoints import load_weights
from tasks.base import B, BaseTask, M, Parts, build_parts, video_frames
from tasks.config import FineTuneConfig
from tasks.drawing import ImageReader, Panel, Sheet, draw_sheet, readable_panels, spread
from tasks.evaluation import Evaluation, mean_of_splits, write_evaluations, write_predictions
from tasks.facts import Facts, files_of, measured_weights
from tasks.image_blind import ADVICE, unbeaten_baselines
from tasks.inference import device_of, evaluating, progress
from tasks.tables import read_tables
from utils import accelerator, distributed

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

logger = logging.getLogger(__name__)

KEPT = "keep: "
"""Beginning of the names of entries in the report that are about a split of earlier data."""
MEAN = "mean of splits"
"""Name of the entry in the report that contains the mean over the splits."""
KEPT_PREDICTIONS = 12
"""Number of predictions kept from each validation pass, always for the same examples."""

T = TypeVar("T")
P = TypeVar("P")


F = TypeVar("F", bound=FineTuneConfig)


@dataclass(frozen=True)
class HeldOut:
    """The held-out splits of a run.

    Attributes:
        view: preprocesses images and videos for evaluation.
        test: the splits to report on, by name.
        validation: the split that selects the best weights, or None.
        kept: the splits of earlier data to report on, by name.
        kept_validation: the split of earlier data on which weights are chosen, or None.
    """

    view: EvaluationView
    test: Mapping[str, Any]
    validation: Any | None
    kept: Mapping[str, Any] = field(default_factory=dict)
    kept_validation: Any | None = None

    def by_key(self) -> dict[str, Any]:
        """Returns all splits by config key."""
        splits = {f"evaluation.test.{name}": split for name, split in self.test.items()}
        splits |= {f"evaluation.keep.test.{name}": split for name, split in self.kept.items()}
        splits |= {"evaluation.validation": self.validation, "evaluation.keep.validation": self.kept_validation}
        return {key: split for key, split in splits.items() if split is not None}


class FineTuneTask(BaseTask[F, M, B]):
    """A task that is evaluated on held-out splits and keeps the weights that are best on the validation split."""

    network: ClassVar[type[Any]]
    """Class of the model, if :meth:`build_model` needs only the section ``model`` and the size of the vocabulary."""

    batches: ClassVar[type[Any]]
    """Class of the training data, if :meth:`training_data` needs only the section ``data`` and :func:`data_options`."""

    measure: str
    """The metric that selects the best weights."""

    legend: ClassVar[str] = "tick: right · cross: wrong"
    """Legend for the panels of a sheet; see :meth:`legend_for`."""

    def __init__(self, config: F, parts: Parts[M, B], held_out: HeldOut):
        super().__init__(config, parts)
        self.held_out = held_out
        self.text = PlainTextProcessor(self.tokenizer, config.data.text)
        self.selection_metric = None if held_out.validation is None else self.measure

    @classmethod
    def build(
        cls, config: F, checkpoint: Checkpoint | None = None, *, trains: bool = True, plan: RunPlan | None = None
    ) -> Self:
        check_precision(config.evaluation.precision, accelerator.best_device(), "evaluation.precision")
        held_out = cls.read_held_out(config)  # first, so that errors in these files are reported within seconds
        return cls(config, build_parts(cls, config, checkpoint, trains=trains, plan=plan), held_out)

    @classmethod
    def build_model(cls, config: F, vocab_size: int | None) -> M:
        """See :class:`~tasks.base.BaseTask`."""
        model: M = cls.network(config.model, vocab_size)
        return model

    @classmethod
    def training_data(cls, config: F, tokenizer: PreTrainedTokenizerFast, model: M, plan: RunPlan) -> B:
        """See :class:`~tasks.base.BaseTask`."""
        batches: B = cls.batches(config.data, **data_options(config, tokenizer))
        return batches

    @classmethod
    def read_held_out(cls, config: F) -> HeldOut:
        """Reads the held-out splits of a config.

        Raises:
            UserError: if a split contains broken records.
        """
        splits, keep = config.evaluation, config.evaluation.keep

        def read(split: Any | None, key: str) -> Any | None:
            return None if split is None else cls.read_split(config, split, f"evaluation.{key}")

        return HeldOut(
            cls.evaluation_view(config),
            {name: read(split, f"test.{name}") for name, split in splits.test.items()},
            read(splits.validation, "validation"),
            {} if keep is None else {name: read(split, f"keep.test.{name}") for name, split in keep.test.items()},
            None if keep is None else read(keep.validation, "keep.validation"),
        )

    @staticmethod
    @abstractmethod
    def read_split(config: F, split: Any, key: str) -> Any:
        """Reads a held-out split, which must not contain broken records.

        Raises:
            UserError: if it contains a broken record; the message names the config ``key``.
        """

    @staticmethod
    def evaluation_view(config: F) -> EvaluationView:
        """Returns the preprocessing of images for evaluation."""
        return EvaluationView(config.model.vision.image_size, config.data.max_pixels, pixels=config.data.pixels)

    @abstractmethod
    def evaluate(self, items: Any) -> Evaluation:
        """Evaluates the model on a split, and returns the same result on every rank. The model must be in evaluation mode."""

    def outputs(
        self,
        items: Sequence[T],
        read: Callable[[EvaluationView, int, Sequence[T], int], tuple[P, str]],
        forward: Callable[[list[P], Text], Tensor],
        description: str,
    ) -> np.ndarray:
        """Runs ``forward`` on all items, split among the ranks.

        Args:
            items: the items, at least one.
            read: function that gets the view, the maximum number of words, the items and an index, and returns the item's images,
                possibly with other data, and its cleaned text.
            forward: function that gets several items' images (on the CPU) and texts (on the model's device), and returns a tensor
                with one row per item.
            description: label of the progress bar.

        Returns:
            The rows of all items, in order.
        """
        size, device = self.config.evaluation.batch_size, device_of(self.model)
        share = distributed.share_of(len(items))
        reader = partial(read, self.held_out.view, self.text.max_words, items)
        batches = in_batches(reader, share, size, self.config.data.workers, partial(location_of, items))
        local = []
        for batch in progress(batches, description, -(-len(share) // size)):
            text = to_device(self.text.encode_plain([text for _, text in batch]), device)
            local.append(forward([images for images, _ in batch], text).cpu().numpy())
        return np.concatenate([rows for rank in distributed.gather_objects(local) for rows in rank])

    def stacked(self, views: Sequence[Tensor]) -> Pixels:
        """Combines the views of images or videos into a batch on the model's device."""
        return stack_views(views, self.config.model.vision.image_size).to(device_of(self.model))

    def validate(self) -> dict[str, float]:
        """See :class:`engine.task.Task`."""
        with evaluating(self.model, self.config.evaluation.precision):
            evaluation = self.evaluate(self.held_out.validation)
        values, self.validation_predictions = evaluation.values(), _sample(evaluation.predictions or ())
        if self.measure not in values:
            known = ", ".join(values)
            raise ValueError(f"{type(self).__name__}.measure is {self.measure!r}, but evaluate() returns {known}")
        return values

    def report(self, folder: RunFolder) -> str:
        """Evaluates the best weights, or the current weights if the run did not keep any.

        Writes ``evaluation.json``, which includes the mean if several splits are measured, and ``predictions_<split>.json`` for
        each split with predictions. If the task draws predictions, it also writes ``predictions.png``, or
        ``predictions_<split>.png`` for each of several splits. With ``evaluation.keep``, the splits of earlier data are measured
        too, and everything is measured with the starting weights as well.
        """
        if folder.best.is_file():
            load_weights(self.model, folder.best).require_complete()
        evaluations, kept = self._evaluate_all()
        if self.held_out.kept and (folder.best.is_file() or folder.newest is not None):
            logger.info("evaluation.keep: measuring the starting weights as well")
            before, kept_before = self._with_starting_weights()._evaluate_all()
            evaluations = {name: each.with_before(before[name]) for name, each in evaluations.items()}
            kept = {name: each.with_before(kept_before[name]) for name, each in kept.items()}
        if distributed.rank() != 0:
            return ""
        for name, evaluation in evaluations.items():
            if statements := unbeaten_baselines(evaluation.values()):
                logger.warning("%s: %s; %s", name, ", and ".join(statements), ADVICE)
        draws, seed = self.config.evaluation.bootstrap, self.config.seed
        evaluations = {name: evaluation.with_intervals(draws, seed) for name, evaluation in evaluations.items()}
        kept = {name: replace(each.with_intervals(draws, seed), predictions=None) for name, each in kept.items()}
        notes: dict[str, list[str]] = {name: [] for name in evaluations}
        for name, evaluation in evaluations.items():
            if evaluation.predictions is not None:
                notes[name].append(write_predictions(folder.path / f"predictions_{name}.json", evaluation.predictions))
        evaluations = {**self._with_facts(folder, evaluations), **kept}
        write_evaluations(folder.path, evaluations)
        for name, note in self._draw(folder, evaluations).items():
            notes[name].append(note)
        return "\n\n".join(
            "\n".join([evaluation.table(name), *notes.get(name, [])]) for name, evaluation in evaluations.items()
        )

    def _evaluate_all(self) -> tuple[dict[str, Evaluation], dict[str, Evaluation]]:
        """Evaluates all test splits. Returns the evaluations of the run's own data, and those about earlier data, by name."""
        own, kept = self.held_out.test, self.held_out.kept
        with evaluating(self.model, self.config.evaluation.precision):
            evaluations = {name: self.evaluate(items) for name, items in own.items()}
            about_kept = {f"{KEPT}{name}": self.evaluate(items) for name, items in kept.items()}
            for (new, items), (old, earlier) in product(own.items(), kept.items()):
                absent = self.evaluate_absent(items, earlier)
                if absent is not None:
                    about_kept[f"phrases of {new} in images of {old}"] = absent
        return evaluations, about_kept

    def evaluate_absent(self, items: Any, earlier: Any) -> Evaluation | None:
        """Measures how often the model recognises that the phrases of a split are absent from the images of ``earlier``, which is
        a split of earlier data. None if the model of this task does not say whether a phrase is absent."""
        return None

    def _with_starting_weights(self) -> Self:
        """Returns this task with the model with which the run started."""
        task = copy.copy(self)
        task.model = self.starting_model(device_of(self.model))
        return task

    def starting_model(self, device: torch.device) -> M:
        """Returns the model with which the run started, on a device of this rank. Called on all ranks."""
        model = build_parts(type(self), self.config, None, trains=False, plan=None).model
        distributed.move_from_rank_0(model, device)
        return model

    @classmethod
    def legend_for(cls, config: F) -> str:
        """Returns the legend for panels drawn with a config."""
        return cls.legend

    def panel(self, items: Any, number: int, prediction: Mapping[str, Any], read: ImageReader) -> Panel | None:
        """Draws the prediction with index ``number`` of a split. Returns None to draw nothing. Tasks that draw predictions
        override this method.

        Args:
            items: the split.
            number: index of the prediction in the predictions of :meth:`evaluate`.
            prediction: the prediction, as written to ``predictions_<split>.json``.
            read: reads an image or a video of ``items``.
        """
        return None

    def shown(self, predictions: Sequence[Mapping[str, Any]], count: int) -> list[int]:
        """Returns the indices of the predictions to draw: ``count``, or all if there are fewer."""
        return spread(len(predictions), count)

    def _with_facts(self, folder: RunFolder, evaluations: Mapping[str, Evaluation]) -> dict[str, Evaluation]:
        """Adds the evaluated files and weights, which the report shows, and, if there are several evaluations, their mean."""
        config = self.config
        weights = measured_weights(folder, config.init.checkpoint, getattr(config, "task", None))
        named = {
            name: replace(evaluation, facts=Facts(files_of(config.evaluation.test[name]), weights))
            for name, evaluation in evaluations.items()
        }
        if mean := mean_of_splits(evaluations.values()):
            named[MEAN] = replace(mean, facts=Facts(", ".join(evaluations), weights))
        return named if config.evaluation.published is None else _with_published(named, config.evaluation.published)

    def _draw(self, folder: RunFolder, evaluations: Mapping[str, Evaluation]) -> dict[str, str]:
        """Draws some predictions of each split. Returns a message for each split that names the file."""
        test, count = self.held_out.test, self.config.evaluation.panels
        reader, notes, images = ImageReader(self.held_out.view), {}, {}
        for name, items in test.items():
            predictions = evaluations[name].predictions
            if not count or not predictions:
                continue
            path = folder.path / (f"predictions_{name}.png" if len(test) > 1 else "predictions.png")
            numbers = self.shown(predictions, count)
            panels, broken = readable_panels(
                [partial(self.panel, items, number, predictions[number], reader) for number in numbers], path.name
            )
            if panels:
                title = (
                    f"{name}: {len(panels)} of {len(predictions):,} predictions, evenly spaced over the split{broken}"
                )
                images[f"predictions/{name}"] = draw_sheet(Sheet(title, self.legend_for(self.config), panels), path)
                notes[name] = f"{len(panels)} of them are drawn in {path}"
        show_images(folder, self.config.train.wandb, images, newest_step(folder.checkpoints))
        return notes


def _sample(predictions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Returns :data:`KEPT_PREDICTIONS` predictions, evenly spaced over a split, each with its index."""
    return [{"number": number, **predictions[number]} for number in spread(len(predictions), KEPT_PREDICTIONS)]


def data_options(config: FineTuneConfig, tokenizer: PreTrainedTokenizerFast) -> dict[str, Any]:
    """Returns all arguments of :class:`dataset.tasks.finetune.FineTuneBatches` except the section ``data``."""
    return {
        "tokenizer": tokenizer,
        "image_size": config.model.vision.image_size,
        "seed": config.seed,
        "frames": video_frames(config),
    }


def _with_published(evaluations: Mapping[str, Evaluation], name: str) -> dict[str, Evaluation]:
    """Adds the published numbers of the cell ``name`` to the evaluations, and logs the splits of the cell that were not
    measured."""
    cell = read_tables()[name]
    for split in (split for split in cell.numbers if split not in evaluations):
        if cell.server is None:
            logger.warning("evaluation.published: %s has numbers for %s, but this split is not measured", name, split)
        else:
            numbers = ", ".join(f"{metric} {percent}" for metric, percent in cell.numbers[split].items())
            logger.info("published for %s: %s, as measured by %s", split, numbers, cell.server)
    return {
        split: evaluation.with_published(cell.numbers[split], split) if split in cell.numbers else evaluation
        for split, evaluation in evaluations.items()
    }


def location_of(items: Sequence[Any], index: int) -> str:
    """Returns the location of an item, to name in error messages."""
    return str(getattr(items[index], "location", f"record {index}"))


def name_of(source: ImageSource | VideoSource) -> str:
    """Returns the name of an image or a video in predictions: its file, or its location inside a file."""
    return source.location if source.path is None else str(source.path)
