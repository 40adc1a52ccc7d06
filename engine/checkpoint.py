"""The checkpoints of a run, for reading. :mod:`engine.saving` writes them.

Each checkpoint is a folder that is written atomically. Its manifest, ``manifest.json``, lists its files with their sizes and
checksums, so that later changes are detected. This module imports torch only to read tensors, since many commands only look for
checkpoints.
"""

from __future__ import annotations

import functools
import hashlib
import logging
import pickle
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from engine.run_files import BEST_FILE, CONFIG_FILE
from utils.errors import UserError, reason_of
from utils.files import check_regular, open_regular, read_json

if TYPE_CHECKING:
    from torch import Tensor

logger = logging.getLogger(__name__)

FORMAT = 3
"""Format version of a checkpoint. Checkpoints with a later version or without a manifest are rejected. In versions 1 and 2,
:data:`TRAINING_FILE` stores optimiser states by parameter index: in version 1 all of them, in version 2 those that FSDP2 did not
shard."""

MANIFEST = "manifest.json"
MODEL_FILE = "model.safetensors"
UNAVERAGED_FILE = "unaveraged.safetensors"
"""The unaveraged weights, if the model file has averaged weights."""
TRAINING_FILE = "training.pt"
STATES = "optimizer"
"""Folder with the tensors of the optimiser state, stored by parameter name."""
CHECKPOINTS = "checkpoints"
MAX_LISTED_RUNS = 8
"""Maximum number of runs that the error lists if a folder contains only runs."""
REPLACED = ".{name}.replaced.tmp"
"""Temporary name of a checkpoint while a new one of the same step takes its place."""
NAME = re.compile(r"step-(\d+)")
REMEDY = "remove its folder to resume from an older checkpoint"


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    step: int

    @staticmethod
    def of(folder: Path, step: int) -> Checkpoint:
        """Returns the checkpoint of ``step`` in the folder with the checkpoints of a run."""
        return Checkpoint(folder / f"step-{step:08d}", step)

    @property
    def model_file(self) -> Path:
        return self.folder / MODEL_FILE

    @property
    def states_folder(self) -> Path | None:
        """The folder with the tensors of the optimiser state. None if all of them are in the file that :meth:`training_state`
        reads (formats 1 and 2, unless FSDP2 has sharded them)."""
        folder = self.folder / STATES
        return folder if folder.is_dir() else None

    def unaveraged_weights(self) -> dict[str, Tensor] | None:
        """Returns the unaveraged weights if the model file has averaged weights, or None if the run does not average its weights.

        Raises:
            UserError: if the file cannot be read.
        """
        from safetensors.torch import load_file

        file = self.folder / UNAVERAGED_FILE
        if not file.exists():
            return None
        try:
            return load_file(file)
        except Exception as error:  # safetensors.SafetensorError or OSError for a damaged file
            raise UserError(f"cannot be read ({reason_of(error)})", where=file, remedy=REMEDY) from None

    def training_state(self) -> dict[str, Any]:
        """Returns the optimiser state without its tensors, the state of the loss scaler, the position in the data and the
        counters.

        Loading never executes code from the file. In checkpoints written by earlier versions, this state also contains the
        optimiser's tensors.

        Raises:
            UserError: if the file cannot be read.
        """
        import torch

        from utils.weight_file import reject_zip_bomb

        file = self.folder / TRAINING_FILE
        try:
            reject_zip_bomb(file)
            return torch.load(file, map_location="cpu", weights_only=True)
        except UserError as error:
            raise UserError(
                error.what, where=error.where, remedy="; ".join(filter(None, [error.remedy, REMEDY]))
            ) from None
        except Exception as error:  # a damaged pickle can raise almost any exception
            # torch's own message starts by suggesting weights_only=False, which would execute code from the file.
            code = re.search(r"Unsupported global: GLOBAL (\S+)", str(error))
            reason = f"it pickles {code[1]}, and code from a file is never executed" if code else reason_of(error)
            if isinstance(error, pickle.UnpicklingError) and not code:
                reason = "it was not written by torch.save"
            raise UserError(f"cannot be read ({reason})", where=file, remedy=REMEDY) from None


