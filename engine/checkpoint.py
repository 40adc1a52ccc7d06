"""Checkpoints of a run: one folder each, complete or absent; the newest few are kept."""

from __future__ import annotations

import json
import os
import pickle
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import nn

from utils.errors import UserError
from utils.files import replacing, sync_file

MODEL_FILE = "model.safetensors"
TRAINING_FILE = "training.pt"
CHECKPOINTS = "checkpoints"
BEST_FILE = "best.safetensors"
CONFIG_FILE = "config.yaml"
NAME = re.compile(r"step-(\d+)")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    step: int

    @property
    def model_file(self) -> Path:
        return self.folder / MODEL_FILE

    def training_state(self) -> dict[str, Any]:
        """States of optimiser and loss scaler, position and counters, read without running code from the file.

        The file is twice as large as that of the model: only :class:`engine.trainer.Trainer` reads it, once.

        Raises:
            UserError: if it cannot be read.
        """
        try:
            return torch.load(self.folder / TRAINING_FILE, map_location="cpu", weights_only=True)
        except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
            reason = str(error).splitlines()[0]
            file = self.folder / TRAINING_FILE
            raise UserError(
                f"{file}: cannot be read ({reason}); remove its folder to resume from an older checkpoint"
            ) from None


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """The complete checkpoints in ``folder``, oldest first."""
    checkpoints = []
    for entry in folder.iterdir() if folder.is_dir() else ():
        match = NAME.fullmatch(entry.name)
        if match and entry.is_dir():
            checkpoints.append(Checkpoint(entry, int(match[1])))
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint in ``folder``; 0 if there is none."""
    return max((checkpoint.step for checkpoint in list_checkpoints(folder)), default=0)


def save_checkpoint(folder: Path, step: int, model: nn.Module, training: dict[str, Any], keep: int) -> Checkpoint:
    """Write a checkpoint atomically (under a temporary name, then renamed), and remove all but the newest ``keep``."""
    folder.mkdir(parents=True, exist_ok=True)
    final, temporary = folder / f"step-{step:08d}", folder / f".step-{step:08d}.tmp"
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover)
    if final.exists():
        return Checkpoint(final, step)
    temporary.mkdir()
    save_file(_weights(model), temporary / MODEL_FILE)
    torch.save(training, temporary / TRAINING_FILE)
    for file in temporary.iterdir():
        sync_file(file)
    sync_file(temporary)
    os.replace(temporary, final)
    sync_file(folder)
    for old in list_checkpoints(folder)[:-keep]:
        # Renamed first: a run killed half-way must not leave half a checkpoint under a valid name.
        doomed = folder / f".{old.folder.name}.tmp"
        os.replace(old.folder, doomed)
        shutil.rmtree(doomed)
    return Checkpoint(final, step)


def save_best(path: Path, step: int, model: nn.Module, metrics: dict[str, float]) -> None:
    """Replace the best weights of a run. The file's header has their step and metrics (JSON under ``validation``)."""
    # One entry: safetensors writes several in random order, and equal runs must leave equal files.
    validation = json.dumps({"step": step, **metrics})
    with replacing(path) as temporary:
        save_file(_weights(model), temporary, metadata={"validation": validation})


def find_weights(path: Path) -> Path:
    """The weight file at ``path``: the file itself, or the best weights of a run's folder, else those of its newest checkpoint.

    Raises:
        UserError: if there is none.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise UserError(f"init.checkpoint: {path}: no such file or folder of a run; train it first, or give another")
    if (path / BEST_FILE).is_file():
        return path / BEST_FILE
    if (path / MODEL_FILE).is_file():
        return path / MODEL_FILE
    checkpoints = list_checkpoints(path / CHECKPOINTS)
    if not checkpoints:
        raise UserError(f"{path}: holds neither {BEST_FILE}, {MODEL_FILE} nor {CHECKPOINTS}/step-*; give a weight file")
    return checkpoints[-1].model_file


def run_of(weights: Path) -> Path | None:
    """The ``config.yaml`` of the run whose folder holds the weight file; None if it is in no run's folder."""
    folders = [weights.parent, *([weights.parents[2]] if weights.parent.parent.name == CHECKPOINTS else [])]
    return next((folder / CONFIG_FILE for folder in folders if (folder / CONFIG_FILE).is_file()), None)


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().cpu().contiguous() for name, tensor in model.state_dict().items()}
