"""``python -m dataset.prepare.wikimatrix --source FILE ... --out DIR``: text pairs of WikiMatrix for multilingual pre-training.

The sources are the official ``WikiMatrix.<a>-<b>.tsv.gz``, packed or not: a score, a text and its translation in each line,
parted by tabs. For each source, ``DIR/<its name>.jsonl`` is made, of ``{"source_text", "target_text"}``.
"""

from __future__ import annotations

import gzip
import sys
import zlib
from collections.abc import Iterator
from pathlib import Path

from dataset.prepare.official import command_parser, manifest_of, write_by_source
from dataset.prepare.output import OutputFolder
from utils.errors import UserError, one_line_errors

THRESHOLD = 1.04
"""Margin score from which the authors of WikiMatrix call a pair a translation."""


def pairs(source: Path, at_least: float = THRESHOLD) -> Iterator[dict[str, str]]:
    """The pairs of a file with at least that score; those with an empty side are left out.

    Raises:
        UserError: the file cannot be read, or a line has not three parts.
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
                    raise UserError(f"{source}:{number}: not a score and two texts, parted by tabs") from None
                if score >= at_least and first and second:
                    yield {"source_text": first, "target_text": second}
    except (OSError, EOFError, zlib.error, UnicodeDecodeError) as error:
        raise UserError(f"{source} cannot be read: {error}") from None


@one_line_errors
def main() -> int:
    """Make the records and print a line for each source; exit status 2 for a mistake of the user."""
    parser = command_parser("wikimatrix", "Text pairs of WikiMatrix.")
    add = parser.add_argument
    add("--source", type=Path, required=True, nargs="+", metavar="FILE", help="WikiMatrix.<a>-<b>.tsv.gz")
    add("--at-least", type=float, default=THRESHOLD, metavar="SCORE", help=f"default {THRESHOLD}")
    flags = parser.parse_args()
    sources = {path.name.removesuffix(".gz").removesuffix(".tsv") + ".jsonl": path for path in flags.source}
    arguments = {"at_least": flags.at_least}
    manifest = manifest_of("wikimatrix")
    folder = OutputFolder(flags.out, manifest, arguments, sources, overwrite=flags.overwrite)
    write_by_source(folder, sources, lambda source: pairs(source, flags.at_least), "pairs")
    return 0


if __name__ == "__main__":
    sys.exit(main())
