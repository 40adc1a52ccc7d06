"""Checks prediction files for the evaluation servers of VQA v2 and COCO captions against the format that the servers accept."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from utils.errors import UserError
from utils.files import read_json

if TYPE_CHECKING:
    from tasks.config import FineTuneConfig


class Form(NamedTuple):
    """The format of a file for a server: a list of objects, each with a unique integer under ``id_key`` and a text under
    ``text_key``."""

    id_key: str
    text_key: str


FORMS = {"vqa": Form("question_id", "answer"), "captioning": Form("image_id", "caption")}
"""Formats by task."""


def check_submissions(folder: Path, config: FineTuneConfig) -> list[str]:
    """Returns a line for each prediction file in a run's folder that a server accepts.

    Raises:
        UserError: if a file does not have the format that the server accepts.
    """
    task = getattr(config, "task", None)
    form = FORMS.get(task) if isinstance(task, str) else None
    if form is None:
        return []
    return [
        check_submission(folder / f"predictions_{name}.json", form, _expected(split))
        for name, split in config.evaluation.test.items()
        if (folder / f"predictions_{name}.json").is_file() and getattr(split, "format", "records") != "records"
    ]


def check_submission(path: Path, form: Form, expected: frozenset[int] | None = None) -> str:
    """Checks a prediction file, and returns a line that describes it.

    Args:
        path: the file.
        form: the format that the server accepts.
        expected: the ids that the file must contain; None if unknown.

    Raises:
        UserError: if the file has the wrong format (the message names the first wrong entry), or an id is missing, repeated or
            unknown.
    """
    try:
        entries = read_json(path)
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is not JSON: {error}", remedy="evaluate the run again") from None
    if not isinstance(entries, list):
        raise UserError(
            "the server accepts a list, and this is not a list", where=path, remedy="evaluate the run again"
        )
    for index, entry in enumerate(entries):
        if fault := _fault(entry, form):
            raise UserError(
                f"{fault}",
                where=f"{path}[{index}]",
                remedy=f"the server accepts {{{form.id_key}: integer, {form.text_key}: text}}",
            )
    counts = Counter(entry[form.id_key] for entry in entries)
    if twice := [number for number, count in counts.items() if count > 1]:
        raise UserError(
            f"{form.id_key} {twice[0]} occurs {counts[twice[0]]} times",
            where=path,
            remedy="the server accepts each only once",
        )
    if expected is not None and counts.keys() != expected:
        absent, strange = sorted(expected - counts.keys()), sorted(counts.keys() - expected)
        which = (
            f"{len(absent):,} are missing, such as {absent[0]}"
            if absent
            else f"{len(strange):,} are unknown, such as {strange[0]}"
        )
        raise UserError(
            f"of {len(expected):,} {form.id_key}s {which}", where=path, remedy="the server rejects such a file"
        )
    known = "" if expected is None else ", all that the server requires"
    return f"{path}: {len(entries):,} entries in the server's format{known}"


def _fault(entry: Any, form: Form) -> str:
    if not isinstance(entry, dict) or set(entry) != set(form):
        return f"it has the keys {sorted(entry)}" if isinstance(entry, dict) else "it is not an object"
    if not isinstance(entry[form.id_key], int) or isinstance(entry[form.id_key], bool):
        return f"{form.id_key} is {entry[form.id_key]!r:.60}"
    return "" if isinstance(entry[form.text_key], str) else f"{form.text_key} is {entry[form.text_key]!r:.60}"


def _expected(split: Any) -> frozenset[int] | None:
    """Returns the ids that a split requires, from its official file."""
    reader = READERS.get(getattr(split, "format", ""))
    return None if reader is None else reader(split)


def _vqa2(split: Any) -> frozenset[int]:
    content = json.loads(Path(split.questions).expanduser().read_text(encoding="utf-8"))
    return frozenset(question["question_id"] for question in content["questions"])


def _karpathy(split: Any) -> frozenset[int] | None:
    content = json.loads(Path(split.annotations).expanduser().read_text(encoding="utf-8"))
    ids = [image.get("cocoid") for image in content["images"] if image["split"] in split.splits]
    return None if None in ids else frozenset(ids)


READERS: dict[str, Callable[[Any], frozenset[int] | None]] = {"vqa2": _vqa2, "karpathy": _karpathy}
"""Functions that read the ids in an official file, by format."""
