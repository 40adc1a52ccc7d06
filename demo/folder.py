"""Shared code for commands that fill a folder with a data set.

A command fills an :class:`~dataset.prepare.output_folder.OutputFolder`. The file that it writes last contains the *facts*: its
arguments, and counts of what it made. The folder is complete once this file exists.
"""

from __future__ import annotations

import base64
import io
import json
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, TypeVar

from PIL import Image

from dataset.prepare.folders import SPLITS, split_by_hash
from dataset.prepare.output_folder import OutputFolder, already_made
from dataset.prepare.tokenizer import train_wordpiece
from utils.commands import FLAGS
from utils.errors import UserError
from utils.files import write_text
from utils.flags import read_by, whole_number

LANGUAGES = ("en", "de", "fr", "cs", "zh", "ja")

Seed = Annotated[int, read_by(whole_number(0, 2**31 - 1))]

T = TypeVar("T")


def by_split(items: Sequence[T], key: Callable[[T], str], kind: str) -> dict[str, list[T]]:
    """Groups items by the split of their key. ``kind`` is what the error message calls the items.

    Raises:
        UserError: if a split would be empty.
    """
    splits = {split: [item for item in items if split_by_hash(key(item)) == split] for split in SPLITS}
    for split, members in splits.items():
        if not members:
            raise UserError(f"{len(items)} {kind} are too few: none falls into the {split} split")
    return splits


@FLAGS
@dataclass(frozen=True, kw_only=True)
class FolderFlags:
    """The folder that a command fills.

    Attributes:
        out: folder to fill; created if missing.
        overwrite: replace the contents of --out if they were made with different arguments.
    """

    out: Path
    overwrite: bool = False


def is_complete(folder: OutputFolder) -> bool:
    """Returns True, and prints that there is nothing to do, if the folder was made with the same arguments. Always False with
    ``overwrite``. The folder is neither created nor locked, so a command asks first, then reads its sources, and then fills it.

    Raises:
        UserError: if the folder was made with different arguments, or cannot be read.
    """
    try:
        complete = already_made(folder.out, folder.manifest, folder.arguments, overwrite=folder.overwrite)
    except OSError as error:
        raise UserError(f"{folder.out} cannot be read: {error.strerror or error}") from error
    if complete:
        sys.stdout.write(f"{folder.out} is already complete with these arguments; nothing to do\n")
    return complete


def train_tokenizer(texts: Iterable[str], path: Path, vocab_size: int) -> int:
    """Trains a tokenizer on texts and writes it to a folder; returns the size of its vocabulary."""
    try:
        return train_wordpiece(texts, path, vocab_size=vocab_size)
    except ValueError as error:
        raise UserError(f"the tokenizer cannot be made: {error}") from error


def write_clip(out: Path, name: str, frames: Iterable[Image.Image]) -> str:
    """Writes a clip as a JSON list of base64 JPEGs, the released format of videos; returns its path below ``out``."""
    encoded = []
    for frame in frames:
        content = io.BytesIO()
        frame.save(content, "JPEG", quality=92)
        encoded.append(base64.b64encode(content.getvalue()).decode("ascii"))
    path = f"frames/{name}.json"
    (out / path).parent.mkdir(parents=True, exist_ok=True)
    write_text(out / path, json.dumps(encoded))
    return path
