"""The official JSON lines of NLVR2: ``train.json``, ``dev.json`` and ``test1.json``."""

from __future__ import annotations

import re

from dataset.broken import BrokenRecordError
from dataset.formats.annotations import Row

_IDENTIFIER = re.compile(r"([a-z]+\d*)-(\d+)-(\d+)-(\d+)")


def statement_row(row: Row) -> Row:
    """Adds the paths of the two ``images`` in the official layout (``train/<directory>/…-img0.png``, ``dev/…``, ``test1/…``) to a
    row. Sentence, label and identifier are unchanged."""
    identifier = row.get("identifier", str)
    match = _IDENTIFIER.fullmatch(identifier)
    if not match:
        raise BrokenRecordError("wrong type", f"identifier {identifier!r} is not split-set-pair-sentence")
    folder = match[1]
    if folder == "train":
        folder = f"train/{row.get('directory', int)}"
    stem = identifier.rpartition("-")[0]
    return Row({**row.values, "images": [f"{folder}/{stem}-img{side}.png" for side in (0, 1)]}, row.location)


def sentence_id(row: Row) -> str | None:
    """Returns the identifier of a row (split-set-pair-sentence) without the pair; rows with the same sentence have equal results.

    Returns None if the row has no identifier of this form.
    """
    match = _IDENTIFIER.fullmatch(str(row.values.get("identifier")))
    return f"{match[1]}-{match[2]}-{match[4]}" if match else None
