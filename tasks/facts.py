"""Describes an evaluation: the files of the split, the weights, and how the weights were trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

from engine.checkpoint import find_weights, run_config_of
from engine.run_files import CONFIG_FILE
from engine.run_folder import RunFolder
from utils.config import Config
from utils.config_files import read_yaml
from utils.errors import UserError
from utils.files import expanded
from utils.inputs import inputs_of
from utils.weight_file import read_metadata

Training = Literal["zero-shot", "fine-tuned", "pre-trained", "unknown"]
"""How weights were trained. zero-shot: no run trained the weights on this task. fine-tuned: a run trained them on this task.
pre-trained: the task is pre-training, and a run trained them. unknown: the weights are in a file outside any run's folder, such
as a published file."""

MAX_RUNS = 50
"""Maximum number of runs to follow back, from each run to the run that it started from, in case the runs form a cycle."""


@dataclass(frozen=True)
class MeasuredWeights:
    """Weights that were measured.

    Attributes:
        name: name of the weights in a report.
        training: how the weights were trained.
    """

    name: str
    training: Training


@dataclass(frozen=True)
class Facts:
    """Facts about an evaluation.

    Attributes:
        split: the files of the split; None if unknown.
        weights: the weights that were measured.
    """

    split: str | None
    weights: MeasuredWeights

    def as_json(self) -> dict[str, Any]:
        """Returns the facts as they are added to each metric in ``evaluation.json``."""
        split = {} if self.split is None else {"split": self.split}
        return {**split, "weights": self.weights.name, "training": self.weights.training}

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Facts | None:
        """Restores the facts from :meth:`as_json`; returns None if there are none."""
        names = ("split", "weights", "training")
        split, weights, training = (str(values[name]) if values.get(name) else "" for name in names)
        if not (split or weights or training):
            return None
        return cls(split or None, MeasuredWeights(weights, cast(Training, training)))

    def texts(self) -> list[str]:
        """Returns the facts as texts for the line below a table."""
        return [*filter(None, [self.split]), f"{self.weights.name}, {self.weights.training}"]


def files_of(config: Config) -> str | None:
    """Describes the files that a split's section names, and the subset in use, such as "dataset_coco.json [test]". Returns None
    if it names no files."""
    paths = ", ".join(path for _, kind, path in inputs_of(config) if kind in ("file", "shards"))
    selection = list(getattr(config, "splits", None) or [])
    selection += [language] if (language := getattr(config, "language", None)) else []
    low, high = getattr(config, "image_share", (0.0, 1.0))
    selection += [f"image_share {low:g} to {high:g}"] if (low, high) != (0.0, 1.0) else []
    selection += [f"first {limit}"] if (limit := getattr(config, "limit", None)) else []
    return (f"{paths} [{', '.join(selection)}]" if selection else paths) or None


def measured_weights(folder: RunFolder, checkpoint: str | None, task: str | None) -> MeasuredWeights:
    """Returns the weights that a run in ``folder`` reports on: its best weights if it kept them, else its last weights,
    else the weights of ``init.checkpoint``.

    Args:
        folder: folder of the run.
        checkpoint: ``init.checkpoint``.
        task: task of the config.
    """
    trained: Training = "pre-trained" if task == "pretrain" else "fine-tuned"
    if folder.best.is_file():
        return MeasuredWeights(f"best weights of this run{_best_step(folder.best)}{_averaged(folder.best)}", trained)
    if (last := folder.newest) is not None:
        return MeasuredWeights(f"last weights of this run, step {last.step}{_averaged(last.model_file)}", trained)
    if checkpoint is None:
        return MeasuredWeights("weights without training", "zero-shot")
    return MeasuredWeights(f"init.checkpoint {checkpoint}", training_of(checkpoint, task))


def training_of(checkpoint: str, task: str | None) -> Training:
    """Determines how the weights at ``checkpoint`` were trained, by following the chain of runs that they started from."""
    for _ in range(MAX_RUNS):
        config = _config_of(checkpoint)
        if config is None:
            return "unknown"
        if config.get("task") == task:
            return "pre-trained" if task == "pretrain" else "fine-tuned"
        start = (config.get("init") or {}).get("checkpoint")
        if start is None:
            return "zero-shot"
        checkpoint = str(start)
    return "unknown"


def _config_of(checkpoint: str) -> dict[str, Any] | None:
    """Returns the config of the run that wrote the weights, or None if it is unknown."""
    try:
        path = expanded(checkpoint)
        run = path / CONFIG_FILE if (path / CONFIG_FILE).is_file() else run_config_of(find_weights(path))
        return None if run is None else read_yaml(run)
    except (UserError, OSError):  # the file may have been moved
        return None


def _best_step(path: Path) -> str:
    """Returns the step of a run's best weights, as a suffix for their name; empty if an earlier version wrote them."""
    validation = read_metadata(path).get("validation")
    return f", step {validation['step']}" if validation else ""


def _averaged(path: Path) -> str:
    """Returns a suffix for the name of the weights if ``optim.ema`` averaged them, else an empty string."""
    return ", averaged" if path.is_file() and "ema" in read_metadata(path) else ""
