"""``python run.py prepare wikimatrix --source FILE ... --out DIR``: translations of WikiMatrix for multilingual pre-training.

The sources are the official ``WikiMatrix.<a>-<b>.tsv.gz``, gzipped or not: a score, a text and its translation in each line,
separated by tabs. Each source becomes ``DIR/<its name>.jsonl``, of ``{"source_text", "target_text"}``.
"""

from __future__ import annotations

import argparse
import gzip
import zlib
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

from dataset.prepare.official import command_parser, write_by_source
from utils.errors import UserError, one_line_errors

THRESHOLD = 1.04
"""Margin score from which the authors of WikiMatrix take two texts for translations."""


def translations(source: Path, at_least: float = THRESHOLD) -> Iterator[dict[str, str]]:
    """Texts of a file with their translations, from that score on; those with an empty side are left out.

    Raises:
        UserError: the file cannot be read, or a line does not have three columns.
    """
    try:
        with (
            gzip.open(source, "rt", encoding="utf-8")
            if source.suffix == ".gz"
            else source.open(encoding="utf-8") as lines
        ):
            for number, line in enumerate(lines, start=1):
                parts = line.rstrip("\n").split("\t")
                try:
                    score, first, second = float(parts[0]), parts[1].strip(), parts[2].strip()
                except (ValueError, IndexError):
                    raise UserError(f"{source}:{number}: not a score and two texts, separated by tabs") from None
                if score >= at_least and first and second:
                    yield {"source_text": first, "target_text": second}
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{source} cannot be read: {error}") from None


def arguments_of(argv: Sequence[str]) -> argparse.Namespace:
    """The arguments after ``run.py prepare wikimatrix``."""
    parser = command_parser("wikimatrix", "Translations of WikiMatrix.")
    add = parser.add_argument
    add("--source", type=Path, required=True, nargs="+", metavar="FILE", help="WikiMatrix.<a>-<b>.tsv.gz")
    add("--at-least", type=float, default=THRESHOLD, metavar="SCORE", help=f"default {THRESHOLD}")
    return parser.parse_args(argv)


@one_line_errors
def main(argv: Sequence[str]) -> int:
    """Make the records and print a line for each source; exit status 2 for a mistake of the user."""
    flags = arguments_of(argv)
    sources = {path.name.removesuffix(".gz").removesuffix(".tsv") + ".jsonl": path for path in flags.source}
    arguments = {"at_least": flags.at_least}
    records = partial(translations, at_least=flags.at_least)
    write_by_source("wikimatrix", flags, arguments, sources, records, "translations")
    return 0