def list_checkpoints(folder: Path) -> list[Checkpoint]:
    """Returns the complete checkpoints in ``folder``, oldest first."""
    checkpoints = []
    for entry in folder.iterdir() if folder.is_dir() else ():
        match = NAME.fullmatch(entry.name)
        if match and entry.is_dir():
            checkpoints.append(Checkpoint(entry, int(match[1])))
    return sorted(checkpoints, key=lambda checkpoint: checkpoint.step)


def fault_of(folder: Path, names: tuple[str, ...] | None = None, hashes: bool = True) -> str | None:
    """Checks the files of a checkpoint against its manifest. Returns a description of the first fault in one line, or None if the
    files are intact.

    Args:
        folder: folder of the checkpoint.
        names: the files to check; if None, all files.
        hashes: if False, only sizes are compared. This is fast, since no weights are read, but misses flipped bits.
    """
    manifest = folder / MANIFEST
    try:
        stated = read_json(manifest)
        if stated["format"] not in range(1, FORMAT + 1):
            other = f"{folder} has format {stated['format']}"
            return f"{other}, but this version only reads formats up to {FORMAT}: use the version that wrote it"
        if names is None:
            names = tuple(sorted({MODEL_FILE, TRAINING_FILE, *stated["files"]}))
        step, files = stated["step"], {name: stated["files"][name] for name in names}
        expected = {name: (int(file["bytes"]), str(file["sha256"])) for name, file in files.items()}
    except FileNotFoundError:
        return f"{folder} has no {MANIFEST}: it was written by an earlier version"
    except OSError as error:
        return f"{manifest} cannot be read: {error.strerror}"
    except (ValueError, KeyError, TypeError):
        return f"{manifest} cannot be read"
    if (named := NAME.fullmatch(folder.name)) and int(named[1]) != step:
        return f"{folder} contains step {step}: it was renamed"
    for name, (size, digest) in expected.items():
        file = folder / name
        try:
            check_regular(file)
            actual = file.stat().st_size
            if actual != size:
                return f"{file} has {actual:,} of {size:,} bytes"
            if hashes and digest_of(file) != digest:
                return f"{file} is damaged: its checksum differs from the manifest"
        except OSError as error:
            return f"{file} cannot be read: {error.strerror}"
    return None


def digest_of(file: Path) -> str:
    """Returns the SHA-256 of a file."""
    with open_regular(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def restore_replaced(folder: Path) -> None:
    """Restores the checkpoints in ``folder`` that a process was replacing when it was killed."""
    for replaced in folder.glob(REPLACED.format(name="*")):
        original = folder / replaced.name[1:].removesuffix(".replaced.tmp")
        if not original.exists():
            replaced.rename(original)


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
            f"no checkpoint in {folder} can be resumed: {'; '.join(faults)}",
            remedy="restore one from a backup, or start a new run from the weights: a new --output with "
            f"init.checkpoint={folder}/step-N/{MODEL_FILE}",
        )
    return None, []


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
        raise UserError(
            f"{path}: no such file or run folder", where="init.checkpoint", remedy="train it first, or use another path"
        )
    for file in (path / BEST_FILE, path / MODEL_FILE):
        if file.exists():
            check_regular(file)
            return file
    checkpoints = list_checkpoints(path / CHECKPOINTS)
    if not checkpoints:
        if runs := [str(each) for each in sorted(path.iterdir()) if _has_weights(each)]:
            listed = ", ".join(runs[:MAX_LISTED_RUNS]) + (", …" if len(runs) > MAX_LISTED_RUNS else "")
            raise UserError("is a folder of runs", where=path, remedy=f"use one of them: {listed}")
        raise UserError(
            f"contains neither {BEST_FILE}, {MODEL_FILE} nor {CHECKPOINTS}/step-*",
            where=path,
            remedy="use a weight file",
        )
    faults: list[str] = []
    for checkpoint in reversed(checkpoints):
        fault = _weights_fault(checkpoint)
        if fault is None:
            return checkpoint.model_file
        faults.append(fault)
        _warn_once(f"skipped a checkpoint with damaged weights: {fault}")
    raise UserError(
        f"no checkpoint in {path / CHECKPOINTS} has intact weights: {'; '.join(faults)}",
        remedy="restore one from a backup, or use another run or file",
    )


def _has_weights(folder: Path) -> bool:
    names = (BEST_FILE, MODEL_FILE)
    return any((folder / name).is_file() for name in names) or bool(list_checkpoints(folder / CHECKPOINTS))


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
