"""Reports the files that a cell's run lacks, each with the command that makes it, or the page that says where to get it."""

from __future__ import annotations

from pathlib import PurePath

from tools.reproduce.cells import OTHER_CELL, ReadyCell
from utils.errors import UserError

MADE = {
    "data/scenes": "make scenes",
    "data/multi30k": "python run.py prepare multi30k --raw DIR --out data, see docs/data.md (Other languages)",
    "data/coco_multilingual": "python run.py prepare multilingual_coco --raw DIR --out data, see docs/data.md (Other languages)",
}
"""Data folders, each with the command that makes everything that configs read from the folder. All other data must be downloaded
by hand."""

WEIGHTS = "docs/checkpoints.md (Files to start from); --checkpoints DIR names a folder of weights"
DATA = "docs/data.md (Fine-tuning)"


def require(ready_cell: ReadyCell) -> None:
    """Checks that nothing is missing.

    Raises:
        UserError: if files are missing. For each way to get some of them, the message has a line that lists these files.
    """
    if not ready_cell.missing:
        return
    by_source: dict[str, list[str]] = {}
    for path, keys in ready_cell.missing.items():
        by_source.setdefault(_source(ready_cell, path, keys), []).append(path)
    lines = [f"  {source}\n    {', '.join(paths)}" for source, paths in by_source.items()]
    count = len(ready_cell.missing)
    raise UserError("\n".join([f"{count} {'path is' if count == 1 else 'paths are'} missing", *lines]))


def _source(ready_cell: ReadyCell, path: str, keys: list[str]) -> str:
    """Returns how to get the file or folder at ``path``."""
    other = ready_cell.cell.checkpoint or ""
    if path == ready_cell.weights and other.startswith(OTHER_CELL):
        output = PurePath(path).parents[1]
        return f"made or finished by: python run.py reproduce --cell {other.removeprefix(OTHER_CELL)} --output {output}"
    if "init.checkpoint" in keys:
        return f"published: {WEIGHTS}"
    for folder, command in MADE.items():
        if PurePath(path).is_relative_to(folder):
            return f"made by: {command}"
    return f"published: {DATA}"
