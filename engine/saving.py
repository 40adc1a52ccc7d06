"""Writes the checkpoints of a run in the background: the training loop waits only while states are copied to host memory, and a
thread writes them to disk."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.checkpoint import (
    FORMAT,
    MANIFEST,
    MODEL_FILE,
    REPLACED,
    STATES,
    TRAINING_FILE,
    UNAVERAGED_FILE,
    Checkpoint,
    digest_of,
    list_checkpoints,
)
from engine.parallel.strategy import Parallel
from utils import distributed
from utils.errors import UserError, reason_of
from utils.events import SavedCheckpoint
from utils.files import sync_file
from utils.weight_file import check_complete, save_weights

TEMPORARY_FOLDER = ".step-{step:08d}.tmp"
"""Name of the folder in which the checkpoint of a step is written."""

logger = logging.getLogger(__name__)


class CheckpointWriter:
    """Writes the checkpoints of a run to ``folder``, one at a time, and keeps the newest ``keep`` checkpoints.

    Rank 0 writes the files. If ``parallel.needs_all_ranks`` is True, each rank writes its shard of the optimiser states.

    If a checkpoint cannot be written, for example because the disk is full, a warning is logged, older checkpoints are kept, and
    training continues.
    """

    def __init__(self, folder: Path, keep: int, parallel: Parallel):
        self.folder, self.keep, self.parallel = folder, keep, parallel
        self._thread: threading.Thread | None = None
        self._states_written: Future[Any] | None = None
        self._fault: str | None = None
        self._step = 0

    def save(
        self,
        step: int,
        weights: Mapping[str, Tensor],
        unaveraged: Mapping[str, Tensor] | None,
        training: Mapping[str, Any],
        states: dict[str, Tensor],
        metadata: Mapping[str, Any] | None = None,
    ) -> None:
        """Waits until the previous checkpoint has been written, copies the tensors, and starts writing the checkpoint of
        ``step``. Rank 0 must call this method, and all ranks if ``parallel.needs_all_ranks`` is True.

        Args:
            step, weights, unaveraged, training, metadata: see :func:`write_checkpoint`. Tensors may be on any device.
            states: the tensors of the optimiser state, by parameter and name.
        """
        self.wait()
        copies = self.parallel.copied_to_rank_0((weights, unaveraged, training))
        temporary, main, created = self.folder / TEMPORARY_FOLDER.format(step=step), distributed.rank() == 0, True
        if main:
            try:
                remove_leftovers(self.folder)
                temporary.mkdir(parents=True)
            except OSError as error:
                self._failed(step, error)
                created = False
        if self.parallel.needs_all_ranks:
            created = distributed.gather_objects(created)[0]
        if not created or not (main or self.parallel.needs_all_ranks):
            return
        self._states_written = self.parallel.start_saving(states, temporary / STATES)
        if main:
            self._step = step
            arguments = (step, *copies, dict(metadata or {}), self._states_written)
            self._thread = threading.Thread(target=self._write, args=arguments, name=f"save step {step}")
            self._thread.start()

    @property
    def writing(self) -> int | None:
        """Step of the checkpoint that is being written; None if no checkpoint is being written."""
        thread = self._thread
        return self._step if thread is not None and thread.is_alive() else None

    def wait(self) -> None:
        """Waits until the last checkpoint has been written or has failed, which :meth:`finish` reports."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._states_written is not None:
            with suppress(Exception):
                self._states_written.result()

    def finish(self) -> None:
        """Waits for the last checkpoint.

        Raises:
            UserError: if the checkpoint could not be written.
        """
        self.wait()
        if self._fault is not None:
            raise UserError(self._fault)

    def _write(
        self,
        step: int,
        weights: dict[str, Tensor],
        unaveraged: dict[str, Tensor] | None,
        training: dict[str, Any],
        metadata: dict[str, Any],
        states_written: Future[Any],
    ) -> None:
        try:
            write_checkpoint(
                self.folder,
                step,
                weights,
                training,
                unaveraged=unaveraged,
                metadata=metadata,
                states_written=states_written,
            )
        # A full disk raises OSError, or whatever exception the writing library turns it into.
        except Exception as error:
            with suppress(Exception):
                states_written.result()  # wait; otherwise, other ranks could still write to the folder while it is removed
            self._failed(step, error)
            return
        self._fault = None
        logger.info(SavedCheckpoint(step=step))
        try:
            remove_old(self.folder, self.keep, step)
        except OSError as error:
            logger.warning(
                "%s: an older checkpoint cannot be removed (%s); remove it yourself", self.folder, reason_of(error)
            )

    def _failed(self, step: int, error: Exception) -> None:
        self._fault = save_failure(self.folder, f"the checkpoint of step {step}", error)
        logger.warning("%s", self._fault)
        remove_leftovers(self.folder)


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
        states_written: future that completes once the optimiser states have been written to :data:`~engine.checkpoint.STATES` in
            the temporary folder (:data:`TEMPORARY_FOLDER`). If None, the checkpoint does not contain optimiser states.

    Raises:
        UserError: if a file of tensors is incomplete.
        Exception: if a file cannot be written; the type depends on the library that writes it.
    """
    checkpoint = Checkpoint.of(folder, step)
    final = checkpoint.folder
    temporary = folder / TEMPORARY_FOLDER.format(step=step)
    temporary.mkdir(parents=True, exist_ok=True)
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
    replaced = final.with_name(REPLACED.format(name=final.name))
    if final.exists():
        os.replace(final, replaced)  # a process killed now leaves it for restore_replaced
    os.replace(temporary, final)
    sync_file(folder)
    shutil.rmtree(replaced, ignore_errors=True)  # what is left is removed by remove_leftovers
    return checkpoint


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


def save_best(
    path: Path,
    step: int,
    weights: dict[str, Tensor],
    metrics: dict[str, float],
    metadata: Mapping[str, Any] | None = None,
) -> bool:
    """Replaces the best weights of a run. If the write fails, logs a warning, keeps the old file and returns False.

    Args:
        path: the file of the best weights.
        step: number of completed steps.
        weights: the model's weights, copied to host memory.
        metrics: metrics of the validation pass, which are stored with the step under ``validation`` in the file's header.
        metadata: additional entries for the header.
    """
    try:
        header = {"validation": {"step": step, **metrics}, **(metadata or {})}
        save_weights(path, weights, header)
    except Exception as error:
        logger.warning("%s", save_failure(path.parent, f"the best weights (step {step})", error))
        return False
    return True


def save_failure(folder: Path, what: str, error: Exception) -> str:
    """Returns the message that explains why ``what`` could not be saved in ``folder``."""
    if isinstance(error, UserError):
        return f"{folder}: {what} cannot be written: {error}; older checkpoints are kept"
    try:
        space = f" with {shutil.disk_usage(folder).free / 1e6:,.0f} MB of disk space left"
    except OSError:
        space = ""
    return (
        f"{folder}: {what} cannot be written ({reason_of(error)}){space}; free some space; older checkpoints are kept"
    )
