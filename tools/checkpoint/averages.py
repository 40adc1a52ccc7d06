"""``run.py checkpoint interpolate`` and ``average``: models whose weights are weighted means of the weights of other models.

A mean of the starting and the final weights of a fine-tuned model keeps much of what the starting weights could do (WiSE-FT,
arXiv:2109.01903), and a mean of several fine-tuned models is often better than each of them (model soups, arXiv:2203.05482).
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.checkpoint import MODEL_FILE, run_config_of
from engine.run_files import CONFIG_FILE
from models.checkpoints.files import read_weights
from tasks.base import BaseTask
from tasks.binding import bind_run
from tasks.finetune import FineTuneTask
from tasks.inference import evaluating
from tasks.kept import with_kept_inputs
from tools.checkpoint.adapters import copy_beside, new_model_folder
from tools.checkpoint.outline import weights_at
from utils import accelerator
from utils.errors import UserError
from utils.files import new_folder
from utils.progress import progress_bar
from utils.weight_file import TOKEN_IDS, read_metadata, save_weights

Weights = Mapping[str, Tensor]

SPLITS = {"new": "evaluation.validation", "earlier": "evaluation.keep.validation"}
"""The splits on which weights are chosen, by the header of their column."""


@dataclass(frozen=True)
class RunWeights:
    """The weights of a run, with adapters merged.

    Attributes:
        source: what the user wrote.
        file: the weight file.
        folder: folder of the run.
        tensors: the weights.
    """

    source: str
    file: Path
    folder: Path
    tensors: Weights

    @classmethod
    def read(cls, source: str) -> RunWeights:
        """Reads the weights at a path.

        Raises:
            UserError: if they cannot be read, or are not in a run's folder.
        """
        file, _ = weights_at(source)
        config = run_config_of(file)
        if config is None:
            raise UserError(
                f"is not in a run's folder, so its {CONFIG_FILE} is unknown", where=file, remedy="pass a run's folder"
            )
        return cls(source, file, config.parent, read_weights(file))

    def task(self) -> BaseTask[Any, Any, Any]:
        """Builds the task of the run, with the weights from which the run started, on this machine's device."""
        run = bind_run(self.folder / CONFIG_FILE, [])
        config = with_kept_inputs(run.config, self.folder)
        task: BaseTask[Any, Any, Any] = run.source.load().task.build(config, trains=False)
        task.model.to(accelerator.best_device())
        return task


def mean_of(models: Sequence[Weights], shares: Sequence[float]) -> dict[str, Tensor]:
    """Returns the weighted mean of the weights of several models. Tensors that do not contain floating-point numbers are those of
    the last model."""
    means = {}
    for name, last in models[-1].items():
        if not last.is_floating_point():
            means[name] = last
            continue
        parts = [share * model[name].double() for model, share in zip(models, shares, strict=True)]
        means[name] = torch.stack(parts).sum(dim=0).to(last.dtype)
    return means


def interpolate(source: str, out: Path, points: int, coefficient: float | None) -> str:
    """Writes the model between the starting and the final weights of a fine-tuned run that has the best mean over the validation
    splits of the new and of the earlier data. Returns the curve and a summary as text.

    Args:
        source: folder of the run.
        out: a new folder.
        points: number of steps from the starting weights (coefficient 0) to the final weights (coefficient 1).
        coefficient: if given, the model with this coefficient is written, and nothing is measured.

    Raises:
        UserError: if the run or its data cannot be used, or ``out`` exists.
    """
    folder = new_model_folder(out)
    final = RunWeights.read(source)
    task = final.task()
    if task.config.init.checkpoint is None:
        raise UserError("did not start from other weights", where=source, remedy="pass a run with init.checkpoint")
    start = {name: tensor.detach().cpu().clone() for name, tensor in task.model.state_dict().items()}
    _check_same(start, final.tensors, f"{source}: init.checkpoint", source)
    lines: list[str] = []
    if coefficient is None:
        judge = Judge(task, source)
        curve = []
        for point in progress_bar(range(points + 1), total=points + 1, desc="measuring", leave=False):
            measured = judge(mean_of([start, final.tensors], [1 - point / points, point / points]))
            curve.append((point / points, measured))
        coefficient = max(curve, key=lambda each: each[1].mean)[0]
        lines += [f"coefficient  {judge.header}"]
        lines += [
            f"{share:<11g}  {measured}{'  best' if share == coefficient else ''}".rstrip() for share, measured in curve
        ]
    weights = mean_of([start, final.tensors], [1 - coefficient, coefficient])
    _write(folder, weights, final, {"interpolated": coefficient})
    lines.append(f"{source} -> {out}: {coefficient:g} of the way from its starting weights to its final weights")
    return "\n".join(lines) + "\n"


