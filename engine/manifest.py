"""The manifest of a checkpoint, by which any change of its files shows. This module does not import torch."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

from utils.files import open_regular, read_json

FORMAT = 3
"""Version of the files of a checkpoint. One of a later version, or without a manifest, is not read. In versions 1 and 2,
:data:`TRAINING_FILE` has states of the optimiser by number: all states, or only the states that ranks of FSDP2 did not share."""

MANIFEST = "manifest.json"
MODEL_FILE = "model.safetensors"
UNAVERAGED_FILE = "unaveraged.safetensors"
"""The weights that train, in a run whose model file has their average."""
TRAINING_FILE = "training.pt"
STATES = "optimizer"
"""Folder with the tensors of the optimiser's states, by the name of their parameter."""
CHECKPOINTS = "checkpoints"
NAME = re.compile(r"step-(\d+)")


def checkpoint_folders(folder: Path) -> list[tuple[int, Path]]:
    """Step and folder of each complete checkpoint in ``folder``, oldest first."""
    found = []
    for entry in folder.iterdir() if folder.is_dir() else ():
        match = NAME.fullmatch(entry.name)
        if match and entry.is_dir():
            found.append((int(match[1]), entry))
    return sorted(found, key=lambda item: item[0])


def fault_of(folder: Path, names: tuple[str, ...] | None = None, hashes: bool = True) -> str | None:
    """What is wrong with the files ``names`` of a checkpoint (None: all) by its manifest, in one line; None: nothing.

    Without ``hashes``, only sizes are compared: that reads no weights, and misses a flipped bit.
    """
    manifest = folder / MANIFEST
    try:
        stated = read_json(manifest)
        if stated["format"] not in range(1, FORMAT + 1):
            other = f"{folder} has format {stated['format']}"
            return f"{other}, and this version reads formats up to {FORMAT}: use the version that wrote it"
        if names is None:
            names = tuple(sorted({MODEL_FILE, TRAINING_FILE, *stated["files"]}))
        step, files = stated["step"], {name: stated["files"][name] for name in names}
        expected = {name: (int(file["bytes"]), str(file["sha256"])) for name, file in files.items()}
    except FileNotFoundError:
        return f"{folder} has no {MANIFEST}: an earlier version wrote it"
    except (OSError, ValueError, KeyError, TypeError):
        return f"{manifest} cannot be read"
    if (named := NAME.fullmatch(folder.name)) and int(named[1]) != step:
        return f"{folder} holds step {step}: it was renamed"
    for name, (size, digest) in expected.items():
        file = folder / name
        try:
            found = file.stat().st_size
            if found != size:
                return f"{file} has {found:,} of {size:,} bytes"
            if hashes and digest_of(file) != digest:
                return f"{file} is damaged: its bytes are not those that were written"
        except OSError as error:
            return f"{file} cannot be read: {error.strerror}"
    return None


def digest_of(file: Path) -> str:
    """The SHA-256 of a file."""
    with open_regular(file) as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()
