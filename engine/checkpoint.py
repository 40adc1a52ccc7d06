"""Checkpoints of a run: one folder each, complete or absent, with a manifest that shows any change; the newest few are kept."""

from __future__ import annotations

import functools
import json
import logging
import os
import pickle
import re
import shutil
from collections.abc import Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from engine.manifest import (
    CHECKPOINTS,
    FORMAT,
    MANIFEST,
    MODEL_FILE,
    STATES,
    TRAINING_FILE,
    UNAVERAGED_FILE,
    checkpoint_folders,
    digest_of,
    fault_of,
)
from engine.run_files import BEST_FILE, CONFIG_FILE
from utils.errors import UserError
from utils.files import sync_file
from utils.weight_file import refuse_inflating, save_weights

logger = logging.getLogger(__name__)

REMEDY = "remove its folder to resume from an older checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    step: int

    @property
    def model_file(self) -> Path:
        return self.folder / MODEL_FILE

    @property
    def states(self) -> Path | None:
        """The folder of the tensors of the optimiser's states; None: they are in :meth:`training_state`, as format 1 has them."""
        folder = self.folder / STATES
        return folder if folder.is_dir() else None

    def unaveraged_weights(self) -> dict[str, Tensor] | None:
        """The weights that train, where the model file has their average; None: the run keeps no average.

        Raises:
            UserError: if they cannot be read.
        """
        file = self.folder / UNAVERAGED_FILE
        if not file.exists():
            return None
        try:
            return load_file(file)
        except Exception as error:  # a damaged file raises an error of safetensors or of the system
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise UserError(f"{file}: cannot be read ({reason}); {REMEDY}") from None

    def training_state(self) -> dict[str, Any]:
        """State of the optimiser without its tensors, state of the loss scaler, position and counters, read without running code
        from the file.

        In a checkpoint of an earlier version, the tensors are in it, too.

        Raises:
            UserError: if it cannot be read.
        """
        file = self.folder / TRAINING_FILE
        try:
            refuse_inflating(file)
            return torch.load(file, map_location="cpu", weights_only=True)
        except UserError as error:
            raise UserError(f"{error}; {REMEDY}") from None
        except Exception as error:  # a damaged pickle raises nearly anything
            # torch's own message begins with advice to run the code in the file.
            code = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            reason = f"it pickles {code[1]}, and no code of a file is run" if code else reason
            if isinstance(error, pickle.UnpicklingError) and not code:
                reason = "it is not a state that torch.save wrote"
            raise UserError(f"{file}: cannot be read ({reason}); {REMEDY}") from None


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """The complete checkpoints in ``folder``, oldest first."""
    return [Checkpoint(entry, step) for step, entry in checkpoint_folders(folder)]


def newest_step(folder: Path) -> int:
    """The step of the newest checkpoint in ``folder``; 0 if there is none."""
    return max((checkpoint.step for checkpoint in list_checkpoints(folder)), default=0)


