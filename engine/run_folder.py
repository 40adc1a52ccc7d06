"""The folder of a run; docs/runs.md lists its files."""

from __future__ import annotations

import logging
import socket
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from engine.checkpoint import CHECKPOINTS, Checkpoint, list_checkpoints, newest_intact, restore_replaced
from engine.run_files import (
    BEST_FILE,
    CONFIG_FILE,
    EVENTS_FILE,
    LOG_FILE,
    METRICS_FILE,
    TENSORBOARD_FOLDER,
    VALIDATION_FILE,
    VALIDATION_PREDICTIONS_FILE,
)
from engine.saved_config import check_same_config, marked
from utils import distributed
from utils.config import Config, dump_config
from utils.errors import UserError
from utils.files import check_regular, write_text
from utils.folder_lock import FolderLock

logger = logging.getLogger(__name__)


@contextmanager
def locked(path: Path, wait_s: float = 0) -> Iterator[None]:
    """Context in which this run holds the lock of its folder. Rank 0 takes the lock. If rank 0 fails, all ranks raise an error.

    Args:
        path: folder of the run.
        wait_s: seconds to wait if another run holds the lock.

    Raises:
        UserError: if another run holds the lock, or the folder is not writable.
    """
    with ExitStack() as stack:

        def take() -> None:
            stack.enter_context(FolderLock(path, wait_s))

        distributed.on_rank_0(take)
        yield


class RunFolder:
    """The folder that a run writes to. Only rank 0 writes; every rank may read."""

    def __init__(self, path: Path):
        self.path = path
        self.checkpoints = path / CHECKPOINTS
        self.best = path / BEST_FILE
        self.metrics = path / METRICS_FILE
        self.validation = path / VALIDATION_FILE
        self.validation_predictions = path / VALIDATION_PREDICTIONS_FILE
        rank = distributed.rank()
        self.log = path / LOG_FILE if rank == 0 else path / "logs" / f"rank-{rank:05d}.txt"
        """The log file of this rank."""
        self.events = path / EVENTS_FILE
        self.tensorboard = path / TENSORBOARD_FOLDER
        self.checkpoint_faults: list[str] = []
        """On rank 0: what is wrong with each checkpoint that is newer than the checkpoint to resume from."""
        self.newest: Checkpoint | None = None
        """The newest intact checkpoint when the folder was opened and, after training, the last checkpoint; None if there is
        none."""
        self._config: str | None = None
        """The content of ``config.yaml``."""

    @classmethod
    def open(cls, path: Path, config: Config, resume: bool, evaluate: bool = False) -> RunFolder:
        """Creates or opens the folder, and finds its newest intact checkpoint (:attr:`newest`).

        Raises:
            NotRegularError: if one of the run's files is a FIFO or a folder.
            UserError: if the folder is not writable, if it contains a run although ``resume`` is False, or if it contains a run
                with a different config. With ``evaluate``, the evaluation config must also be the same, because the new metrics
                would replace the run's metrics.
        """
        folder = cls(path)
        for file_name in (CONFIG_FILE, METRICS_FILE, VALIDATION_FILE, VALIDATION_PREDICTIONS_FILE):
            check_regular(path / file_name)
        saved = path / CONFIG_FILE
        distributed.on_rank_0(lambda: restore_replaced(folder.checkpoints))
        checkpoints = list_checkpoints(folder.checkpoints)
        last_step = checkpoints[-1].step if checkpoints else 0
        # A folder without any training steps may be reused: a previous attempt failed to start, or the run only evaluated.
        started = saved.exists() and (folder.metrics.exists() or last_step > 0)
        if len(set(distributed.gather_objects((started, last_step)))) > 1:
            raise UserError(
                "the ranks see different files", where=path, remedy="--output must be on a disk that all nodes share"
            )
        if last_step and not saved.exists():
            if not resume:
                raise UserError(
                    f"{path} contains checkpoints of a run whose {CONFIG_FILE} is missing",
                    remedy="add --resume to resume it with this config, or use another --output",
                )
            if distributed.rank() == 0:
                logger.warning(
                    "%s is missing, and is written again from the config of this command; whether the run was started "
                    "with the same config cannot be checked",
                    saved,
                )
        if started and not resume:
            remedy = (
                "add --resume to resume it"
                if last_step
                else "it has no checkpoint: delete it unless it is still running"
            )
            raise UserError(f"{path} already contains a run", remedy=f"{remedy}, or use another --output")
        if started:
            check_same_config(saved, config, evaluate=evaluate)
        folder._config = text = marked(dump_config(config))

        def create() -> str:
            token = f".token-{uuid.uuid4().hex}"
            try:
                path.mkdir(parents=True, exist_ok=True)
                write_text(saved, text)
                if distributed.is_distributed():
                    (path / token).touch()
                if folder.checkpoints.exists():
                    next(folder.checkpoints.iterdir(), None)  # raises if it is not a folder
            except OSError as error:
                name = error.filename2 or error.filename or path
                raise UserError(
                    f"{name} cannot be written: {error.strerror}",
                    where=f"--output {path}",
                    remedy="use another folder",
                ) from None
            return token

        token = distributed.on_rank_0(create)
        if distributed.is_distributed():
            folder._require_shared(token)
        folder.newest = folder._newest_intact() if checkpoints else None
        return folder

    def _require_shared(self, token: str) -> None:
        """Checks that all ranks see the file ``token``, which rank 0 has just created in the folder, and removes this file.

        Raises:
            UserError: if a rank does not see the file, so that its checkpoints and logs would be in a different folder.
        """
        nodes = distributed.gather_objects(((self.path / token).exists(), socket.gethostname()))
        if distributed.rank() == 0:
            (self.path / token).unlink(missing_ok=True)
        for rank, (sees_token, node) in enumerate(nodes):
            if not sees_token:
                raise UserError(
                    f"rank {rank} on {node} does not see the files that rank 0 on {nodes[0][1]} writes there",
                    where=f"--output {self.path}",
                    remedy="use a folder on a disk that all nodes share",
                )

    def _newest_intact(self) -> Checkpoint | None:
        """Returns the newest intact checkpoint. Only rank 0 reads the checkpoints."""
        checkpoint, faults = distributed.on_rank_0(lambda: newest_intact(self.checkpoints))
        self.checkpoint_faults = faults if distributed.rank() == 0 else []
        return checkpoint

    def restore_config(self) -> None:
        """Rewrites ``config.yaml`` if the folder was deleted or renamed during the run. Without this file, checkpoints cannot be
        resumed."""
        saved = self.path / CONFIG_FILE
        if self._config is None or saved.exists():
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            write_text(saved, self._config)
        except OSError as error:
            logger.warning(
                "%s is missing and cannot be rewritten (%s); the run cannot be resumed", saved, error.strerror
            )
            return
        logger.warning(
            "%s was missing: was the run's folder deleted or renamed? The file has been rewritten, so the run can be "
            "resumed, but earlier metrics and checkpoints are lost with the folder",
            saved,
        )
