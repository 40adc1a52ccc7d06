"""Checkpoints of a run.

Each checkpoint is a folder that is written atomically. Its manifest, ``manifest.json``, contains the sizes and checksums of its
files, so that later changes are detected. Only the newest checkpoints are kept.
"""

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
from utils.errors import UserError, reason_of
from utils.files import check_regular, sync_file
from utils.weight_file import check_complete, reject_zip_bomb, save_weights

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
    def states_folder(self) -> Path | None:
        """The folder with the tensors of the optimiser state. None for a checkpoint of format 1, which stores these tensors in
        the file that :meth:`training_state` reads."""
        folder = self.folder / STATES
        return folder if folder.is_dir() else None

    def unaveraged_weights(self) -> dict[str, Tensor] | None:
        """Returns the unaveraged weights if the model file has averaged weights, or None if the run does not average its weights.

        Raises:
            UserError: if the file cannot be read.
        """
        file = self.folder / UNAVERAGED_FILE
        if not file.exists():
            return None
        try:
            return load_file(file)
        except Exception as error:  # safetensors.SafetensorError or OSError for a damaged file
            raise UserError(f"{file}: cannot be read ({reason_of(error)}); {REMEDY}") from None

    def training_state(self) -> dict[str, Any]:
        """Returns the optimiser state without its tensors, the state of the loss scaler, the position in the data and the
        counters.

        Loading never executes code from the file. In checkpoints written by earlier versions, this state also contains the
        optimiser's tensors.

        Raises:
            UserError: if the file cannot be read.
        """
        file = self.folder / TRAINING_FILE
        try:
            reject_zip_bomb(file)
            return torch.load(file, map_location="cpu", weights_only=True)
        except UserError as error:
            raise UserError(f"{error}; {REMEDY}") from None
        except Exception as error:  # a damaged pickle can raise almost any exception
            # torch's own message starts by suggesting weights_only=False, which would execute code from the file.
            code = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
            reason = f"it pickles {code[1]}, and code from a file is never executed" if code else reason_of(error)
            if isinstance(error, pickle.UnpicklingError) and not code:
                reason = "it was not written by torch.save"
            raise UserError(f"{file}: cannot be read ({reason}); {REMEDY}") from None


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """Returns the complete checkpoints in ``folder``, oldest first."""
    return [Checkpoint(entry, step) for step, entry in checkpoint_folders(folder)]


def newest_step(folder: Path) -> int:
    """Returns the step of the newest checkpoint in ``folder``, or 0 if there are none."""
    return max((checkpoint.step for checkpoint in list_checkpoints(folder)), default=0)