def average(sources: Sequence[str], out: Path, *, greedy: bool) -> str:
    """Writes the mean of the weights of runs. Returns a summary as text.

    Args:
        sources: folders of runs with the same model.
        out: a new folder. Its config and tokenizer are those of the first run.
        greedy: begin with the best run on the validation splits of the first one, and add each other run, from the best to the
            worst, only if the mean becomes better.

    Raises:
        UserError: if the weights cannot be read, their names or shapes differ, or ``out`` exists.
    """
    folder = new_model_folder(out)
    runs = [RunWeights.read(source) for source in sources]
    for run in runs[1:]:
        _check_same(runs[0].tensors, run.tensors, runs[0].source, run.source)
    chosen, lines = runs, []
    if greedy:
        judge = Judge(runs[0].task(), runs[0].source)
        width = max(len(run.source) for run in runs) + 2
        measured = {run.source: judge(run.tensors) for run in runs}
        lines = [f"{'alone':{width}}{judge.header}", *(f"{name:{width}}{each}" for name, each in measured.items())]
        first, *others = sorted(runs, key=lambda run: measured[run.source].mean, reverse=True)
        chosen, best = [first], measured[first.source].mean
        lines.append(f"{'average':{width}}{judge.header}")
        for run in others:
            found = judge(_equal_mean([*chosen, run]))
            is_better = found.mean > best
            lines.append(f"{'+ ' + run.source:{width}}{found}  {'added' if is_better else 'left out'}")
            if is_better:
                chosen, best = [*chosen, run], found.mean
    _write(folder, _equal_mean(chosen), runs[0], {"averaged": [str(run.file) for run in chosen]})
    lines.append(f"{', '.join(run.source for run in chosen)} -> {out}: mean of {len(chosen)} of {len(runs)} models")
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Measured:
    """The selection metric of a task on each split on which weights are chosen, as fractions."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        return sum(self.values) / len(self.values)

    def __str__(self) -> str:
        numbers = self.values if len(self.values) == 1 else (*self.values, self.mean)
        return "  ".join(f"{100 * value:7.1f}" for value in numbers)


class Judge:
    """Measures weights on the validation splits of a run."""

    def __init__(self, task: BaseTask[Any, Any, Any], source: str):
        if not isinstance(task, FineTuneTask) or task.held_out.validation is None:
            raise UserError(
                f"has no {SPLITS['new']}, on which weights are chosen",
                where=source,
                remedy="pass a fine-tuned run with a validation split, or choose the weights yourself",
            )
        self.task = task
        self.splits = {"new": task.held_out.validation}
        if task.held_out.kept_validation is not None:
            self.splits["earlier"] = task.held_out.kept_validation
        elif task.config.evaluation.keep is not None:
            sys.stderr.write(f"{source} has no {SPLITS['earlier']}, so only the new data are measured\n")

    @property
    def header(self) -> str:
        """The headers of the columns: the splits, and their mean if there are two."""
        names = [*self.splits, *(["mean"] if len(self.splits) > 1 else [])]
        return "  ".join(f"{name:>7}" for name in names) + f"  ({self.task.measure}, %)"

    def __call__(self, weights: Weights) -> Measured:
        self.task.model.load_state_dict(dict(weights))
        with evaluating(self.task.model, self.task.config.evaluation.precision):
            evaluations = [self.task.evaluate(items) for items in self.splits.values()]
        return Measured(tuple(evaluation.values()[self.task.measure] for evaluation in evaluations))


def _equal_mean(runs: Sequence[RunWeights]) -> dict[str, Tensor]:
    return mean_of([run.tensors for run in runs], [1 / len(runs)] * len(runs))


def _check_same(first: Weights, second: Weights, first_name: str, second_name: str) -> None:
    """Raises :class:`UserError` if names or shapes of the tensors differ."""
    if different := sorted(first.keys() ^ second.keys()):
        has, lacks = (first_name, second_name) if different[0] in first else (second_name, first_name)
        raise UserError(
            f"{has} has {different[0]}, which {lacks} lacks; {len(different)} tensors differ in name",
            remedy="pass runs with the same model",
        )
    for name, tensor in first.items():
        if tensor.shape != second[name].shape:
            raise UserError(
                f"{name} is {tuple(tensor.shape)} in {first_name} and {tuple(second[name].shape)} in {second_name}",
                remedy="pass runs with the same model",
            )


def _write(folder: Path, weights: Weights, run: RunWeights, made_from: dict[str, Any]) -> None:
    """Writes a folder that loads like a run, with the config, the tokenizer and the answers of ``run``."""
    metadata = read_metadata(run.file)
    with new_folder(folder) as made:
        save_weights(made / MODEL_FILE, weights, {TOKEN_IDS: metadata.get(TOKEN_IDS), **made_from})
        copy_beside(run.folder, made)
