"""Lists of missing images. A research group that uses another group's list trains on the same images."""

from __future__ import annotations

from pathlib import Path

from dataset.image_ids import ids_in_path
from utils.errors import UserError
from utils.files import write_text

MISSING = "_prepare/missing.txt"
"""Path of the list in a folder of records. Each line has the URL or the usual path of an image."""


def write_missing(folder: Path, names: list[str]) -> None:
    """Writes the list of a folder of records."""
    path = folder / MISSING
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(f"{name}\n" for name in names))


def read_missing(path: Path) -> frozenset[str]:
    """Reads a list of missing images, or all lists below a folder.

    Returns:
        The lines of the lists, and the ids in these lines. The ids are needed because COCO's images have had two names.

    Raises:
        UserError: a list does not exist or cannot be read.
    """
    files = sorted(path.rglob(MISSING)) if path.is_dir() else [path]
    if not files:
        raise UserError(
            f"found no {MISSING} below this folder",
            where=f"--missing {path}",
            remedy="pass such a file, or the --out of `run.py prepare`",
        )
    names: set[str] = set()
    for file in files:
        try:
            names.update(file.read_text(encoding="utf-8").split("\n"))
        except (OSError, UnicodeDecodeError) as error:
            raise UserError(f"--missing {file} cannot be read: {error}") from None
    return frozenset(names - {""}).union(*map(ids_in_path, names))