def newest_whole(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint in ``folder`` whose files are as they were written, and what is wrong with each newer one.

    Raises:
        UserError: if there are checkpoints, and none is whole.
    """
    faults: list[str] = []
    for checkpoint in reversed(list_checkpoints(folder)):
        fault = fault_of(checkpoint.folder)
        if fault is None:
            return checkpoint, faults
        faults.append(fault)
    if faults:
        raise UserError(
            f"no checkpoint in {folder} can be resumed: {'; '.join(faults)}; bring one back from a copy, or start another run "
            f"from the weights: --output of another folder with init.checkpoint={folder}/step-N/{MODEL_FILE}"
        )
    return None, []


def write_checkpoint(
    folder: Path,
    step: int,
    weights: Mapping[str, Tensor],
    training: Mapping[str, Any],
    *,
    unaveraged: Mapping[str, Tensor] | None = None,
    about: Mapping[str, Any] | None = None,
    states: Future[Any] | None = None,
) -> Checkpoint:
    """Write a checkpoint atomically (under a temporary name, then renamed), in place of one of the same step.

    Args:
        folder: of the run's checkpoints.
        step: optimiser steps that are done.
        weights: of the model, on the CPU, each with memory of its own.
        training: the state that :meth:`Checkpoint.training_state` gives back: tensors and plain values.
        unaveraged: the weights that train, like ``weights``, where these are their average; None: there is no average.
        about: values for the header of the file of ``weights``.
        states: done when the folder :data:`~engine.manifest.STATES` is written, inside the folder that :func:`begin` made; None:
            the checkpoint has no such folder, and this function calls :func:`begin`.
    """
    final = folder / f"step-{step:08d}"
    temporary = begin(folder, step) if states is None else temporary_folder(folder, step)
    save_weights(temporary / MODEL_FILE, weights, about)
    if unaveraged is not None:
        save_weights(temporary / UNAVERAGED_FILE, unaveraged)
    with (temporary / TRAINING_FILE).open("wb") as file:  # given a path, torch would not say that the disk is full
        torch.save(dict(training), file)
    if states is not None:
        states.result()
    written = [path for path in sorted(temporary.rglob("*")) if path.is_file()]
    files = {
        path.relative_to(temporary).as_posix(): {"bytes": path.stat().st_size, "sha256": digest_of(path)}
        for path in written
    }
    manifest = json.dumps({"format": FORMAT, "step": step, "files": files}, indent=2)
    (temporary / MANIFEST).write_text(manifest + "\n", encoding="utf-8")
    for path in (*written, temporary / MANIFEST, *{path.parent for path in written}):
        sync_file(path)
    # Removed last: that takes time, in which there would be neither.
    former = _set_aside(final) if final.exists() else None
    os.replace(temporary, final)
    sync_file(folder)
    if former is not None:
        shutil.rmtree(former)
    return Checkpoint(final, step)


def begin(folder: Path, step: int) -> Path:
    """Make the temporary folder of the checkpoint of ``step``."""
    remove_leftovers(folder)
    temporary = temporary_folder(folder, step)
    temporary.mkdir(parents=True)
    return temporary


def temporary_folder(folder: Path, step: int) -> Path:
    """The folder of a checkpoint that is being written."""
    return folder / f".step-{step:08d}.tmp"


def remove_old(folder: Path, keep: int, step: int) -> None:
    """Remove all but the newest ``keep`` checkpoints up to ``step``; later ones are damaged, and were passed over."""
    for old in [checkpoint for checkpoint in list_checkpoints(folder) if checkpoint.step <= step][:-keep]:
        shutil.rmtree(_set_aside(old.folder))


def remove_leftovers(folder: Path) -> None:
    """Remove what a write or a removal left that was interrupted."""
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def _set_aside(folder: Path) -> Path:
    """Rename a checkpoint that is to be removed: a run killed half-way must not leave half of it under a valid name."""
    doomed = folder.with_name(f".{folder.name}.old.tmp")
    os.replace(folder, doomed)
    return doomed


def find_weights(path: Path) -> Path:
    """The weight file at ``path``: the file itself, or the best weights of a run's folder, else those of its newest checkpoint
    that is whole, as ``--resume`` takes it.

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
    faults: list[str] = []
    for checkpoint in reversed(checkpoints):
        fault = _weights_fault(checkpoint)
        if fault is None:
            return checkpoint.model_file
        faults.append(fault)
        _warn_once(f"passed over for its weights: {fault}")
    raise UserError(
        f"no checkpoint in {path / CHECKPOINTS} has whole weights: {'; '.join(faults)}; bring one back "
        "from a copy, or give another run or file"
    )


def _weights_fault(checkpoint: Checkpoint) -> str | None:
    """The fault of a checkpoint's weights; None also where an earlier version wrote them without a manifest to compare with."""
    times = []
    for file in (checkpoint.folder / MANIFEST, checkpoint.model_file):
        try:
            times.append(file.stat().st_mtime_ns)
        except OSError:
            times.append(0)
    return _weights_fault_at(checkpoint.folder, *times) if times[0] or not times[1] else None


@functools.lru_cache(maxsize=32)
def _weights_fault_at(folder: Path, *times: int) -> str | None:
    """A run asks several times which weights it starts from, and hashing large ones takes seconds."""
    return fault_of(folder, (MODEL_FILE,))


@functools.lru_cache(maxsize=32)
def _warn_once(message: str) -> None:
    logger.warning("%s", message)


def run_of(weights: Path) -> Path | None:
    """The ``config.yaml`` of the run whose folder holds the weight file; None if it is in no run's folder."""
    folders = [weights.parent, *([weights.parents[2]] if weights.parent.parent.name == CHECKPOINTS else [])]
    return next((folder / CONFIG_FILE for folder in folders if (folder / CONFIG_FILE).is_file()), None)
