"""The manifest of a checkpoint, a list of its files with their sizes and checksums. This module does not import torch."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from utils.files import check_regular, open_regular, read_json

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
NAME = re.compile(r"step-(\d+)")


def checkpoint_folders(folder: Path) -> list[tuple[int, Path]]:
    """Returns the step and the folder of each complete checkpoint in ``folder``, oldest first."""
    folders = []
    for entry in folder.iterdir() if folder.is_dir() else ():
        match = NAME.fullmatch(entry.name)
        if match and entry.is_dir():
            folders.append((int(match[1]), entry))
    return sorted(folders, key=lambda item: item[0])


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
