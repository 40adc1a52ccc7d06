"""Commands that fill a folder with a data set: their flags, and the folder, which is complete once it has its facts file."""

from __future__ import annotations

import argparse
import base64
import io
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from PIL import Image

from dataset.prepare.folders import SPLITS, LineParser, fill_and_tell, split_by_hash
from dataset.prepare.output import OutputFolder, already_made
from dataset.prepare.tokenizer import train_wordpiece
from utils.errors import UserError
from utils.files import write_text

LANGUAGES = ("en", "de", "fr", "cs", "zh", "ja")

T = TypeVar("T")

logger = logging.getLogger(__name__)


class Folder(NamedTuple):
    """A folder that a command fills.

    Attributes:
        out: its path; made if missing.
        facts_name: the file that is written last.
        owned: files and folders that the command writes, and may replace.
        arguments: by which the command tells whether a complete folder is the wanted one.
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


def command_parser(name: str, description: str | None) -> LineParser:
    """The parser of ``python -m demo.NAME``, with the flags that all such commands have."""
    parser = LineParser(
        prog=f"python -m demo.{name}", description=description, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="folder to fill; made if missing")
    parser.add_argument("--overwrite", action="store_true", help="replace what other arguments made in DIR")
    return parser


def run_command(
    parser: LineParser, facts_name: str, build: Callable[..., None], summary: Callable[[dict[str, Any]], str]
) -> int:
    """Fill the folder with a progress bar, and print one line of its facts; returns the exit status."""
    flags = vars(parser.parse_args())
    return fill_and_tell(flags["out"], facts_name, lambda: build(**flags, progress=True), summary)
