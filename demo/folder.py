"""Commands that fill a folder with a data set: their shared flags, and the folder, which is complete once its facts are there."""

from __future__ import annotations

import base64
import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypeVar

from PIL import Image

from dataset.prepare.folders import SPLITS, fill_and_tell, split_by_hash
from dataset.prepare.output import OutputFolder, already_made
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
        out: its path; made if missing.
        facts_name: the file that is written last.
        owned: files and folders that the command writes, and may replace.
        arguments: by which the command tells whether a complete folder is the requested one.
        overwrite: replace what other arguments made.
    """

    out: Path
    facts_name: str
    owned: Sequence[str]
    arguments: dict[str, Any]
    overwrite: bool

    def is_complete(self) -> bool:
        """Whether the folder was made with the same arguments; always False with ``overwrite``.

        Raises:
            UserError: the folder was made with other arguments, or cannot be read.
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
        """Clear the folder for new files, and write the facts that the body has added.

        Raises:
            UserError: the folder holds files of another origin, or cannot be written.
        """
        with OutputFolder(self.out, self.facts_name, self.arguments, self.owned, overwrite=self.overwrite) as output:
            facts: dict[str, Any] = {}
            yield facts
            output.close(facts)

    def train_tokenizer(self, texts: Iterable[str], vocab_size: int, name: str = "tokenizer") -> int:
        """Make a tokenizer from texts; returns the size of its vocabulary."""
        try:
            return train_wordpiece(texts, self.out / name, vocab_size=vocab_size)
        except ValueError as error:
            raise UserError(f"the tokenizer cannot be made: {error}") from error

    def write_clip(self, name: str, frames: Iterable[Image.Image]) -> str:
        """Write a clip as JSON list of base64 JPEGs, the released form of a video; returns its path in the folder."""
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
    """Items by the split that their key belongs to.

    Raises:
        UserError: a split would be empty.
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
        out: folder to fill; made if missing.
        overwrite: replace what other arguments made in --out.
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
    """Fill the folder by ``build(out, **arguments)`` with a progress bar, and print one line of its facts; returns 0."""

    def fill() -> None:
        build(output.out, **arguments, overwrite=output.overwrite, progress=True)

    return fill_and_tell(output.out, facts_name, fill, summary)
