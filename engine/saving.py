"""Saves checkpoints in the background: the training loop waits only while states are copied to host memory, and a thread writes
them to disk."""

from __future__ import annotations

import logging
import shutil
import threading
from collections.abc import Mapping
from concurrent.futures import Future
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from engine.checkpoint import create_temporary_folder, remove_leftovers, remove_old, write_checkpoint
from utils.errors import UserError, reason_of
from utils.events import SavedCheckpoint
from utils.weight_file import save_weights

logger = logging.getLogger(__name__)


class CheckpointWriter:
    """Writes the checkpoints of a run to ``folder``, one at a time, and keeps the newest ``keep`` checkpoints.

    If a checkpoint cannot be written, for example because the disk is full, a warning is logged, older checkpoints are kept, and
    training continues.
    """

    def __init__(self, folder: Path, keep: int):
        self.folder, self.keep = folder, keep
        self._thread: threading.Thread | None = None
        self._fault: str | None = None

    def save(
        self,
        step: int,
        weights: dict[str, Tensor],
        unaveraged: dict[str, Tensor] | None,
        training: dict[str, Any],
        metadata: Mapping[str, Any] | None = None,
        states_written: Future[Any] | None = None,
    ) -> None:
        """Waits until the previous checkpoint has been written, then starts writing the checkpoint of ``step``.

        See :func:`engine.checkpoint.write_checkpoint` for the arguments. Tensors must be copies that training does not change.
        """
        self.wait()
        arguments = (step, weights, unaveraged, training, dict(metadata or {}), states_written)
        self._thread = threading.Thread(target=self._write, args=arguments, name=f"save step {step}")
        self._thread.start()

    def create_folder(self, step: int) -> bool:
        """Waits for the previous checkpoint, and creates the temporary folder for the checkpoint of ``step``. Returns False if
        the folder cannot be created."""
        self.wait()
        try:
            create_temporary_folder(self.folder, step)
        except OSError as error:
            self._failed(step, error)
            return False
        return True

    def wait(self) -> None:
        """Waits until the last checkpoint has been written or has failed."""
        if self._thread is not None:
            self._thread.join()
            self._thread = None

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
        states_written: Future[Any] | None,
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
            remove_old(self.folder, self.keep, step)
            self._fault = None
            logger.info(SavedCheckpoint(step=step))
        # A full disk raises OSError, or whatever exception the writing library turns it into.
        except Exception as error:
            if states_written is not None:
                with suppress(Exception):
                    states_written.result()  # wait; otherwise, other ranks could still write to the folder while it is removed
            self._failed(step, error)

    def _failed(self, step: int, error: Exception) -> None:
        self._fault = save_failure(self.folder, f"the checkpoint of step {step}", error)
        logger.warning("%s", self._fault)
        remove_leftovers(self.folder)


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
