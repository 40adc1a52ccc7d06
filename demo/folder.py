"""Shared code for commands that fill a folder with a data set: their flags, and the folder itself.

A command writes the *facts* last: a JSON file that describes the data set. The folder is complete once this file exists.
"""

from __future__ import annotations

import base64
import io
import json
import logging
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from PIL import Image

from dataset.prepare.folders import SPLITS, split_by_hash
from dataset.prepare.output_folder import OutputFolder, already_made, read_facts
from dataset.prepare.tokenizer import train_wordpiece
from utils.commands import FLAGS
from utils.errors import UserError
from utils.files import write_text
from utils.flags import read_by, whole_number

LANGUAGES = ("en", "de", "fr", "cs", "zh", "ja")

Seed = Annotated[int, read_by(whole_number(0, 2**31 - 1))]

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Folder(NamedTuple):
    """A folder that a command fills.

    Attributes:
        out: path of the folder; created if missing.
        facts_name: name of the file with the facts, which is written last.
        owned: files and folders that the command writes, and may replace.
        arguments: arguments of the command, which are compared with the arguments of a complete folder.
        overwrite: replace the contents if they were made with different arguments.
    """

    out: Path
    facts_name: str
    owned: Sequence[str]
    arguments: dict[str, Any]
    overwrite: bool

    def is_complete(self) -> bool:
        """Returns True if the folder was made with the same arguments. Always False with ``overwrite``.

        Raises:
            UserError: if the folder was made with different arguments, or cannot be read.
        """
        try:
            complete = already_made(self.out, self.facts_name, self.arguments, overwrite=self.overwrite)
        except OSError as error:
            raise UserError(f"{self.out} cannot be read: {error.strerror or error}") from error
        if complete:
            logger.info("%s is complete and was made with the same arguments", self.out)
        return complete

    @contextmanager
    def filling(self) -> Iterator[dict[str, Any]]:
        """Clears the folder for new files, and yields a dictionary. When the context ends, writes the facts that the caller added
        to the dictionary.

        Raises:
            UserError: if the folder contains files that the command did not write, or cannot be written.
        """
        with OutputFolder(self.out, self.facts_name, self.arguments, self.owned, overwrite=self.overwrite) as output:
            facts: dict[str, Any] = {}
            yield facts
            output.close(facts)

    def train_tokenizer(self, texts: Iterable[str], vocab_size: int, name: str = "tokenizer") -> int:
        """Trains a tokenizer on texts; returns the size of its vocabulary."""
        try:
            return train_wordpiece(texts, self.out / name, vocab_size=vocab_size)
        except ValueError as error:
            raise UserError(f"the tokenizer cannot be made: {error}") from error

    def write_clip(self, name: str, frames: Iterable[Image.Image]) -> str:
        """Writes a clip as a JSON list of base64 JPEGs, the released format of videos; returns its path in the folder."""
        encoded = []
        for frame in frames:
            content = io.BytesIO()
            frame.save(content, "JPEG", quality=92)
            encoded.append(base64.b64encode(content.getvalue()).decode("ascii"))
        path = f"frames/{name}.json"
        (self.out / path).parent.mkdir(parents=True, exist_ok=True)
        write_text(self.out / path, json.dumps(encoded))
        return path


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


def fill_folder(
    output: FolderFlags,
    facts_name: str,
    build: Callable[..., None],
    summary: Callable[[dict[str, Any]], str],
    **arguments: Any,
) -> int:
    """Fills the folder with ``build(out, **arguments)``, shows a progress bar, and prints a one-line summary of the facts.
    Returns 0."""
    path = output.out / facts_name
    before = path.stat().st_mtime_ns if path.exists() else None
    build(output.out, **arguments, overwrite=output.overwrite, progress=True)
    if before is not None and path.stat().st_mtime_ns == before:
        sys.stdout.write(f"{output.out} is already complete with these arguments; nothing to do\n")
    else:
        sys.stdout.write(f"{output.out}: {summary(read_facts(path))}\n")
    return 0
