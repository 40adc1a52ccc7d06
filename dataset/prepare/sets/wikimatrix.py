"""WikiMatrix: sentences of Wikipedia with their translations, for multilingual pre-training."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from dataset.prepare.counts import Counts
from dataset.prepare.declarations import DataSet, Files, Splits
from dataset.prepare.options import Options
from dataset.prepare.raw_folder import RawFile, RawFolder
from utils.errors import UserError
from utils.numerals import plain_number

_FILE = re.compile(r"(WikiMatrix\.[\w-]+)\.tsv(?:\.gz)?")


def _files(raw: RawFolder) -> Files:
    names = sorted({match[1] for name in raw.files if (match := _FILE.fullmatch(name)) is not None})
    files = {name: file for name in names if (file := raw.find(f"{name}.tsv")) is not None}
    if not files:
        raise UserError("no WikiMatrix.<a>-<b>.tsv.gz exists, plain or gzipped", where=", ".join(map(str, raw.roots)))
    return files


def _read(files: Files, folder: Path, options: Options, counts: Counts) -> Mapping[str, Iterator[dict[str, Any]]]:
    return {name: _translations(file, options.min_score, counts) for name, file in files.items()}


def _translations(file: RawFile, min_score: float, counts: Counts) -> Iterator[dict[str, Any]]:
    """Yields the texts with their translations whose margin score is at least ``min_score``.

    Raises:
        UserError: a line does not have a score and two texts.
    """
    for location, line in file.lines():
        counts.read["sentences"] += 1
        parts = line.split("\t")
        try:
            score, first, second = plain_number(parts[0]), parts[1].strip(), parts[2].strip()
        except (ValueError, IndexError):
            raise UserError(
                "not a score and two texts, separated by tabs", where=location, remedy="download the file again"
            ) from None
        if score < min_score:
            counts.skip("low score", location)
        elif not first or not second:
            counts.skip("empty text", location)
        else:
            yield {"source_text": first, "target_text": second}


WIKIMATRIX = DataSet(
    name="wikimatrix",
    title="WikiMatrix",
    home="github.com/facebookresearch/LASER, tasks/WikiMatrix",
    licence="CC BY-SA",
    files={"WikiMatrix.<a>-<b>.tsv.gz": "a score, a sentence and its translation in each line"},
    sizes={},
    makes=Splits(
        "wikimatrix",
        "a sentence and its translation",
        files=_files,
        read=_read,
        options=("min_score",),
    ),
    read_by="configs/presets/pretrain_multilingual.yaml",
)
