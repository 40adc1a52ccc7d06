"""Images that were not there: the list of a prepared folder, and another group's, so that both train on the same images."""

from __future__ import annotations

from pathlib import Path

from dataset.image_ids import ids_in_path
from utils.errors import UserError
from utils.files import write_text

MISSING = "_prepare/missing.txt"
"""Path, in a folder of records, of the images that were not there: an address or a usual path a line."""


def write_missing(folder: Path, names: list[str]) -> None:
    """Write the list of a folder of records."""
    path = folder / MISSING
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(f"{name}\n" for name in names))


def read_missing(path: Path) -> frozenset[str]:
    """The images of a list, or of all lists below a folder: their lines, and the ids in these, since COCO's images have had two
    names.

    Raises:
        UserError: there is no list, or one cannot be read.
    """
    files = sorted(path.rglob(MISSING)) if path.is_dir() else [path]
    if not files:
        raise UserError(
            f"--missing {path}: no {MISSING} is below it; give such a file, or the --out of `run.py prepare`"
        )
    names: set[str] = set()
    for file in files:
        try:
            names.update(file.read_text(encoding="utf-8").split("\n"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--missing {file} cannot be read: {error}") from None
    return frozenset(names - {""}).union(*map(ids_in_path, names))
