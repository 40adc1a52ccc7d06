"""Options of the commands that fill an output folder, and the path of the folder's manifest."""

from __future__ import annotations

from dataclasses import dataclass

from utils.commands import FLAGS
from utils.flags import OutputFolder


@FLAGS
@dataclass(frozen=True, kw_only=True)
class OutputFlags:
    """The folder that a command fills.

    Attributes:
        out: folder to fill; created if it does not exist.
        overwrite: replace what previous runs of this command have written to --out.
    """

    out: OutputFolder
    overwrite: bool = False


def manifest_of(command: str) -> str:
    """Returns the path of a command's manifest below the output folder. It is in a separate folder, because JSON files next to
    the records would be read as shards."""
    return f"_{command}/manifest.json"