def newest_intact(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """Returns the newest intact checkpoint in ``folder``, and a description of what is wrong with each newer checkpoint.

    Raises:
        UserError: if there are checkpoints, but all of them are damaged.
    """
    faults: list[str] = []
    for checkpoint in reversed(list_checkpoints(folder)):
        fault = fault_of(checkpoint.folder)
        if fault is None:
            return checkpoint, faults
        faults.append(fault)
    if faults:
        raise UserError(
            f"no checkpoint in {folder} can be resumed: {'; '.join(faults)}; restore one from a backup, or start a "
            f"new run from the weights: a new --output with init.checkpoint={folder}/step-N/{MODEL_FILE}"
        )
    return None, []


def write_checkpoint(
    folder: Path,
    step: int,
    weights: Mapping[str, Tensor],
    training: Mapping[str, Any],
    *,
    unaveraged: Mapping[str, Tensor] | None = None,
    metadata: Mapping[str, Any] | None = None,
    states_written: Future[Any] | None = None,
) -> Checkpoint:
    """Writes a checkpoint atomically: its folder is renamed to the final name only once it is complete. Replaces an existing
    checkpoint of this step.

    Args:
        folder: the folder that contains the run's checkpoints.
        step: number of completed optimiser steps.
        weights: the model's weights on the CPU. No two tensors may share memory.
        training: the state that :meth:`Checkpoint.training_state` will return, as tensors and plain values.
        unaveraged: the unaveraged weights, if ``weights`` are averaged; None if the run does not average its weights.
        metadata: entries for the header of the model file.
        states_written: future that completes once :data:`~engine.manifest.STATES` has been written to the folder that
            :func:`create_temporary_folder` created. If None, the checkpoint does not contain this folder, and this
            function calls :func:`create_temporary_folder`.

    Raises:
        UserError: if a file of tensors is incomplete.
        Exception: if a file cannot be written; the type depends on the library that writes it.
    """
    final = folder / f"step-{step:08d}"
    temporary = create_temporary_folder(folder, step) if states_written is None else temporary_folder(folder, step)
    save_weights(temporary / MODEL_FILE, weights, metadata)
    if unaveraged is not None:
        save_weights(temporary / UNAVERAGED_FILE, unaveraged)
    with (temporary / TRAINING_FILE).open("wb") as file:  # given a path, torch.save would hide the error of a full disk
        torch.save(dict(training), file)
    if states_written is not None:
        states_written.result()
    written = [path for path in sorted(temporary.rglob("*")) if path.is_file()]
    for path in written:
        if path.suffix == ".safetensors":
            check_complete(path)
    files = {
        path.relative_to(temporary).as_posix(): {"bytes": path.stat().st_size, "sha256": digest_of(path)}
        for path in written
    }
    manifest = json.dumps({"format": FORMAT, "step": step, "files": files}, indent=2)
    (temporary / MANIFEST).write_text(manifest + "\n", encoding="utf-8")
    for path in (*written, temporary / MANIFEST, *{path.parent for path in written}):
        sync_file(path)
    # The old checkpoint is removed last: removal takes time, and a process killed during it would leave neither checkpoint.
    replaced = _set_aside(final) if final.exists() else None
    os.replace(temporary, final)
    sync_file(folder)
    if replaced is not None:
        shutil.rmtree(replaced)
    return Checkpoint(final, step)


def create_temporary_folder(folder: Path, step: int) -> Path:
    """Creates the temporary folder for the checkpoint of ``step``."""
    remove_leftovers(folder)
    temporary = temporary_folder(folder, step)
    temporary.mkdir(parents=True)
    return temporary


def temporary_folder(folder: Path, step: int) -> Path:
    """Returns the temporary folder in which the checkpoint of ``step`` is written."""
    return folder / f".step-{step:08d}.tmp"


def remove_old(folder: Path, keep: int, step: int) -> None:
    """Removes all but the newest ``keep`` checkpoints up to ``step``. Checkpoints of later steps, which can only be damaged ones
    that the run did not resume from, are ignored."""
    for old in [checkpoint for checkpoint in list_checkpoints(folder) if checkpoint.step <= step][:-keep]:
        shutil.rmtree(_set_aside(old.folder))


def remove_leftovers(folder: Path) -> None:
    """Removes temporary folders left by an interrupted write or removal."""
    for leftover in folder.glob(".step-*.tmp"):
        shutil.rmtree(leftover, ignore_errors=True)


def _set_aside(folder: Path) -> Path:
    """Renames a checkpoint before its removal, so that a run killed midway does not leave half of it under a valid name."""
    renamed = folder.with_name(f".{folder.name}.old.tmp")
    os.replace(folder, renamed)
    return renamed


def find_weights(path: Path) -> Path:
    """Returns the weight file for ``path``.

    For a run folder, this is the file of its best weights or, if there is none, the model file of its newest checkpoint with
    intact weights.

    Raises:
        NotRegularError: if the weight file is a FIFO or a device.
        UserError: if the weight file is missing, or all checkpoints are damaged.
    """
    if path.exists() and not path.is_dir():
        check_regular(path)
        return path
    if not path.is_dir():
        raise UserError(f"init.checkpoint: {path}: no such file or run folder; train it first, or use another path")
    for file in (path / BEST_FILE, path / MODEL_FILE):
        if file.exists():
            check_regular(file)
            return file
    checkpoints = list_checkpoints(path / CHECKPOINTS)
    if not checkpoints:
        raise UserError(
            f"{path}: contains neither {BEST_FILE}, {MODEL_FILE} nor {CHECKPOINTS}/step-*; use a weight file"
        )
    faults: list[str] = []
    for checkpoint in reversed(checkpoints):
        fault = _weights_fault(checkpoint)
        if fault is None:
            return checkpoint.model_file
        faults.append(fault)
        _warn_once(f"skipped a checkpoint with damaged weights: {fault}")
    raise UserError(
        f"no checkpoint in {path / CHECKPOINTS} has intact weights: {'; '.join(faults)}; restore one from a backup, "
        "or use another run or file"
    )


def _weights_fault(checkpoint: Checkpoint) -> str | None:
    """Describes what is wrong with a checkpoint's weights. Returns None if the weights are intact, or if the checkpoint has no
    manifest because it was written by an earlier version."""
    times = []
    for file in (checkpoint.folder / MANIFEST, checkpoint.model_file):
        try:
            times.append(file.stat().st_mtime_ns)
        except OSError:
            times.append(0)
    return _weights_fault_at(checkpoint.folder, *times) if times[0] or not times[1] else None


@functools.lru_cache(maxsize=32)
def _weights_fault_at(folder: Path, *times: int) -> str | None:
    """See :func:`_weights_fault`. Results are cached by modification times, because a run looks up its initial weights several
    times, and hashing a large file takes seconds."""
    return fault_of(folder, (MODEL_FILE,))


@functools.lru_cache(maxsize=32)
def _warn_once(message: str) -> None:
    logger.warning("%s", message)


def run_config_of(weights: Path) -> Path | None:
    """Returns the ``config.yaml`` of the run that the weight file belongs to, or None if the file is not in a run folder."""
    folders = [weights.parent, *([weights.parents[2]] if weights.parent.parent.name == CHECKPOINTS else [])]
    return next((folder / CONFIG_FILE for folder in folders if (folder / CONFIG_FILE).exists()), None)
