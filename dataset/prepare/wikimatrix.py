"""``run.py prepare wikimatrix``: translations of WikiMatrix for multilingual pre-training."""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Annotated

from dataset.prepare.official import OutputFlags, write_by_source
from utils.errors import UserError
from utils.flags import SEVERAL

THRESHOLD = 1.04
"""Margin score from which the authors of WikiMatrix take two texts for translations."""


def translations(source: Path, at_least: float = THRESHOLD) -> Iterator[dict[str, str]]:
    """Texts of a file with their translations, from that score on; pairs with an empty side are skipped.

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


def wikimatrix(*, output: OutputFlags, source: Annotated[list[Path], SEVERAL], at_least: float = THRESHOLD) -> int:
    """Make records of WikiMatrix's translations, for multilingual pre-training.

    The sources are the official WikiMatrix.<a>-<b>.tsv.gz, gzipped or not: a score, a text and its translation in each line,
    separated by tabs. Each source becomes a file <its name>.jsonl of {"source_text", "target_text"} in the folder of --out.

    Args:
        source: WikiMatrix.<a>-<b>.tsv.gz.
        at_least: margin score from which two texts are taken for translations.
    """
    sources = {path.name.removesuffix(".gz").removesuffix(".tsv") + ".jsonl": path for path in source}
    records = partial(translations, at_least=at_least)
    write_by_source("wikimatrix", output, {"at_least": at_least}, sources, records, "translations")
    return 0
